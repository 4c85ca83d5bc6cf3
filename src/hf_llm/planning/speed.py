"""Estimate the tokens per second of a training.

On this host they are measured on a few real layers; for other hardware they are estimated from its data sheet.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import Device, training_dtype
from hf_llm.hardware.microbenchmarks import Rate
from hf_llm.hardware.runtime import device_type, has_bf16, retain_freed_memory
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.summary import flops_per_token
from hf_llm.pipeline.sizing import DATA_SHEET_UTILISATION
from hf_llm.planning.memory import truncate_layers
from hf_llm.planning.memory_estimate import TrainingJob, build_planned_model, build_planning_arguments
from hf_llm.training.arguments import MICRO_BATCH_TOKENS
from hf_llm.training.step_choice import MAX_WINDOW_FLOPS, measure_step
from hf_llm.training.step_timing import TimedModel

MAX_TIMED_LAYERS = 4
TIMED_PASS_FLOPS = 2e11  # a timed pass takes at most about this many FLOPs, unless a single window takes more
KERNELS_PER_LAYER = 50  # forward and backward of a compiled layer; assumed
LAUNCH_SECONDS = 3.8e-6  # of a kernel among many (https://developer.nvidia.com/blog/cuda-graphs/)
CHECKPOINTING_FLOPS_RATIO = 4 / 3  # activation checkpointing runs the forward pass a second time


@dataclass(frozen=True)
class Speed:
    """`tokens_per_second` of all devices together, and where that is from."""

    tokens_per_second: float
    source: str


def estimate_speed(
    model: PreTrainedConfig,
    device: Device,
    context: int,
    devices: int = 1,
    checkpointing: bool = False,
    dtype: str = "",
    micro_batch: int | None = None,
) -> Speed:
    """Estimate the speed from the data sheet: the FLOPs of a token at a share of the device's FLOP/s.

    The share is the one `hf_llm.pipeline.sizing` states. With activation `checkpointing` a token takes a third more. A
    small model is slower than that: it waits for memory and for launches of kernels (`small_model_seconds`), in
    micro-batches of `micro_batch` windows (None: as many as the program would choose). `dtype` is what training
    computes in (float16), where the device has units for it; else as `training_dtype` says. Raises UserError for a
    device whose maker publishes no FLOP/s.
    """
    if dtype not in device.flops:
        dtype = training_dtype(device)
    if dtype is None:
        raise UserError(f"no FLOP/s are published for {device.name}; run this on it, and its speed is measured")

    flops = flops_per_token(model, context)
    repeats = CHECKPOINTING_FLOPS_RATIO if checkpointing else 1
    arithmetic_seconds = flops * repeats / (DATA_SHEET_UTILISATION * device.flops[dtype])
    other_seconds = repeats * small_model_seconds(model, device, context, micro_batch)

    teraflops = device.flops[dtype] / 1e12
    source = f"{DATA_SHEET_UTILISATION:.0%} of the data sheet's {teraflops:,.0f} TFLOP/s in {dtype}"
    if other_seconds > arithmetic_seconds:
        share = DATA_SHEET_UTILISATION * arithmetic_seconds / other_seconds
        source = f"{share:.1%} of those TFLOP/s: a small model waits for memory and for launches of kernels (assumed)"
    return Speed(devices / max(arithmetic_seconds, other_seconds), source)


def small_model_seconds(model: PreTrainedConfig, device: Device, context: int, micro_batch: int | None) -> float:
    """Estimate the seconds of one token that do not depend on the FLOP/s: memory traffic and launches of kernels.

    Assumed, not measured: a layer reads and writes three times what it keeps for the backward pass, 34 bytes for each
    number of the hidden state (https://arxiv.org/abs/2205.05198, equation 1), the loss goes three times over the logits
    in float32, and a layer takes `KERNELS_PER_LAYER` launches.
    """
    micro_batch = micro_batch or max(1, MICRO_BATCH_TOKENS["cuda"] // context)
    layers = model.num_hidden_layers
    launches = layers * KERNELS_PER_LAYER * LAUNCH_SECONDS / (micro_batch * context)
    traffic = 3 * (layers * 34 * model.hidden_size + 4 * model.vocab_size)
    memory = traffic / device.bandwidth if device.bandwidth else 0.0
    return memory + launches


@dataclass(frozen=True)
class StepTiming:
    """Seconds that the pieces of a step take on one device."""

    window: float
    """Forward and backward of one window without the layers."""
    layer: float
    """Forward and backward of one window in one layer."""
    parameter: float
    """The optimizer step for one parameter."""

    def tokens_per_second(self, layers: int, context: int, windows: int, parameters: int) -> float:
        """Compute the tokens per second of steps of `windows` windows, with one optimizer step each."""
        step_seconds = windows * (self.window + layers * self.layer) + parameters * self.parameter
        return windows * context / step_seconds


def time_layers(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    rounds: int = 3,
) -> StepTiming:
    """Train a few layers of the model for a few steps on the device that Trainer uses, and time the fastest step.

    `build` makes the model of a config. The time of a layer is the difference between a deeper and a shallower model.
    Micro-batches have `batch` windows of `context` tokens, or fewer where a pass would take long: the time of a window
    hardly depends on their number.
    """
    deep_layers = max(2, min(MAX_TIMED_LAYERS, config.num_hidden_layers))
    shallow_layers = 1
    deep_config = truncate_layers(config, deep_layers)
    shallow_config = truncate_layers(config, shallow_layers)
    affordable_windows = int(TIMED_PASS_FLOPS / (context * flops_per_token(deep_config, context)))
    batch = max(1, min(batch, affordable_windows))

    is_cpu = device_type() == "cpu"
    with retain_freed_memory() if is_cpu else nullcontext():  # as a training does
        deep = TimedModel(build(deep_config), arguments)
        shallow = TimedModel(build(shallow_config), arguments)

        # The first step sets up libraries, memory and the optimizer's states.
        _run_step(deep, batch, context, autocast)
        _run_step(shallow, batch, context, autocast)

        deep_times = []
        shallow_times = []
        for _ in range(rounds):
            deep_times.append(_run_step(deep, batch, context, autocast))
            shallow_times.append(_run_step(shallow, batch, context, autocast))

        parameters = deep.parameter_count
        del deep, shallow  # so that their memory is returned at the end of this block

    deep_pass = min(pass_seconds for pass_seconds, _ in deep_times)
    shallow_pass = min(pass_seconds for pass_seconds, _ in shallow_times)
    update = min(update_seconds for _, update_seconds in deep_times)

    # Timings are disturbed by other work on the host: keep a layer's time between 0 and its share of the whole.
    measured_layer = max(0.0, deep_pass - shallow_pass) / (deep_layers - shallow_layers)
    layer = min(measured_layer, deep_pass / deep_layers) / batch
    return StepTiming(
        window=deep_pass / batch - deep_layers * layer,
        layer=layer,
        parameter=update / parameters,
    )


def _run_step(timed: TimedModel, batch: int, context: int, autocast: torch.dtype | None) -> tuple[float, float]:
    """Return the seconds of forward and backward, and of the optimizer step with the clipping before it."""
    return timed.run_pass(batch, context, autocast), timed.run_update()


def measure_speed(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    batch: int,
    context: int,
    windows: int,
    arguments: TrainingArguments,
    devices: int = 1,
    autocast: torch.dtype | None = None,
) -> Speed:
    """Measure the speed of steps of `windows` windows on this host's `devices`, on a few layers and one of them."""
    timing = time_layers(build, config, batch, context, arguments, autocast)
    with torch.device("meta"):
        trained = sum(parameter.numel() for parameter in build(config).parameters() if parameter.requires_grad)

    layers = config.num_hidden_layers
    windows_per_device = max(1, windows // devices)
    tokens_per_second = devices * timing.tokens_per_second(layers, context, windows_per_device, trained)

    timed_layers = min(MAX_TIMED_LAYERS, layers)
    source = f"measured here on {timed_layers} of {layers} layers, in micro-batches of {batch}"
    return Speed(tokens_per_second, source)


def choose_planned_bf16(job: TrainingJob) -> bool:
    """Return whether training on this host's CPU would choose bf16, as it measures that itself."""
    micro_batch = job.choose_micro_batch(1, "cpu")
    if job.context * flops_per_token(job.config, job.context) > MAX_WINDOW_FLOPS:  # without weights
        return has_bf16("cpu")
    return measure_step(build_planned_model(job.config), job.settings, job.context, micro_batch).bf16


def measure_job_speed(job: TrainingJob, devices: int, checkpointing: bool | None = None) -> Speed:
    """Measure the speed of a training job on this host's `devices`, on a few layers and one of them."""
    return measure_speed(
        partial(build_planned_model, lora=job.lora),
        job.config,
        job.choose_micro_batch(devices, device_type()),
        job.context,
        job.windows,
        job.build_arguments(checkpointing),
        devices,
        job.autocast,
    )


def measure_training_rate() -> Rate:
    """Measure the FLOP/s at which one device of this host trains a model of 4M parameters.

    The precision is the one that training would choose there.
    """
    config = HfLlmConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    context = 256
    windows = 8
    bf16 = has_bf16(device_type())
    autocast = torch.bfloat16 if bf16 else None

    speed = measure_speed(
        build_planned_model, config, windows, context, windows, build_planning_arguments({}), autocast=autocast
    )
    flops_per_second = speed.tokens_per_second * flops_per_token(config, context)
    return Rate("training", flops_per_second, "bfloat16" if bf16 else "float32")
