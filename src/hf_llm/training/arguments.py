"""Turn a recipe's `training` section into `TrainingArguments` (or a TRL config) that suit this host.

The recipe uses the library's own key names. Settings that it leaves out are chosen here: precision and kernels for the
device, defaults that suit pretraining better than Trainer's, and micro-batch and accumulation for `tokens_per_step`.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from transformers import IntervalStrategy, TrainingArguments

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.distributed import init_cpu_process_group
from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings
from hf_llm.hardware.runtime import (
    choose_precision,
    device_type,
    has_bf16,
    is_launched_in_fp8,
    keep_freed_memory,
    use_all_cores,
)
from hf_llm.parallel.layout import check_layout, enable_cpu_sharding, read_layout
from hf_llm.training.fault_tolerance.auto_batch_size import check_auto_batch_size
from hf_llm.training.hub_upload import create_repository
from hf_llm.training.optimizers import build_arguments, check_optimizer
from hf_llm.training.schedules import check_schedule, check_schedule_fits

Arguments = TypeVar("Arguments", bound=TrainingArguments)

# Tokens of one forward and backward pass where the recipe names no micro-batch. On a CPU more is no faster.
MICRO_BATCH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}

BY_EPOCHS = -1  # Trainer's default of max_steps: num_train_epochs decides
# Share of the arithmetic of training that evaluations may take where the recipe does not say how often to evaluate.
MAX_EVALUATION_SHARE = 0.05

# The keys of a DeepSpeed JSON that a recipe decides; a number there would disagree with it sooner or later.
DEEPSPEED_KEYS_OF_RECIPE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def build_training_arguments(
    cls: type[Arguments],
    settings: Settings,
    folder: Path,
    seed: int,
    where: str,
    prefers_bf16: bool | None = None,
    **defaults: Any,
) -> Arguments:
    """Build `cls` from the checked `settings` of the recipe section `where`, writing to `folder`.

    `prefers_bf16` is what was chosen by a measurement (`hf_llm.training.step_choice`); None: bf16 where there are units
    for it. `defaults` are the stage's own. Those of the recipe win. Raises UserError where values contradict each
    other.
    """
    device = device_type()
    if settings.get("use_cpu") or device == "cpu":
        device = "cpu"
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        use_all_cores()
        keep_freed_memory()

    refuse_hub_token(settings, where)
    check_training_length(settings, where)
    if settings.get("max_steps", BY_EPOCHS) != BY_EPOCHS and "num_train_epochs" in settings:
        print_main(f"{where}.training: max_steps {settings['max_steps']} decides, num_train_epochs is not read")
    check_auto_batch_size(settings, where)

    values = {
        "output_dir": str(folder),
        "seed": seed,
        "use_cpu": device == "cpu",
        "logging_steps": 10,
        "save_steps": 500,
        "prediction_loss_only": True,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device == "cuda",
        "dataloader_num_workers": 2 if device == "cuda" else 0,
        "activation_checkpointing": settings.get("gradient_checkpointing", False),
        **defaults,
        **settings,
        **choose_precision(settings, has_bf16(device) if prefers_bf16 is None else prefers_bf16),
    }
    if values.get("load_best_model_at_end") and not values.get("eval_steps"):
        values["eval_steps"] = values["save_steps"]  # Trainer asks for an evaluation with every save
    check_half_precision(values, where)
    check_deepspeed_config(where)
    check_layout(read_layout(), where, device)
    if values.get("save_total_limit") in (0, 1):
        raise UserError(
            f"{where}.training.save_total_limit: {values['save_total_limit']} is too few; keep at least 2, so that a "
            "checkpoint cut off while it is written leaves another to resume from"
        )

    # Before the arguments are built, since building them joins the processes of a launch.
    if device == "cpu":
        init_cpu_process_group(values.get("ddp_timeout", cls.ddp_timeout))
    try:
        arguments = build_arguments(cls, values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{where}.training: {error}") from None

    check_optimizer(arguments, where)
    check_schedule(arguments, where)
    if arguments.max_steps > 0:  # otherwise ScheduleCheck does once the steps are counted
        check_schedule_fits(arguments, arguments.max_steps, where)
    enable_cpu_sharding(arguments)
    if arguments.push_to_hub and is_main_process():
        create_repository(arguments, where)
    return arguments


def check_training_length(settings: Settings, where: str) -> None:
    """Raise UserError for a number of steps or epochs that trains nothing, which Trainer would take for another one."""
    max_steps = settings.get("max_steps", BY_EPOCHS)
    if max_steps != BY_EPOCHS and max_steps < 1:
        raise UserError(
            f"{where}.training.max_steps: {max_steps} trains nothing; write 1 or more, or leave it out and write "
            "num_train_epochs"
        )
    epochs = settings.get("num_train_epochs")
    if max_steps == BY_EPOCHS and epochs is not None and not 0 < epochs < math.inf:
        raise UserError(f"{where}.training.num_train_epochs: {epochs} trains nothing; write a number above 0")


def choose_evaluation_interval(
    arguments: TrainingArguments, settings: Settings, evaluation_size: int, step_size: int
) -> None:
    """Set `arguments.eval_steps` where the recipe's `settings` leave it out, and print it.

    Trainer would evaluate with every log entry. Here evaluations take at most MAX_EVALUATION_SHARE of the arithmetic of
    the steps, a forward pass being a third of a step's. Sizes are in tokens, or both in rows.
    """
    if arguments.eval_strategy != IntervalStrategy.STEPS or settings.get("eval_steps"):
        return

    interval = evaluation_interval(evaluation_size, step_size)
    if arguments.logging_steps > interval:
        interval = int(arguments.logging_steps)
    if arguments.load_best_model_at_end and arguments.save_steps >= 1:
        # The best step must have been saved: evaluate with the saves, or that many times between them.
        save_steps = int(arguments.save_steps)
        divisors = [steps for steps in range(1, save_steps + 1) if save_steps % steps == 0]
        interval = min((steps for steps in divisors if steps >= interval), default=save_steps)

    arguments.eval_steps = interval
    print_main(
        f"evaluating every {interval:,} steps, so that it takes at most {MAX_EVALUATION_SHARE:.0%} of the arithmetic; "
        "training.eval_steps says otherwise"
    )


def evaluation_interval(evaluation_size: int, step_size: int) -> int:
    """Return after how many steps of `step_size` an evaluation of `evaluation_size` is due (tokens, or both rows)."""
    return max(1, math.ceil(evaluation_size / 3 / (MAX_EVALUATION_SHARE * step_size)))


def describe_short_steps(windows: int, context: int, tokens_per_step: int, max_steps: int) -> str:
    """Return a sentence on the steps that take fewer tokens than `tokens_per_step`; "" where there are none.

    Those are the last steps of the passes over the training split, which has `windows` of `context` tokens. `max_steps`
    is that of TrainingArguments.
    """
    windows_per_step = tokens_per_step // context
    rest = windows % windows_per_step
    if not rest:
        return ""

    tokens = windows * context
    if windows < windows_per_step:
        return (
            f"pretrain.tokens_per_step is {tokens_per_step:,}, but the training split has {tokens:,} tokens in "
            f"{windows:,} windows of {context:,}: each step takes all of them and no more. Lower tokens_per_step, or "
            "add text"
        )
    ends_within_epoch = 0 < max_steps <= windows // windows_per_step
    if ends_within_epoch:
        return ""
    return (
        f"the last step of each pass over the training split takes {rest * context:,} tokens instead of "
        f"{tokens_per_step:,}: its {tokens:,} tokens are {windows / windows_per_step:,.2f} steps"
    )


def refuse_hub_token(settings: Settings, where: str) -> None:
    """Raise UserError for a token in a recipe, which is copied into every output and model card."""
    if settings.get("hub_token"):
        raise UserError(
            f"{where}.training.hub_token: a recipe is saved with every output and uploaded; take the token out, and "
            "log in with `hf auth login` or set HF_TOKEN instead"
        )


def check_half_precision(values: dict[str, Any], where: str) -> None:
    """Raise UserError where a launch asks for fp8 and the recipe for bf16 or fp16."""
    if not is_launched_in_fp8():
        return
    for key in ("bf16", "fp16"):
        if values.get(key):
            raise UserError(
                f"{where}.training.{key}: the launch asks for fp8, and Trainer would forget that; leave it out"
            )


def split_batch(
    tokens_per_step: int,
    context: int,
    settings: Settings,
    where: str,
    updates: int = 1,
    micro_batch: int | None = None,
) -> dict[str, int]:
    """Split `tokens_per_step` into micro-batch x accumulation x processes of windows of `context` tokens.

    The micro-batch is `per_device_train_batch_size` where the recipe gives it, otherwise `micro_batch` (one of
    `list_micro_batches`), otherwise the largest of at most `MICRO_BATCH_TOKENS` with which a step has a micro-batch for
    every pipeline stage. The accumulation is divisible by
    `updates`, the largest number of optimizer updates in a step. Processes that share their batches (tensor, context,
    sequence, pipeline parallelism) count as one.

    Returns the arguments of TrainingArguments. Raises UserError, with the nearest values that work, where the step
    cannot be split evenly.
    """
    if "gradient_accumulation_steps" in settings:
        raise UserError(
            f"{where}.training.gradient_accumulation_steps: leave it out; it follows from {where}.tokens_per_step = "
            f"{tokens_per_step:,}, so that a step means the same on every machine"
        )

    layout = read_layout()
    processes = layout.data
    least_micro_batch = settings.get("per_device_train_batch_size", 1)

    unit = context * processes * least_micro_batch
    unit_text = f"{context} tokens of context x {least_micro_batch} windows x {processes} processes"
    if tokens_per_step % unit:
        below = tokens_per_step // unit * unit
        nearest = [str(value) for value in (below, below + unit) if value]
        raise UserError(
            f"{where}.tokens_per_step: {tokens_per_step} is not a multiple of {unit} ({unit_text}); try "
            f"{' or '.join(nearest)}"
        )

    windows = tokens_per_step // (context * processes)
    if windows % (updates * least_micro_batch):
        raise UserError(
            f"{where}.batch_warmup.start: {tokens_per_step // updates} tokens are too few for an update of {unit} "
            f"({unit_text}); start with more"
        )

    if "per_device_train_batch_size" in settings:
        micro_batch = settings["per_device_train_batch_size"]
    elif micro_batch is None:
        limit = min(MICRO_BATCH_TOKENS[device_type()] // context, windows // layout.pipeline)
        sizes = range(1, max(1, limit) + 1)
        micro_batch = max(size for size in sizes if windows % (updates * size) == 0)

    accumulation = windows // micro_batch
    if accumulation < layout.pipeline:
        raise UserError(
            f"{where}.tokens_per_step: {tokens_per_step} is {accumulation} micro-batches of {micro_batch} windows for "
            f"a pipeline of {layout.pipeline} stages; it needs as many micro-batches as stages"
        )
    return {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "per_device_eval_batch_size": micro_batch,
    }


def list_micro_batches(split: dict[str, int], settings: Settings, updates: int = 1) -> list[int]:
    """List the micro-batches with which the step that `split_batch` has split is the same: half to four times its own.

    Empty where the recipe gives the micro-batch. `updates` is as for `split_batch`.
    """
    if "per_device_train_batch_size" in settings:
        return []
    own = split["per_device_train_batch_size"]
    windows = own * split["gradient_accumulation_steps"]
    sizes = []
    for size in (own // 2, 2 * own, 4 * own):
        if size and windows % (updates * size) == 0 and windows // size >= read_layout().pipeline:
            sizes.append(size)
    return sizes


def check_deepspeed_config(where: str) -> None:
    """Raise UserError where the DeepSpeed JSON of `accelerate launch` fixes what the recipe section `where` decides."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not path or path == "none":
        return

    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a DeepSpeed config: {error}") from None

    fixed_keys = [key for key in DEEPSPEED_KEYS_OF_RECIPE if config.get(key, "auto") != "auto"]
    fixed_keys += [key for key in ("optimizer", "scheduler") if key in config]
    if fixed_keys:
        key = fixed_keys[0]
        raise UserError(
            f'{path}: {key} is {config[key]!r}; write "auto" or leave it out, the recipe\'s {where} section decides it'
        )
