"""The training stages of a recipe, planned: tokens, hours, memory, disk, energy and money of each."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_llm.hardware.devices import Device
from hf_llm.hardware.runtime import autocast_type
from hf_llm.pipeline.stages import STAGES
from hf_llm.planning.cost import Cost, cost, disk_bytes
from hf_llm.planning.memory_estimate import Job, peak_of_tuning, sizes
from hf_llm.training.fault_tolerance.checkpoints import checkpoint_bytes

# Stages that can be planned from rows. Those that sample their completions are not: their length is not known before.
PLANNED_FROM_ROWS = tuple(stage.folder for stage in STAGES.values() if stage.texts_per_row)
ENGINES = {"ZeRO": "deepspeed", "FSDP": "fsdp"}  # by the first letters of an engine's name


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


@dataclass(frozen=True)
class Place:
    """Where the stages run: `devices` with one of `hf_llm.planning.sharded_memory.engines`, at pretraining's `rate` in
    tokens
    per second. `bf16` is whether the devices have units for it, `prices` are `cost`'s."""

    config: PreTrainedConfig
    engine: str
    rate: float
    devices: int
    device: Device
    bf16: bool
    prices: dict[str, float | None]


def pretraining(section: Any, memory: int, states: int, place: Place) -> Prospect:
    """Of the `pretrain` section, evaluations and all. `memory` is one device's, `states` are the bytes of the
    optimizer's on all of them together."""
    steps = section.training.get("max_steps")
    if not steps or steps < 0:
        return Prospect("base", None, None, False, None, None, None, memory)
    hours = tokens_worked(section, steps) / place.rate / 3600
    disk = _disk(place, None, states, section.training)
    spent = cost(hours, place.devices, place.device, **place.prices)
    return Prospect("base", steps, steps * section.tokens_per_step, False, hours, disk, spent, memory)


def tokens_worked(section: Any, steps: int) -> float:
    """Tokens that `steps` of the `pretrain` section cost the time of, evaluations and all."""
    # A forward pass is a third of the arithmetic.
    return steps * section.tokens_per_step + evaluations(section.training, steps) * section.evaluation_tokens / 3


def evaluations(training: dict[str, Any], steps: int) -> int:
    """How often a pretraining of `steps` evaluates: by Trainer's keys, and once at its end."""
    if str(training.get("eval_strategy", "steps")) != "steps":
        return 1
    every = training.get("eval_steps") or training.get("logging_steps") or 10
    return math.ceil(steps / (math.ceil(steps * every) if every < 1 else every))


def tuning(folder: str, section: dict[str, Any], memory: int, place: Place) -> Prospect:
    """Of a section that tunes on rows, every one of which is taken to fill the context. `memory` is what
    `tuning_memory` says."""
    training, lora = section.get("training") or {}, section.get("lora")
    length = training.get("max_length") or place.config.max_position_embeddings
    micro = training.get("per_device_train_batch_size", 8)
    batch = micro * training.get("gradient_accumulation_steps", 1) * place.devices
    steps = training.get("max_steps") or _steps(section, training, batch)
    if not steps or steps < 0:
        return Prospect(folder, None, None, False, None, None, None, memory)
    tokens = steps * batch * length * STAGES[folder].texts_per_row
    hours = tokens * passes(folder, lora is not None) / place.rate / 3600
    disk = _disk(place, lora, 8 * sizes(place.config, lora).trained, training)
    spent = cost(hours, place.devices, place.device, **place.prices)
    return Prospect(folder, steps, tokens, True, hours, disk, spent, memory)


def tuning_memory(folder: str, section: dict[str, Any], config: PreTrainedConfig, device: Device, bf16: bool) -> int:
    """Bytes that a step of a section that tunes takes on one device.

    On a CPU to be asked for before anything is timed there: real training leaves holes in this process's heap.
    """
    training = section.get("training") or {}
    length = training.get("max_length") or config.max_position_embeddings
    windows = training.get("per_device_train_batch_size", 8) * STAGES[folder].texts_per_row
    step = windows * training.get("gradient_accumulation_steps", 1)
    return peak_of_tuning(Job(config, length, step, training, bf16, section.get("lora")), windows, device)


def passes(folder: str, lora: bool) -> float:
    """Arithmetic of a token against pretraining's: forward, back through the activations and to the weights are a third
    each; frozen weights need no gradient, and a reference goes forward once more."""
    return (2 / 3 if lora else 1) + (1 / 3 if STAGES[folder].scores_reference else 0)


def _steps(section: dict[str, Any], training: dict[str, Any], batch: int) -> int | None:
    rows = [source.get("take") for source in section.get("data") or []]
    if not rows or not all(rows):
        return None
    kept = sum(rows) * (1 - section.get("evaluation_share", 0.05))
    return math.ceil(kept / batch * training.get("num_train_epochs", 3))


def _disk(place: Place, lora: dict | None, states: int, training: dict[str, Any]) -> int:
    amount, engine = sizes(place.config, lora), ENGINES.get(place.engine[:4], "")
    width = 2 if engine == "deepspeed" and autocast_type(training, place.bf16) else 4  # which DeepSpeed computes in
    everything = amount.trained + amount.frozen
    saved = amount.trained if lora is not None else everything
    checkpoint = checkpoint_bytes(width * saved, amount.trained, states, engine)
    return disk_bytes(checkpoint, training.get("save_total_limit") or 0, width * everything)
