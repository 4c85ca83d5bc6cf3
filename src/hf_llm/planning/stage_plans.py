"""Plan the training stages of a recipe: tokens, hours, memory, disk, energy and cost of each."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from hf_llm.hardware.devices import Device
from hf_llm.hardware.runtime import autocast_type
from hf_llm.pipeline.stages import STAGES
from hf_llm.planning.cost import Cost, disk_bytes, estimate_cost
from hf_llm.planning.memory_estimate import TrainingJob, count_parameters, estimate_tuning_peak
from hf_llm.training.arguments import evaluation_interval
from hf_llm.training.fault_tolerance.checkpoints import estimate_checkpoint_bytes

# Stages that can be planned from rows. Those that sample their completions cannot: the length is not known before.
PLANNED_FROM_ROWS = tuple(stage.folder for stage in STAGES.values() if stage.texts_per_row)

# The engine that writes the checkpoints, by the first four letters of a planned engine's name.
CHECKPOINT_ENGINES = {"ZeRO": "deepspeed", "FSDP": "fsdp"}


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. Where only the data determine the number of steps, values that depend on it are None."""

    folder: str
    steps: int | None
    tokens: int | None
    at_most: bool
    """Whether tokens and hours are upper limits, as rows may be shorter than the context."""
    hours: float | None
    disk: int | None
    """The largest size in bytes that the stage's folder reaches."""
    cost: Cost | None
    memory: int
    """Bytes of one device, without the memory that a loss over pairs takes in addition to the model's."""


@dataclass(frozen=True)
class HardwarePlan:
    """The hardware on which the stages are to run, how they are split over it, and what it costs."""

    config: PreTrainedConfig
    engine: str
    """One of the names in `hf_llm.planning.sharded_memory.estimate_engines`."""
    tokens_per_second: float
    """The speed of pretraining, on all devices together."""
    devices: int
    device: Device
    bf16: bool
    """Whether the devices have units for bf16."""
    price: float | None = None
    """Price of one device for an hour."""
    electricity: float | None = None
    """Price of a kWh."""

    def estimate_cost(self, hours: float) -> Cost:
        return estimate_cost(hours, self.devices, self.device, self.price, self.electricity)


def plan_pretraining(section: Any, memory: int, optimizer_bytes: int, hardware: HardwarePlan) -> StagePlan:
    """Plan the `pretrain` section, its evaluations included.

    `memory` is that of one device, `optimizer_bytes` the optimizer's states on all of them together.
    """
    steps = section.training.get("max_steps")
    if not steps or steps < 0:
        return _plan_without_steps("base", memory)

    hours = count_equivalent_tokens(section, steps) / hardware.tokens_per_second / 3600
    return StagePlan(
        folder="base",
        steps=steps,
        tokens=steps * section.tokens_per_step,
        at_most=False,
        hours=hours,
        disk=_estimate_disk_bytes(hardware, None, optimizer_bytes, section.training),
        cost=hardware.estimate_cost(hours),
        memory=memory,
    )


def count_equivalent_tokens(section: Any, steps: int) -> float:
    """Count the training tokens that take as long as `steps` of the `pretrain` section with their evaluations."""
    training = dict(section.training)
    if not training.get("eval_steps"):  # as pretraining chooses it
        interval = evaluation_interval(section.evaluation_tokens, section.tokens_per_step)
        training["eval_steps"] = max(interval, training.get("logging_steps") or 10)

    # A forward pass is a third of the arithmetic.
    evaluation_tokens = count_evaluations(training, steps) * section.evaluation_tokens / 3
    return steps * section.tokens_per_step + evaluation_tokens


def count_evaluations(training: dict[str, Any], steps: int) -> int:
    """Count the evaluations of a pretraining of `steps`: those that Trainer's keys ask for, and one at its end."""
    if str(training.get("eval_strategy", "steps")) != "steps":
        return 1
    interval = training.get("eval_steps") or training.get("logging_steps") or 10
    if interval < 1:  # a share of all steps
        interval = math.ceil(steps * interval)
    return math.ceil(steps / interval)


def plan_tuning(folder: str, section: dict[str, Any], memory: int, hardware: HardwarePlan) -> StagePlan:
    """Plan a section that tunes on rows, every one of which is taken to fill the context.

    `memory` is what `estimate_tuning_memory` returns.
    """
    training = section.get("training") or {}
    lora = section.get("lora")
    length = training.get("max_length") or hardware.config.max_position_embeddings
    micro_batch = training.get("per_device_train_batch_size", 8)
    rows_per_step = micro_batch * training.get("gradient_accumulation_steps", 1) * hardware.devices
    steps = training.get("max_steps") or _count_tuning_steps(section, training, rows_per_step)
    if not steps or steps < 0:
        return _plan_without_steps(folder, memory)

    tokens = steps * rows_per_step * length * STAGES[folder].texts_per_row
    hours = tokens * relative_flops(folder, lora is not None) / hardware.tokens_per_second / 3600
    optimizer_bytes = 8 * count_parameters(hardware.config, lora).trained  # two moments in float32
    return StagePlan(
        folder=folder,
        steps=steps,
        tokens=tokens,
        at_most=True,
        hours=hours,
        disk=_estimate_disk_bytes(hardware, lora, optimizer_bytes, training),
        cost=hardware.estimate_cost(hours),
        memory=memory,
    )


def _plan_without_steps(folder: str, memory: int) -> StagePlan:
    return StagePlan(
        folder=folder, steps=None, tokens=None, at_most=False, hours=None, disk=None, cost=None, memory=memory
    )


def estimate_tuning_memory(
    folder: str, section: dict[str, Any], config: PreTrainedConfig, device: Device, bf16: bool
) -> int:
    """Estimate the bytes that a step of a section that tunes takes on one device.

    On a CPU, call this before anything is timed there: real training leaves holes in this process's heap.
    """
    training = section.get("training") or {}
    length = training.get("max_length") or config.max_position_embeddings
    micro_batch = training.get("per_device_train_batch_size", 8) * STAGES[folder].texts_per_row
    windows_per_step = micro_batch * training.get("gradient_accumulation_steps", 1)
    job = TrainingJob(config, length, windows_per_step, training, bf16, section.get("lora"))
    return estimate_tuning_peak(job, micro_batch, device)


def relative_flops(folder: str, lora: bool) -> float:
    """Return the FLOPs of a token in a stage, relative to pretraining's.

    The forward pass and the backward passes to the activations and to the weights are a third each. Frozen weights need
    no gradient, and a reference model adds one forward pass.
    """
    policy = 2 / 3 if lora else 1
    reference = 1 / 3 if STAGES[folder].scores_reference else 0
    return policy + reference


def _count_tuning_steps(section: dict[str, Any], training: dict[str, Any], rows_per_step: int) -> int | None:
    """Count the steps from the rows that each source is to give; None where one does not say how many."""
    rows = [source.get("take") for source in section.get("data") or []]
    if not rows or not all(rows):
        return None
    training_rows = sum(rows) * (1 - section.get("evaluation_share", 0.05))
    return math.ceil(training_rows / rows_per_step * training.get("num_train_epochs", 3))


def _estimate_disk_bytes(
    hardware: HardwarePlan, lora: dict | None, optimizer_bytes: int, training: dict[str, Any]
) -> int:
    counts = count_parameters(hardware.config, lora)
    engine = CHECKPOINT_ENGINES.get(hardware.engine[:4], "")
    all_parameters = counts.trained + counts.frozen
    saved_parameters = all_parameters if lora is None else counts.trained

    # DeepSpeed holds the weights in the type it computes in.
    is_half = engine == "deepspeed" and autocast_type(training, hardware.bf16)
    bytes_per_parameter = 2 if is_half else 4

    checkpoint = estimate_checkpoint_bytes(
        bytes_per_parameter * saved_parameters, counts.trained, optimizer_bytes, engine
    )
    return disk_bytes(checkpoint, training, bytes_per_parameter * all_parameters)
