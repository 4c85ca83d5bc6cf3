"""How many tokens a second a training will learn from: measured on a few real layers here, or reckoned from a data
sheet for a device that is not here."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import Device, training_dtype
from hf_llm.hardware.microbenchmarks import Rate, synchronise
from hf_llm.hardware.runtime import device_type, freed_memory_kept, has_bf16
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.summary import flops_per_token
from hf_llm.pipeline.sizing import OF_DATA_SHEET
from hf_llm.planning.memory import model_inputs, with_layers
from hf_llm.planning.memory_estimate import Job, arguments_for_planning, model_of
from hf_llm.training.optimizers import new_optimizer

LAYERS = 4  # of a deeper model that are timed
FLOPS = 2e11  # of one timed pass, about; a pass of one window may take more
RECOMPUTED = 4 / 3  # arithmetic with activation checkpointing: the forward pass once more


@dataclass(frozen=True)
class Speed:
    """`tokens_per_second` of all devices together, and where that is from."""

    tokens_per_second: float
    source: str


def tokens_per_second(
    model: PreTrainedConfig | PreTrainedModel,
    device: Device,
    context: int,
    devices: int = 1,
    recompute: bool = False,
    dtype: str = "",
) -> Speed:
    """Reckoned from the data sheet: the FLOPs of a token against a share of what the device can do at most.

    The share is the one `hf_llm.pipeline.sizing` states. With `recompute` (activation checkpointing) a token takes
    a third more. `dtype` is what training computes in (float16), where the device has units for it; else as
    `training_dtype` says. Raises UserError for a device whose maker publishes no FLOP/s.
    """
    dtype = dtype if dtype in device.flops else training_dtype(device)
    if dtype is None:
        raise UserError(f"no FLOP/s are published for {device.name}; run this on it, and its speed is measured")
    flops = flops_per_token(model, context) * (RECOMPUTED if recompute else 1)
    rate = OF_DATA_SHEET * devices * device.flops[dtype] / flops
    return Speed(rate, f"{OF_DATA_SHEET:.0%} of the data sheet's {device.flops[dtype] / 1e12:,.0f} TFLOP/s in {dtype}")


@dataclass(frozen=True)
class Timed:
    """Seconds on one device: of forward and backward of a window without the layers, of one layer for a window, and of
    the optimizer's step for one parameter."""

    window: float
    layer: float
    parameter: float

    def tokens_per_second(self, layers: int, context: int, windows: int, parameters: int) -> float:
        """Of a step of `windows` windows, which one device goes through in micro-batches, and one optimizer step."""
        step = windows * (self.window + layers * self.layer) + parameters * self.parameter
        return windows * context / step


def timed(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    rounds: int = 3,
) -> Timed:
    """Train a few layers of the model for a few steps on the device that Trainer would take, and keep the fastest of
    the `rounds`.

    `build` makes the model of a config with other numbers of layers. Micro-batches of `batch` windows of `context`
    tokens, or fewer where the passes would take long: what a window takes hardly depends on how many go at a time.
    """
    deep, shallow = max(2, min(LAYERS, config.num_hidden_layers)), 1
    batch = max(1, min(batch, int(FLOPS / (context * flops_per_token(with_layers(config, deep), context)))))
    with freed_memory_kept() if device_type() == "cpu" else nullcontext():  # as a training does
        runs = [_Run(build(with_layers(config, few)), batch, context, arguments, autocast) for few in (deep, shallow)]
        for run in runs:
            run.step()  # the first sets up libraries, memory and the optimizer's states
        times = [[run.step() for run in runs] for _ in range(rounds)]
        parameters = runs[0].parameters
        del run, runs
    most, least = (min(round_[which][0] for round_ in times) for which in (0, 1))
    layer = min(max(0.0, most - least) / (deep - shallow), most / deep) / batch  # whatever else the machine did
    update = min(round_[0][1] for round_ in times) / parameters
    return Timed(most / batch - deep * layer, layer, update)


class _Run:
    """A model under training on tokens that mean nothing."""

    def __init__(self, model, batch, context, arguments, autocast):
        self.device = device = torch.device(device_type())
        self.model, self.autocast = model.to(device).train(), autocast
        if arguments.activation_checkpointing:
            model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
        generator = torch.Generator().manual_seed(0)
        size = (batch, context)
        self.tokens = torch.randint(0, model.config.vocab_size, size, generator=generator).to(device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.trained, self.parameters = trained, sum(parameter.numel() for parameter in trained)
        self.optimizer = new_optimizer(arguments, model)

    def step(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the optimizer's step with the clipping before it."""
        started = self._now()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss = self.model(**model_inputs(self.model.config, self.tokens)).loss
        loss.backward()
        between = self._now()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return between - started, self._now() - between

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


def measured(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    batch: int,
    context: int,
    windows: int,
    arguments: TrainingArguments,
    devices: int = 1,
    autocast: torch.dtype | None = None,
) -> Speed:
    """The speed of steps of `windows` windows on this machine's `devices`, from a few layers timed on one of them."""
    found = timed(build, config, batch, context, arguments, autocast)
    with torch.device("meta"):
        model = build(config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = max(1, windows // devices)
    rate = devices * found.tokens_per_second(config.num_hidden_layers, context, share, trained)
    layers = min(LAYERS, config.num_hidden_layers)
    return Speed(rate, f"measured here on {layers} of {config.num_hidden_layers} layers, in micro-batches of {batch}")


def measured_here(job: Job, devices: int, checkpointing: bool | None = None) -> Speed:
    """The speed of a training on this machine's `devices`, from a few layers timed on one of them."""
    build, micro = partial(model_of, lora=job.lora), job.micro_batch(devices, device_type())
    arguments = job.arguments(checkpointing)
    return measured(build, job.config, micro, job.context, job.windows, arguments, devices, job.autocast)


def training_rate() -> Rate:
    """FLOP/s at which one device here trains a model of quickstart's size, in the precision that it would take."""
    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    config = HfLlmConfig(**sizes, num_attention_heads=4, max_position_embeddings=256)
    context, windows, bf16 = 256, 8, has_bf16(device_type())
    autocast = torch.bfloat16 if bf16 else None
    speed = measured(model_of, config, windows, context, windows, arguments_for_planning({}), autocast=autocast)
    value = speed.tokens_per_second * flops_per_token(config, context)
    return Rate("training", value, "bfloat16" if bf16 else "float32")
