"""A training before it is made: the model of a recipe without tokenizer or weights, and what each device would hold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.hardware.devices import Device
from hf_llm.hardware.runtime import autocast_type
from hf_llm.model.layer_pruning import student_section
from hf_llm.model.load import (
    VOCABULARY_MULTIPLE,
    check_keys,
    config_class,
    config_of,
    load_model,
    load_tokenizer,
    one_line,
    untrained,
)
from hf_llm.planning.memory import TRAINING, UPDATE, Footprint, extrapolated, on_this_cpu, trainer_size
from hf_llm.planning.sharded_memory import Sizes, engines
from hf_llm.tokenization.train import TokenizerSection
from hf_llm.training.arguments import MICRO_BATCH_TOKENS
from hf_llm.training.optimizers import arguments_of

# Assumed, not measured: what CUDA, cuBLAS and NCCL take before the first tensor, and what the allocator cannot use.
CUDA_CONTEXT, FRAGMENTATION = 600 << 20, 0.05
FRAMEWORK, HOLES, PROGRAM = "framework, fragmentation", "holes in the heap", "program and libraries"
OBEYED = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "max_grad_norm",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
)


def planned_config(section: dict[str, Any], vocabulary: int, context: int | None) -> PreTrainedConfig:
    """The config that `new_model` will make of a `model` section with a tokenizer of `vocabulary` tokens.

    Raises UserError where the section's keys or values are wrong.
    """
    cls = config_class(section)
    settings = {cls.attribute_map.get(key, key): value for key, value in section.items() if key != "model_type"}
    check_keys(settings, cls)
    fitted = {"vocab_size": -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE}
    # What the tokenizer will say; a config's own may lie outside of this vocabulary.
    fitted |= {key: None for key in cls.__dataclass_fields__ if key in ("bos_token_id", "cls_token_id", "sep_token_id")}
    fitted |= {"pad_token_id": 0, "eos_token_id": 1} | ({"decoder_start_token_id": 0} if cls.is_encoder_decoder else {})
    return config_of(cls, settings, fitted, context)


def pretraining_config(model: dict[str, Any], section: Any, tree: dict[str, Any], tokenizer: Path) -> PreTrainedConfig:
    """The config of what the pretraining of a recipe makes: of its sections `model` and `pretrain` (`section`), where
    the run's tokenizer is, or will be, the folder `tokenizer`.

    Raises UserError where the sections are wrong, or need something that is not there yet.
    """
    if section.keep_layers is not None:
        teacher = load_model(section.start_from, objective=None)
        model = student_section(teacher, model, section.keep_layers)
    return planned_config(model, vocabulary(tree, tokenizer), section.context)


def vocabulary(tree: dict[str, Any], tokenizer: Path) -> int:
    """The number of tokens: of the tokenizer that `pretrain` names, of the folder `tokenizer` where it is finished,
    else as the recipe's `tree` has it.

    Raises UserError where it has not.
    """
    given = (tree.get("pretrain") or {}).get("tokenizer")
    if given is None and read_manifest(tokenizer):
        return len(load_tokenizer(tokenizer))
    model, section = tree.get("model") or {}, tree.get("tokenizer") or {}
    if model.get("vocab_size"):
        return model["vocab_size"]
    if given is not None:
        return len(load_tokenizer(given))
    if section.get("use"):
        raise UserError(
            f"tokenizer.use: the vocabulary of {section['use']} is known once it is here; make {tokenizer} first "
            "(python -m hf_llm.train_tokenizer with this recipe), or add --model.vocab_size=..."
        )
    return section.get("vocab_size") or TokenizerSection().vocab_size


def arguments_for_planning(settings: dict[str, Any], checkpointing: bool | None = None) -> TrainingArguments:
    """Of a `training` section what decides memory, as TrainingArguments that any machine can construct."""
    obeyed = {key: value for key, value in settings.items() if key in OBEYED}
    obeyed.setdefault("activation_checkpointing", settings.get("gradient_checkpointing", False))
    if checkpointing is not None:
        obeyed["activation_checkpointing"] = checkpointing
    try:
        settings = {"output_dir": "unused", "use_cpu": True, "report_to": "none", **obeyed}
        return arguments_of(TrainingArguments, settings)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {one_line(error)}") from error


def model_of(
    config: PreTrainedConfig, dtype: torch.dtype = torch.float32, lora: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A model of `config`, with adapters where there is a `lora` section."""
    model = untrained(config, dtype)
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    # Adapters are made where they belong, and tensors without data cannot be moved (Module._apply would swap them).
    with patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
        return get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **lora}))


@dataclass(frozen=True)
class Job:
    """What of a stage decides the memory of its steps."""

    config: PreTrainedConfig
    context: int
    windows: int  # of an optimizer step, on all devices together
    settings: dict[str, Any]  # the `training` section
    bf16: bool  # whether the devices have units for it
    lora: dict[str, Any] | None = None

    @property
    def autocast(self) -> torch.dtype | None:
        """The type in which matrix products are made, None for that of the weights."""
        return autocast_type(self.settings, self.bf16)

    def arguments(self, checkpointing: bool | None = None) -> TrainingArguments:
        return arguments_for_planning(self.settings, checkpointing)

    def micro_batch(self, devices: int, kind: str) -> int:
        """The windows of one forward and backward pass as `hf_llm.training.arguments.batch` will choose them."""
        share = max(1, self.windows // devices)
        given = self.settings.get("per_device_train_batch_size")
        return given or largest_divisor(share, max(1, MICRO_BATCH_TOKENS[kind] // self.context))


def largest_divisor(number: int, most: int) -> int:
    """The largest number up to `most` that divides `number`."""
    return next(n for n in range(min(number, max(1, most)), 0, -1) if number % n == 0)


def sizes(config: PreTrainedConfig, lora: dict[str, Any] | None = None) -> Sizes:
    """Parameters trained and frozen, of one layer, and outside of all layers."""
    with torch.device("meta"):
        model = model_of(config, lora=lora)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in model.parameters())
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len, default=[])
    within = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    return Sizes(trained, everything - trained, within // max(1, len(layers)), everything - within)


@dataclass(frozen=True)
class Row:
    """One engine: the footprint of a device at the micro-batch planned, and the largest micro-batch that fits."""

    engine: str
    checkpointing: bool
    footprint: Footprint
    largest: int  # windows; 0 where not even one fits
    accumulation: int


def gpu_rows(job: Job, devices: int, device: Device, micro: int, checkpointing: bool) -> list[Row]:
    """The engines side by side on `devices` of a kind."""
    amount, arguments = sizes(job.config, job.lora), job.arguments(checkpointing)
    share = max(1, job.windows // devices)

    def found(batch: int) -> dict[str, Footprint]:
        def of(dtype: torch.dtype, autocast: torch.dtype | None) -> Footprint:
            build: Callable[[PreTrainedConfig], PreTrainedModel] = partial(model_of, dtype=dtype, lora=job.lora)
            return extrapolated(build, job.config, batch, job.context, arguments, autocast, share > micro)

        whole = of(torch.float32, job.autocast)
        half = of(job.autocast, None) if job.autocast and devices > 1 else whole
        return engines(whole, half, amount, devices, job.autocast is not None)

    rows = []
    for (engine, once), twice in zip(found(micro).items(), found(2 * micro).values(), strict=True):
        once, twice = with_framework(once), with_framework(twice)
        most = fitting(device.memory, micro, once, twice)
        largest = largest_divisor(share, most) if most else 0
        rows.append(Row(engine, checkpointing, once, largest, share // largest if largest else 0))
    return rows


def fitting(memory: int, micro: int, once: Footprint, twice: Footprint) -> int:
    """The windows of a micro-batch that fit into `memory`, by the straight line through the footprints of `micro`
    windows and twice as many; 0 where not one does."""
    if sum(once.phases[UPDATE].values()) > memory:
        return 0
    taken, more = (sum(footprint.phases[TRAINING].values()) for footprint in (once, twice))
    each = max(1, (more - taken) / micro)
    return max(0, micro + int((memory - taken) // each))


def with_framework(footprint: Footprint) -> Footprint:
    """With what is assumed of the CUDA context and the allocator's losses."""
    phases = {}
    for phase, parts in footprint.phases.items():
        extra = CUDA_CONTEXT + int(FRAGMENTATION * sum(parts.values()))
        phases[phase] = {**parts, FRAMEWORK: extra}
    return Footprint(phases)


def tensors(footprint: Footprint) -> int:
    """The peak without what is assumed beside the tensors: what torch.cuda.max_memory_allocated will tell."""
    return max(sum(parts.values()) - parts.get(FRAMEWORK, 0) for parts in footprint.phases.values())


def cpu_row(job: Job, micro: int) -> Row:
    """A training on this machine's CPU, as `hf_llm.planning.memory.on_this_cpu` tries it."""
    build = partial(model_of, job.config, lora=job.lora)
    accumulate = job.windows > micro
    footprint, growth = on_this_cpu(build, micro, job.context, job.arguments(), job.autocast, accumulate)
    holes = max(0, growth - footprint.peak)
    phases = {phase: {**parts, HOLES: holes, PROGRAM: trainer_size()} for phase, parts in footprint.phases.items()}
    checkpointing = bool(job.arguments().activation_checkpointing)
    return Row("one process", checkpointing, Footprint(phases), micro, job.windows // micro)


def peak_of_tuning(job: Job, batch: int, device: Device) -> int:
    """Bytes of one device in a step of `batch` windows of a stage that tunes, nothing sharded."""
    step = (batch, job.context, job.arguments(), job.autocast, job.windows > batch)
    if device.key == "cpu":
        _, growth = on_this_cpu(partial(model_of, job.config, lora=job.lora), *step)
        return trainer_size() + growth
    return with_framework(extrapolated(partial(model_of, lora=job.lora), job.config, *step)).peak
