"""Complete a learning-rate schedule of Trainer's: when its decay begins, and how low it goes."""

import math
from typing import Any

import torch
from transformers import (
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.data.tokens.token_dataset import TokenWindows
from hf_llm.training.fault_tolerance.horizon import complete_scheduler_kwargs

KINDS_WITHOUT_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU)


def add_curriculum_decay(settings: dict[str, Any], windows: TokenWindows, windows_per_step: int) -> dict[str, Any]:
    """Return `settings` of TrainingArguments, with a decay that lasts as long as the curriculum's last stage.

    The decay is that of a warmup_stable_decay schedule, where `settings` leave it open; other settings are returned as
    they are. Prints where training continues beyond the curriculum's last stage; raises UserError where it ends before
    that stage.
    """
    steps_of_curriculum = math.ceil(len(windows) / windows_per_step)
    steps = steps_of_curriculum
    if settings.get("max_steps", 0) > 0:
        steps = settings["max_steps"]

    num_decay_steps = decay_steps(windows, windows_per_step, steps)
    if num_decay_steps is None:
        return settings

    if steps > steps_of_curriculum:
        print_main(
            f"corpus.curriculum: its stages end after {steps_of_curriculum:,} of {steps:,} steps, and start again with "
            f"the first. With --pretrain.training.max_steps={steps_of_curriculum} training ends with the last stage"
        )

    scheduler_kwargs = settings.get("lr_scheduler_kwargs") or {}
    if settings.get("lr_scheduler_type") != "warmup_stable_decay" or "num_decay_steps" in scheduler_kwargs:
        return settings
    return {**settings, "lr_scheduler_kwargs": {**scheduler_kwargs, "num_decay_steps": num_decay_steps}}


def decay_steps(windows: TokenWindows, windows_per_step: int, max_steps: int) -> int | None:
    """Return the steps from the start of the curriculum's last stage to the end of training; None without a curriculum.

    With so many decay steps a warmup_stable_decay schedule decays on the data of the last stage. Raises UserError where
    training ends before that stage.
    """
    if not windows.has_stages:
        return None

    first_step = math.ceil(windows.last_stage_start / windows_per_step)
    if first_step >= max_steps:
        tokens_seen = max_steps * windows_per_step * windows.length
        tokens_before_stage = windows.last_stage_start * windows.length
        raise UserError(
            f"pretrain.training.max_steps: {max_steps} steps are {tokens_seen:,} tokens, and the last stage of "
            f"corpus.curriculum begins after {tokens_before_stage:,}; set corpus.max_tokens={tokens_seen}, so "
            "that the stages share what training sees"
        )
    return max_steps - first_step


def check_schedule_fits(arguments: TrainingArguments, steps: int, where: str) -> None:
    """Raise UserError, naming the recipe section `where`, for a warm-up that is longer than a training of `steps`.

    Such a training would end before it reaches its learning rate. A warmup_stable_decay's decay needs room too.
    """
    kind = arguments.lr_scheduler_type
    if kind in KINDS_WITHOUT_WARMUP:
        return

    warmup_steps = arguments.get_warmup_steps(steps)
    if warmup_steps > steps:
        raise UserError(
            f"{where}.training.warmup_steps: the learning rate warms up for {warmup_steps:,} steps, and the training "
            f"has {steps:,}; set warmup_steps to a share of it (0.05) or to fewer steps, or train longer"
        )

    decay_steps = (arguments.lr_scheduler_kwargs or {}).get("num_decay_steps", 0)
    if kind == SchedulerType.WARMUP_STABLE_DECAY and warmup_steps + decay_steps > steps:
        raise UserError(
            f"{where}.training.lr_scheduler_kwargs.num_decay_steps: {decay_steps:,} steps of decay after "
            f"{warmup_steps:,} of warm-up are more than the {steps:,} steps of the training; make one of them shorter"
        )


class ScheduleCheck(TrainerCallback):
    """Refuse a schedule that does not fit before the first step, once the epochs' steps are counted."""

    def __init__(self, section: str):
        self.section = section  # of the recipe, for errors

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        check_schedule_fits(args, state.max_steps, self.section)


def check_schedule(arguments: TrainingArguments, where: str) -> None:
    """Complete the schedule's settings in place, except for a decay that depends on a number of steps not known yet.

    Raises UserError, naming the recipe section `where`, for settings that the schedule does not take.
    """
    kind = arguments.lr_scheduler_type
    key = f"{where}.training.lr_scheduler_kwargs"
    scheduler_kwargs = complete_scheduler_kwargs(arguments, arguments.max_steps)

    # Only building a schedule tells whether it takes its settings; an optimizer of one number is enough for that.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    try:
        get_scheduler(kind, optimizer, 0, 100, scheduler_specific_kwargs=scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from None

    steps_are_unknown = arguments.max_steps <= 0
    if steps_are_unknown and kind == SchedulerType.WARMUP_STABLE_DECAY:
        # Pretraining completes the settings again once it knows the steps (PretrainingTrainer.create_scheduler).
        if where != "pretrain" and "num_decay_steps" not in (arguments.lr_scheduler_kwargs or {}):
            raise UserError(f"{key}: {kind} needs num_decay_steps, or training.max_steps, of which it takes a fifth")
        return
    arguments.lr_scheduler_kwargs = scheduler_kwargs or arguments.lr_scheduler_kwargs
