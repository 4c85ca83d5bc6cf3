"""A recipe's `training` section as a `TrainingArguments` (or TRL config) that fits this machine.

The recipe uses the library's own key names. What it leaves out, or calls `auto`, is chosen here: precision and kernels
for the device, defaults that suit pretraining better than Trainer's, and the batch that makes `tokens_per_step`.
"""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainingArguments

from hf_llm.core.console import is_main_process
from hf_llm.core.distributed import meet
from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings
from hf_llm.hardware.runtime import device_type, has_bf16, keep_freed_memory, launched_in_fp8, precision, use_all_cores
from hf_llm.parallel.layout import check_layout, launched_layout, let_cpus_shard
from hf_llm.training.auto_batch_size import check_fitting
from hf_llm.training.hub_upload import create_repository
from hf_llm.training.optimizers import arguments_of, check_optimizer
from hf_llm.training.schedules import check_schedule

Arguments = TypeVar("Arguments", bound=TrainingArguments)

# Tokens of one forward and backward pass where the recipe names no micro-batch. On a CPU more gains nothing.
MICRO_BATCH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}


def training_arguments(
    cls: type[Arguments], settings: Settings, folder: Path, seed: int, where: str, **defaults: Any
) -> Arguments:
    """Build `cls` from the checked `settings` of the recipe section `where`, writing to `folder`.

    `defaults` are the stage's own and yield to the recipe. Raises UserError where the values do not go together.
    """
    device = device_type()
    if settings.get("use_cpu") or device == "cpu":
        device = "cpu"
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        use_all_cores()
        keep_freed_memory()
    refuse_secrets(settings, where)
    check_fitting(settings, where)
    chosen = {
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
        **precision(settings, has_bf16(device)),
    }
    if launched_in_fp8() and (chosen.get("bf16") or chosen.get("fp16")):
        raise UserError(
            f"{where}.training.{'bf16' if chosen.get('bf16') else 'fp16'}: the launch asks for fp8, and Trainer would "
            "forget that; leave it out"
        )
    check_deepspeed_config(where)
    check_layout(launched_layout(), where, device)
    if chosen.get("save_total_limit") in (0, 1):
        raise UserError(
            f"{where}.training.save_total_limit: {chosen['save_total_limit']} is too few; keep at least 2, so that a "
            "checkpoint cut off while it is written leaves another to go on from"
        )
    if device == "cpu":
        meet(chosen.get("ddp_timeout", cls.ddp_timeout))
    try:
        arguments = arguments_of(cls, chosen)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{where}.training: {error}") from None
    check_optimizer(arguments, where)
    check_schedule(arguments, where)
    let_cpus_shard(arguments)
    if arguments.push_to_hub and is_main_process():
        create_repository(arguments, where)
    return arguments


def refuse_secrets(settings: Settings, where: str) -> None:
    """A recipe is copied into every output and model card, so a token has no place in it."""
    if settings.get("hub_token"):
        raise UserError(
            f"{where}.training.hub_token: a recipe is saved with every output and uploaded; take the token out, and "
            "log in with `hf auth login` or set HF_TOKEN instead"
        )


def batch(tokens_per_step: int, context: int, settings: Settings, where: str, updates: int = 1) -> dict[str, int]:
    """Split `tokens_per_step` into micro-batch x accumulation x processes of windows of `context` tokens.

    The accumulation divides by `updates`, the most optimizer updates that one step will be made of.

    Processes that share their batches (tensor, context, sequence, pipeline parallelism) count as one. Takes
    `per_device_train_batch_size` from the recipe where given, else the largest that fits `MICRO_BATCH_TOKENS` and gives
    every stage of a pipeline its micro-batch.
    Raises UserError, with the nearest values that work, where it cannot be split evenly.
    """
    layout = launched_layout()
    processes = layout.data
    if "gradient_accumulation_steps" in settings:
        raise UserError(
            f"{where}.training.gradient_accumulation_steps: leave it out; it follows from {where}.tokens_per_step = "
            f"{tokens_per_step:,}, so that a step means the same on every machine"
        )
    unit = context * processes * settings.get("per_device_train_batch_size", 1)
    if tokens_per_step % unit:
        below, above = tokens_per_step // unit * unit, -(-tokens_per_step // unit) * unit
        near = " or ".join(f"{value}" for value in (below, above) if value)
        raise UserError(
            f"{where}.tokens_per_step: {tokens_per_step} is no multiple of {unit} ({context} tokens of context x "
            f"{settings.get('per_device_train_batch_size', 1)} windows x {processes} processes); try {near}"
        )
    windows = tokens_per_step // (context * processes)
    most = max(1, min(MICRO_BATCH_TOKENS[device_type()] // context, windows // layout.pipeline))
    given = settings.get("per_device_train_batch_size")
    if windows % (updates * (given or 1)):
        raise UserError(
            f"{where}.batch_warmup.start: {tokens_per_step // updates} tokens are too few for an update of {unit} "
            f"({context} tokens of context x {given or 1} windows x {processes} processes); start with more"
        )
    micro = given or max(n for n in range(1, most + 1) if windows % (updates * n) == 0)
    if windows // micro < layout.pipeline:
        raise UserError(
            f"{where}.tokens_per_step: {tokens_per_step} is {windows // micro} micro-batches of {micro} windows for a "
            f"pipeline of {layout.pipeline} stages; it needs as many micro-batches as stages"
        )
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": windows // micro,
        "per_device_eval_batch_size": micro,
    }


# The keys of a DeepSpeed file that a recipe decides; a number there would disagree with it sooner or later.
SHARED_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def check_deepspeed_config(where: str) -> None:
    """Refuse a DeepSpeed JSON (of `accelerate launch`) that fixes what the recipe says."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not path or path == "none":
        return
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable DeepSpeed config: {error}") from None
    fixed = [key for key in SHARED_KEYS if config.get(key, "auto") != "auto"]
    fixed += [key for key in ("optimizer", "scheduler") if key in config]
    if fixed:
        raise UserError(
            f'{path}: {fixed[0]} is {config[fixed[0]]!r}; write "auto" or leave it out, '
            f"the recipe's {where} section decides it"
        )
