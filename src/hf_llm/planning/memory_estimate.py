"""Estimate from a recipe the memory that each device takes in training, without a tokenizer or weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.manifest import read_manifest
from hf_llm.hardware.devices import Device
from hf_llm.hardware.runtime import autocast_type
from hf_llm.model.layer_pruning import build_pruned_section
from hf_llm.model.load import (
    VOCABULARY_MULTIPLE,
    build_untrained_model,
    check_config_keys,
    config_class,
    instantiate_config,
    load_model,
    load_tokenizer,
)
from hf_llm.pipeline.tokens_folder import require_tokenizer
from hf_llm.planning.memory import (
    TRAINING,
    UPDATE,
    Footprint,
    estimate_cpu_footprint,
    extrapolate_footprint,
    trained_process_bytes,
)
from hf_llm.planning.sharded_memory import ParameterCounts, estimate_engines
from hf_llm.tokenization.text_boundaries import count_ids
from hf_llm.tokenization.train import TokenizerSection
from hf_llm.training.arguments import MICRO_BATCH_TOKENS
from hf_llm.training.optimizers import build_arguments

# Assumed, not measured: the memory of CUDA, cuBLAS and NCCL before the first tensor, and the share of memory that the
# allocator cannot use.
CUDA_CONTEXT_BYTES = 600 << 20
FRAGMENTATION_SHARE = 0.05

# Parts of a footprint in addition to those of hf_llm.planning.memory.
FRAMEWORK = "framework, fragmentation"
HOLES = "holes in the heap"
PROGRAM = "program and libraries"

# The keys of a `training` section that affect memory.
MEMORY_SETTINGS = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "max_grad_norm",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
)


def build_planned_config(section: dict[str, Any], vocabulary: int, context: int | None) -> PreTrainedConfig:
    """Build the config that `new_model` will make of a `model` section with a tokenizer of `vocabulary` tokens.

    Raises UserError where the section's keys or values are wrong.
    """
    cls = config_class(section)
    settings = {cls.attribute_map.get(key, key): value for key, value in section.items() if key != "model_type"}
    check_config_keys(settings, cls)

    tokenizer_settings = {"vocab_size": math.ceil(vocabulary / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE}
    # The tokenizer will set the special tokens; the config's defaults may lie outside of this vocabulary.
    for key in ("bos_token_id", "cls_token_id", "sep_token_id"):
        if key in cls.__dataclass_fields__:
            tokenizer_settings[key] = None
    tokenizer_settings["pad_token_id"] = 0
    tokenizer_settings["eos_token_id"] = 1
    if cls.is_encoder_decoder:
        tokenizer_settings["decoder_start_token_id"] = 0

    return instantiate_config(cls, settings, tokenizer_settings, context)


def build_pretraining_config(
    model: dict[str, Any], section: Any, tree: dict[str, Any], tokenizer: Path
) -> PreTrainedConfig:
    """Build the config of the model that a recipe's pretraining makes.

    `model` and `section` are the recipe's sections `model` and `pretrain`; the run's tokenizer is, or will be, the
    folder `tokenizer`. Raises UserError where the sections are wrong, or need something that does not exist yet.
    """
    if section.keep_layers is not None:
        unpruned = load_model(section.start_from, objective=None)
        model = build_pruned_section(unpruned, model, section.keep_layers)
    return build_planned_config(model, count_vocabulary(tree, tokenizer), section.context)


def count_vocabulary(tree: dict[str, Any], tokenizer: Path) -> int:
    """Return the number of tokens of a recipe's tokenizer.

    It is taken from the run's finished folder `tokenizer`, unless `pretrain` names another; otherwise from
    `model.vocab_size`, from the tokenizer (or that of the tokens) that `pretrain` names, or from the recipe's
    `tokenizer` section. Raises UserError where none of them has it.
    """
    pretrain = tree.get("pretrain") or {}
    named_tokenizer = pretrain.get("tokenizer")
    if named_tokenizer is None and pretrain.get("tokens"):
        named_tokenizer = require_tokenizer(pretrain["tokens"])
    if named_tokenizer is None and read_manifest(tokenizer):
        return count_ids(load_tokenizer(tokenizer))

    model_section = tree.get("model") or {}
    if model_section.get("vocab_size"):
        return model_section["vocab_size"]
    if named_tokenizer is not None:
        return count_ids(load_tokenizer(named_tokenizer))

    tokenizer_section = tree.get("tokenizer") or {}
    if tokenizer_section.get("use"):
        raise UserError(
            f"tokenizer.use: the vocabulary of {tokenizer_section['use']} is known once it is downloaded; make "
            f"{tokenizer} first (python -m hf_llm.train_tokenizer with this recipe), or add --model.vocab_size=..."
        )
    return tokenizer_section.get("vocab_size") or TokenizerSection().vocab_size


def build_planning_arguments(settings: dict[str, Any], checkpointing: bool | None = None) -> TrainingArguments:
    """Build TrainingArguments from the keys of a `training` section that affect memory, valid on any host.

    `checkpointing` overrides the section's activation checkpointing. Raises UserError for invalid values.
    """
    memory_settings = {key: value for key, value in settings.items() if key in MEMORY_SETTINGS}
    memory_settings.setdefault("activation_checkpointing", settings.get("gradient_checkpointing", False))
    if checkpointing is not None:
        memory_settings["activation_checkpointing"] = checkpointing

    planning_settings = {"output_dir": "unused", "use_cpu": True, "report_to": "none", **memory_settings}
    try:
        return build_arguments(TrainingArguments, planning_settings)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {one_line(error)}") from error


def build_planned_model(
    config: PreTrainedConfig, dtype: torch.dtype = torch.float32, lora: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Build an untrained model of `config`, with adapters where there is a `lora` section."""
    model = build_untrained_model(config, dtype)
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    with _keep_modules_on_their_device():
        return get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **lora}))


@contextmanager
def _keep_modules_on_their_device() -> Iterator[None]:
    """Let `torch.nn.Module.to` do nothing.

    peft moves each adapter to the device of the layer that it wraps, where it has been made already. Tensors without
    data cannot be moved that way: `Module._apply` would swap them for others.
    """
    move_module = torch.nn.Module.to
    torch.nn.Module.to = lambda module, *_, **__: module
    try:
        yield
    finally:
        torch.nn.Module.to = move_module


@dataclass(frozen=True)
class TrainingJob:
    """The properties of a training stage that determine the memory of its steps."""

    config: PreTrainedConfig
    context: int
    windows: int
    """Windows of an optimizer step, on all devices together."""
    settings: dict[str, Any]
    """The `training` section."""
    bf16: bool
    """Whether the devices have units for bf16."""
    lora: dict[str, Any] | None = None

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of the matrix products, None for that of the weights."""
        return autocast_type(self.settings, self.bf16)

    def build_arguments(self, checkpointing: bool | None = None) -> TrainingArguments:
        return build_planning_arguments(self.settings, checkpointing)

    def choose_micro_batch(self, devices: int, device_type: str) -> int:
        """Choose the windows of one forward and backward pass as `hf_llm.training.arguments.split_batch` does."""
        from_recipe = self.settings.get("per_device_train_batch_size")
        if from_recipe:
            return from_recipe
        windows_per_device = max(1, self.windows // devices)
        fitting_windows = max(1, MICRO_BATCH_TOKENS[device_type] // self.context)
        return largest_divisor(windows_per_device, fitting_windows)


def largest_divisor(number: int, limit: int) -> int:
    """Find the largest number up to `limit` that divides `number`."""
    for divisor in range(min(number, max(1, limit)), 0, -1):
        if number % divisor == 0:
            return divisor
    raise AssertionError(f"1 divides {number}")


def count_parameters(config: PreTrainedConfig, lora: dict[str, Any] | None = None) -> ParameterCounts:
    """Count the parameters of a model: trained and frozen, of one layer, and outside of all layers."""
    with torch.device("meta"):
        model = build_planned_model(config, lora=lora)

    trained = 0
    total = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()

    # The layers are the longest list of modules.
    module_lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(module_lists, key=len, default=[])
    in_layers = 0
    for layer in layers:
        in_layers += sum(parameter.numel() for parameter in layer.parameters())

    return ParameterCounts(
        trained=trained,
        frozen=total - trained,
        per_layer=in_layers // max(1, len(layers)),
        outside_layers=total - in_layers,
    )


@dataclass(frozen=True)
class EngineEstimate:
    """One engine: the footprint of a device at the planned micro-batch, and the largest micro-batch that fits."""

    engine: str
    checkpointing: bool
    footprint: Footprint
    max_micro_batch: int
    """Windows; 0 where not even one fits."""
    accumulation: int
    """Micro-batches of an optimizer step at the largest one; 0 where none fits."""


def estimate_gpu_engines(
    job: TrainingJob, devices: int, device: Device, micro_batch: int, checkpointing: bool
) -> list[EngineEstimate]:
    """Estimate each engine for a training on `devices` GPUs of one kind."""
    counts = count_parameters(job.config, job.lora)
    arguments = job.build_arguments(checkpointing)
    windows_per_device = max(1, job.windows // devices)
    accumulate = windows_per_device > micro_batch

    def extrapolate(windows: int, dtype: torch.dtype, autocast: torch.dtype | None) -> Footprint:
        build = partial(build_planned_model, dtype=dtype, lora=job.lora)
        return extrapolate_footprint(build, job.config, windows, job.context, arguments, autocast, accumulate)

    def footprints_by_engine(windows: int) -> dict[str, Footprint]:
        whole = extrapolate(windows, torch.float32, job.autocast)
        half = whole
        if job.autocast and devices > 1:
            half = extrapolate(windows, job.autocast, None)
        return estimate_engines(whole, half, counts, devices, job.autocast is not None)

    footprints = footprints_by_engine(micro_batch)
    footprints_of_double = footprints_by_engine(2 * micro_batch)

    estimates = []
    for engine in footprints:
        footprint = add_framework_memory(footprints[engine])
        footprint_of_double = add_framework_memory(footprints_of_double[engine])
        fitting_windows = count_fitting_windows(device.memory, micro_batch, footprint, footprint_of_double)
        max_micro_batch = 0
        accumulation = 0
        if fitting_windows:
            max_micro_batch = largest_divisor(windows_per_device, fitting_windows)
            accumulation = windows_per_device // max_micro_batch
        estimates.append(EngineEstimate(engine, checkpointing, footprint, max_micro_batch, accumulation))
    return estimates


def count_fitting_windows(memory: int, micro_batch: int, footprint: Footprint, footprint_of_double: Footprint) -> int:
    """Count the windows of a micro-batch that fit in `memory` bytes; 0 where not even one does.

    The bytes of a window are the slope of the line through the footprints of `micro_batch` windows and twice as many.
    """
    update_bytes = sum(footprint.phases[UPDATE].values())
    if update_bytes > memory:
        return 0

    training_bytes = sum(footprint.phases[TRAINING].values())
    training_bytes_of_double = sum(footprint_of_double.phases[TRAINING].values())
    bytes_per_window = max(1, (training_bytes_of_double - training_bytes) / micro_batch)
    further_windows = int((memory - training_bytes) // bytes_per_window)
    return max(0, micro_batch + further_windows)


def add_framework_memory(footprint: Footprint) -> Footprint:
    """Add the assumed bytes of the CUDA context and of the allocator's fragmentation."""
    phases = {}
    for phase, parts in footprint.phases.items():
        framework_bytes = CUDA_CONTEXT_BYTES + int(FRAGMENTATION_SHARE * sum(parts.values()))
        phases[phase] = {**parts, FRAMEWORK: framework_bytes}
    return Footprint(phases)


def tensor_bytes(footprint: Footprint) -> int:
    """Return the peak bytes of tensors alone, without FRAMEWORK, as torch.cuda.max_memory_allocated reports them."""
    return max(sum(parts.values()) - parts.get(FRAMEWORK, 0) for parts in footprint.phases.values())


def estimate_cpu_training(job: TrainingJob, micro_batch: int) -> EngineEstimate:
    """Estimate a training in one process on this host's CPU, by trying steps (`estimate_cpu_footprint`)."""
    build = partial(build_planned_model, job.config, lora=job.lora)
    accumulate = job.windows > micro_batch
    footprint, growth = estimate_cpu_footprint(
        build, micro_batch, job.context, job.build_arguments(), job.autocast, accumulate
    )

    holes = max(0, growth - footprint.peak)
    phases = {}
    for phase, parts in footprint.phases.items():
        phases[phase] = {**parts, HOLES: holes, PROGRAM: trained_process_bytes()}

    checkpointing = bool(job.build_arguments().activation_checkpointing)
    return EngineEstimate("one process", checkpointing, Footprint(phases), micro_batch, job.windows // micro_batch)


def estimate_tuning_peak(job: TrainingJob, micro_batch: int, device: Device) -> int:
    """Estimate the bytes of one device in a step of a stage after pretraining, nothing sharded."""
    accumulate = job.windows > micro_batch
    step_arguments = (micro_batch, job.context, job.build_arguments(), job.autocast, accumulate)

    if device.key == "cpu":
        _, growth = estimate_cpu_footprint(partial(build_planned_model, job.config, lora=job.lora), *step_arguments)
        return trained_process_bytes() + growth

    footprint = extrapolate_footprint(partial(build_planned_model, lora=job.lora), job.config, *step_arguments)
    return add_framework_memory(footprint).peak
