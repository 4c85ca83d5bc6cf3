"""What a learning-rate schedule of Trainer's is given beyond the recipe: where its decay begins, how far it goes."""

from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.data.tokens.token_dataset import TokenWindows


def with_decay(settings: dict[str, Any], windows: TokenWindows, windows_per_step: int) -> dict[str, Any]:
    """`settings` of TrainingArguments; the decay of a warmup_stable_decay schedule, where they leave it open, lasts as
    long as the curriculum's last stage. Raises UserError where training ends before that stage, and says where it goes
    on after it."""
    once, given = -(-len(windows) // windows_per_step), settings.get("lr_scheduler_kwargs") or {}
    steps = settings["max_steps"] if settings.get("max_steps", 0) > 0 else once
    last = decay_steps(windows, windows_per_step, steps)
    if last is None:
        return settings
    if steps > once:
        print_main(
            f"corpus.curriculum: its stages end after {once:,} of {steps:,} steps, and begin again with the first. "
            f"With --pretrain.training.max_steps={once} training ends with the last stage"
        )
    if settings.get("lr_scheduler_type") != "warmup_stable_decay" or "num_decay_steps" in given:
        return settings
    return {**settings, "lr_scheduler_kwargs": {**given, "num_decay_steps": last}}


def decay_steps(windows: TokenWindows, windows_per_step: int, max_steps: int) -> int | None:
    """The steps from the beginning of the curriculum's last stage to the end of training; None without a curriculum.

    They are the decay of a warmup_stable_decay schedule, which so falls on the data that the last stage chose. Raises
    UserError where training ends before that stage.
    """
    if not windows.in_stages:
        return None
    first = -(-windows.last_stage // windows_per_step)
    if first >= max_steps:
        seen = max_steps * windows_per_step * windows.length
        raise UserError(
            f"pretrain.training.max_steps: {max_steps} steps are {seen:,} tokens, and the last stage of "
            f"corpus.curriculum begins after {windows.last_stage * windows.length:,}; set corpus.max_tokens={seen}, so "
            "that the stages share what training sees"
        )
    return max_steps - first


LOWEST = 0.1  # of the peak, where a cosine ends
DECAY = 0.2  # of the steps, in which warmup_stable_decay goes down (https://arxiv.org/abs/2405.18392)
TO_LOWEST = (SchedulerType.COSINE_WITH_MIN_LR, SchedulerType.COSINE_WARMUP_WITH_MIN_LR)


def schedule_settings(arguments: TrainingArguments, steps: int) -> dict[str, Any]:
    """`arguments.lr_scheduler_kwargs` for a training of `steps`, with what Trainer has no default for."""
    settings, kind = dict(arguments.lr_scheduler_kwargs or {}), arguments.lr_scheduler_type
    if kind in TO_LOWEST and not settings.keys() & {"min_lr", "min_lr_rate"}:
        settings["min_lr_rate"] = LOWEST
    if kind == SchedulerType.WARMUP_STABLE_DECAY:
        settings.setdefault("num_decay_steps", round(DECAY * steps))
    return settings


def check_schedule(arguments: TrainingArguments, where: str) -> None:
    """Complete the schedule's settings, but for a decay that depends on a number of steps not known yet.

    Raises UserError where the schedule does not take them.
    """
    kind, key = arguments.lr_scheduler_type, f"{where}.training.lr_scheduler_kwargs"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    settings = schedule_settings(arguments, arguments.max_steps)
    try:
        get_scheduler(kind, optimizer, 0, 100, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from None
    if arguments.max_steps <= 0 and kind == SchedulerType.WARMUP_STABLE_DECAY:
        if where != "pretrain" and "num_decay_steps" not in (arguments.lr_scheduler_kwargs or {}):
            raise UserError(f"{key}: {kind} needs num_decay_steps, or training.max_steps, of which it takes a fifth")
        return
    arguments.lr_scheduler_kwargs = settings or arguments.lr_scheduler_kwargs
