"""The training stages of a recipe, planned: tokens, hours, memory, disk, energy and money of each."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_llm.planning.devices import Device
from hf_llm.planning.memory import OPTIMIZER, UPDATE
from hf_llm.planning.money import Cost, checkpoint_bytes, cost, disk_bytes
from hf_llm.planning.prospect import Job, Row, peak_of_tuning, sizes

# Stages that learn from rows, and how many texts a row holds. Those that sample their answers are left out: how long
# the answers will be, nobody knows before.
TEXTS = {"sft": 1, "reward": 2, "dpo": 2, "kto": 1}
REFERENCE = ("dpo", "kto")  # which go forward once more, through the model as it was


@dataclass(frozen=True)
class Prospect:
    """One stage. `tokens` and what follows from them are None where only the data will tell, and the most where rows
    may be shorter than the context."""

    folder: str
    steps: int | None
    tokens: int | None
    at_most: bool
    hours: float | None
    disk: int | None
    cost: Cost | None
    memory: int  # bytes of one device; what the loss of pairs holds beside the model is not in it


def pretraining(
    section: Any, config: PreTrainedConfig, row: Row, rate: float, devices: int, device: Device, prices: dict
) -> Prospect:
    """Of the `pretrain` section, at `rate` tokens per second, evaluations and all."""
    training = section.training
    steps = training.get("max_steps")
    if not steps or steps < 0:
        return Prospect("base", None, None, False, None, None, None, row.footprint.peak)
    tokens, hours = steps * section.tokens_per_step, tokens_worked(section, steps) / rate / 3600
    disk = _disk(config, None, row, training)
    return Prospect(
        "base", steps, tokens, False, hours, disk, cost(hours, devices, device, **prices), row.footprint.peak
    )


def tokens_worked(section: Any, steps: int) -> float:
    """Tokens that `steps` of the `pretrain` section cost the time of, evaluations and all."""
    training = section.training
    evaluations = steps // training.get("eval_steps", training.get("logging_steps", 10)) + 1
    # A forward pass is a third of the arithmetic.
    return steps * section.tokens_per_step + evaluations * section.evaluation_tokens / 3


def tuning(
    folder: str,
    section: dict[str, Any],
    config: PreTrainedConfig,
    row: Row,
    rate: float,
    devices: int,
    device: Device,
    prices: dict,
    memory: int,
) -> Prospect:
    """Of a section that tunes on rows; `rate` is pretraining's, and every row is taken to fill the context. `memory` is
    what `tuning_memory` says."""
    training = section.get("training") or {}
    length = training.get("max_length") or config.max_position_embeddings
    micro = training.get("per_device_train_batch_size", 8)
    batch = micro * training.get("gradient_accumulation_steps", 1) * devices
    steps = training.get("max_steps") or _steps(section, training, batch)
    if not steps or steps < 0:
        return Prospect(folder, None, None, False, None, None, None, memory)
    tokens = steps * batch * length * TEXTS[folder]
    hours = tokens * passes(folder, section.get("lora") is not None) / rate / 3600
    disk = _disk(config, section.get("lora"), row, training)
    return Prospect(folder, steps, tokens, True, hours, disk, cost(hours, devices, device, **prices), memory)


def tuning_memory(folder: str, section: dict[str, Any], config: PreTrainedConfig, device: Device, bf16: bool) -> int:
    """Bytes that a step of a section that tunes takes on one device.

    On a CPU to be asked for before anything is timed there: real training leaves holes in this process's heap.
    """
    training = section.get("training") or {}
    length = training.get("max_length") or config.max_position_embeddings
    windows = training.get("per_device_train_batch_size", 8) * TEXTS[folder]
    step = windows * training.get("gradient_accumulation_steps", 1)
    return peak_of_tuning(Job(config, length, step, training, bf16, section.get("lora")), windows, device)


def passes(folder: str, lora: bool) -> float:
    """Arithmetic of a token against pretraining's: forward, back through the activations and to the weights are a third
    each; frozen weights need no gradient, and a reference goes forward once more."""
    return (2 / 3 if lora else 1) + (1 / 3 if folder in REFERENCE else 0)


def _steps(section: dict[str, Any], training: dict[str, Any], batch: int) -> int | None:
    rows = [source.get("take") for source in section.get("data") or []]
    if not rows or not all(rows):
        return None
    kept = sum(rows) * (1 - section.get("evaluation_share", 0.05))
    return math.ceil(kept / batch * training.get("num_train_epochs", 3))


def _disk(config: PreTrainedConfig, lora: dict | None, row: Row, training: dict[str, Any]) -> int:
    amount = sizes(config, lora)
    weights = 4 * (amount.trained + amount.frozen)
    states = row.footprint.phases[UPDATE].get(OPTIMIZER, 0) if lora is None else 8 * amount.trained
    checkpoint = checkpoint_bytes(weights, amount.trained, lora is not None, states, row.engine.startswith("ZeRO"))
    return disk_bytes(checkpoint, training.get("save_total_limit") or 0, weights)
