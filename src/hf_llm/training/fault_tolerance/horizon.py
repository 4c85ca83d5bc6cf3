"""Continue a training for another number of steps than it was planned for.

Nothing but the learning rate depends on that number. So a training may be continued wherever all steps that it has made
had the rate that a longer training would have given them: with a constant rate always, with warmup_stable_decay up to
the decay. Otherwise the recipe has to say that it wants the schedule of the new length from here on (`extend`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer import TRAINER_STATE_NAME

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.training.fault_tolerance.checkpoints import checkpoint_step, complete_checkpoints, verify_checkpoint

SCHEDULE_KEY = "schedule"  # of a checkpoint's manifest
MIN_LR_RATE = 0.1  # a cosine with a minimum ends at this share of the peak learning rate
DECAY_SHARE = 0.2  # warmup_stable_decay decays in this share of the steps (https://arxiv.org/abs/2405.18392)
KINDS_WITH_MINIMUM = (SchedulerType.COSINE_WITH_MIN_LR, SchedulerType.COSINE_WARMUP_WITH_MIN_LR)
RELATIVE_TOLERANCE = 1e-6  # between two learning rates that count as equal

# A schedule, as a checkpoint's manifest holds it: kind, steps, warmup (steps), learning_rate and settings.
Schedule = dict[str, Any]


def complete_scheduler_kwargs(arguments: TrainingArguments, steps: int) -> dict[str, Any]:
    """Return `arguments.lr_scheduler_kwargs` for a training of `steps`, with what Trainer has no default for."""
    kind = arguments.lr_scheduler_type
    scheduler_kwargs = dict(arguments.lr_scheduler_kwargs or {})
    if kind in KINDS_WITH_MINIMUM and not scheduler_kwargs.keys() & {"min_lr", "min_lr_rate"}:
        scheduler_kwargs["min_lr_rate"] = MIN_LR_RATE
    if kind == SchedulerType.WARMUP_STABLE_DECAY:
        scheduler_kwargs.setdefault("num_decay_steps", round(DECAY_SHARE * steps))
    return scheduler_kwargs


def read_schedule(arguments: TrainingArguments, steps: int) -> Schedule:
    """Return the schedule of a training of `steps`."""
    return {
        "kind": SchedulerType(arguments.lr_scheduler_type).value,
        "steps": steps,
        "warmup": arguments.get_warmup_steps(steps),
        "learning_rate": arguments.learning_rate,
        "settings": complete_scheduler_kwargs(arguments, steps),
    }


def saved_schedule(checkpoint: Path, arguments: TrainingArguments) -> Schedule:
    """Return the schedule that a checkpoint was trained with.

    A checkpoint of an older version records its number of steps alone; the rest is what `arguments` say.
    """
    recorded = read_manifest(checkpoint).get(SCHEDULE_KEY)
    if recorded:
        return recorded
    steps = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).max_steps
    schedule = read_schedule(arguments, steps)
    default_decay = round(DECAY_SHARE * arguments.max_steps)
    if schedule["settings"].get("num_decay_steps") == default_decay:  # filled in for the new length
        schedule["settings"]["num_decay_steps"] = round(DECAY_SHARE * steps)
    return schedule


def rate_function(schedule: Schedule) -> Callable[[int], float] | None:
    """Return the learning rate by the number of steps made before; None where it does not depend on that alone."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=schedule["learning_rate"])
    scheduler = get_scheduler(
        schedule["kind"],
        optimizer,
        schedule["warmup"],
        schedule["steps"],
        scheduler_specific_kwargs=dict(schedule["settings"]),
    )
    factors = getattr(scheduler, "lr_lambdas", None)
    if not factors:
        return None
    return lambda step: schedule["learning_rate"] * factors[0](step)


def first_difference(old: Schedule, new: Schedule, steps: int) -> int | None:
    """Return the first of `steps` steps, counted from 1, to which two schedules give different rates; None if none."""
    old_rate = rate_function(old)
    new_rate = rate_function(new)
    if old_rate is None or new_rate is None:
        return None
    for step in range(steps):
        before = old_rate(step)
        after = new_rate(step)
        if abs(before - after) > RELATIVE_TOLERANCE * max(abs(before), abs(after)):
            return step + 1
    return None


def decay_start(arguments: TrainingArguments, steps: int) -> int | None:
    """Return the steps before the decay of a warmup_stable_decay schedule; None for any other schedule."""
    if arguments.lr_scheduler_type != SchedulerType.WARMUP_STABLE_DECAY:
        return None
    settings = complete_scheduler_kwargs(arguments, steps)
    if settings.get("num_stable_steps") is not None:
        return arguments.get_warmup_steps(steps) + settings["num_stable_steps"]
    return steps - settings["num_decay_steps"]


def find_continued_checkpoint(folder: Path, newest: Path, arguments: TrainingArguments) -> Path:
    """Return the newest valid checkpoint up to which a training of `arguments.max_steps` had the same learning rate.

    Returns `newest` where there is none, or where the number of steps is not known before the data is.
    """
    if arguments.max_steps <= 0 or saved_schedule(newest, arguments)["steps"] == arguments.max_steps:
        return newest

    for checkpoint in reversed(complete_checkpoints(folder)):
        step = checkpoint_step(checkpoint)
        if step > checkpoint_step(newest) or verify_checkpoint(checkpoint) is not None:
            continue
        old = saved_schedule(checkpoint, arguments)
        new = {**read_schedule(arguments, arguments.max_steps), "warmup": old["warmup"]}
        if first_difference(old, new, step) is None:
            return checkpoint
    return newest


def check_horizon(checkpoint: Path, arguments: TrainingArguments, steps: int, extend: bool, section: str) -> None:
    """Print what a training of `steps` in all means for one that was planned for another number, if it was.

    Raises UserError where that many have been made already, or where the schedule of a training of `steps` would have
    given other learning rates, unless the recipe's `section` says that it shall be followed from here on (`extend`).
    """
    old = saved_schedule(checkpoint, arguments)
    new = {**read_schedule(arguments, steps), "warmup": old["warmup"]}
    if old["steps"] == steps:
        return

    done = checkpoint_step(checkpoint)
    if steps < done:
        raise UserError(
            f"{section}.training: {steps:,} steps in all, and {checkpoint} has made {done:,} already; ask for more, or "
            "train under another name"
        )

    change = f"{steps:,} steps instead of {old['steps']:,}, {done:,} of them made"
    different_step = first_difference(old, new, done)
    rate = rate_function(new)
    if different_step is None:
        shown_rate = f", {rate(done):.3g} in the next step" if rate else ""
        print_main(f"trained for {change}; {new['kind']} learning rate as before{shown_rate}")
        return

    before = rate_function(old)
    comparison = (
        f"a {new['kind']} schedule for {steps:,} steps has another learning rate from step {different_step:,} on; at "
        f"step {done:,} it was {before(done - 1):.3g}, and would be {rate(done - 1):.3g}"
    )
    if not extend:
        raise UserError(
            f"{section}.training: {change}: {comparison}.\n"
            f"  To follow the new schedule from here on, add --{section}.extend=true; otherwise undo the change, or "
            "train under another name. A constant rate, or warmup_stable_decay before its decay, needs no such word."
        )
    print_main(f"trained for {change}, as {section}.extend asks: {comparison}, which it continues with")
