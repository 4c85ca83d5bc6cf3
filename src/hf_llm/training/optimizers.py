"""Optimizers by Trainer's own names, and Muon: check what each needs, and build what Trainer leaves out.

docs/optimizers.md says when to use which.
"""

import sys
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.similar_names import suggest_names
from hf_llm.parallel.layout import is_engine_enabled, read_layout
from hf_llm.training.muon import MUON, Muon, check_muon, muon_matrices

Arguments = TypeVar("Arguments", bound=TrainingArguments)

LOW_RANK_PREFIXES = ("galore", "apollo")
IN_BACKWARD_SUFFIXES = ("layerwise", "lomo")  # names of optimizers that step during the backward pass end so
DTENSOR_PREFIXES = ("adamw_torch", "sgd")  # names of optimizers that can step on DTensors begin so
MODULES_INSIDE_LAYERS = r".*\.\d+\..*"  # matches the names of modules below a numbered one
PACKAGES_OF_EXTRA = ("torchao", "bitsandbytes", "galore_torch")  # installed by hf-llm[optimizers]


def build_arguments(cls: type[Arguments], settings: dict[str, Any]) -> Arguments:
    """Build `cls(**settings)`, where `optim` may be muon, and GaLore and APOLLO project the matrices inside layers.

    Raises ValueError for an unknown optimizer, and whatever `cls` raises.
    """
    name = str(settings.get("optim", MUON))
    known_names = [MUON, *(kind.value for kind in OptimizerNames)]
    if name not in known_names:
        hint = suggest_names(name, known_names, f"known: {', '.join(known_names)}")
        raise ValueError(f"optim: {name!r} is not an optimizer; {hint}")

    if name.startswith(LOW_RANK_PREFIXES):
        settings = {"optim_target_modules": MODULES_INSIDE_LAYERS, **settings}
    if settings.get("optim") != MUON:
        return cls(**settings)

    # `cls` refuses a name that Trainer does not know, but takes it as an attribute.
    arguments = cls(**{key: value for key, value in settings.items() if key != "optim"})
    arguments.optim = MUON
    return arguments


def check_optimizer(arguments: TrainingArguments, where: str) -> None:
    """Raise UserError where the optimizer's package is not installed, or it cannot train in this launch.

    `where` is the recipe section of the stage.
    """
    if arguments.optim == MUON:
        check_muon(where)
        return

    name = OptimizerNames(arguments.optim).value
    key = f"{where}.training.optim"
    if name.endswith(IN_BACKWARD_SUFFIXES):
        raise UserError(
            f"{key}: {name} changes weights during the backward pass, where no bad step can be dropped and no gradient "
            "clipped; use galore_adamw or adafactor"
        )

    has_sharded_weights = is_engine_enabled("FSDP") or read_layout().splits_layers
    if has_sharded_weights and not name.startswith(DTENSOR_PREFIXES):
        raise UserError(
            f"{key}: {name} cannot step on the parts of weights that FSDP and tensor parallelism give it; use "
            "adamw_torch_fused, adamw_torch_8bit or muon, or launch with ddp or zero2 of accelerate_configs/"
        )
    if name.startswith(LOW_RANK_PREFIXES) and is_engine_enabled("DEEPSPEED"):
        raise UserError(
            f"{key}: {name} projects whole matrices, which DeepSpeed cuts up; launch with ddp of accelerate_configs/, "
            "or use muon or adamw_torch_8bit"
        )

    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except ImportError as error:
        remedy = one_line(error)
        if any(package in str(error) for package in PACKAGES_OF_EXTRA):
            remedy = "pip install 'hf-llm[optimizers]'"
        raise UserError(f"{key}: {name} needs a package that is not installed: {remedy}") from None
    except ValueError:
        pass  # it asks for the model, which is not built yet


def optimizer_class(arguments: TrainingArguments, model: PreTrainedModel | None) -> tuple[Any, dict[str, Any]]:
    """Return the optimizer's class and its settings, as `Trainer.get_optimizer_cls_and_kwargs` does; also Muon's."""
    if arguments.optim != MUON:
        return Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    settings = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "matrices": muon_matrices(model),
    }
    return Muon, settings


def build_optimizer(arguments: TrainingArguments, model: PreTrainedModel) -> Optimizer:
    """Build the optimizer of all trained parameters of a model, without weight decay."""
    cls, settings = optimizer_class(arguments, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = settings.pop("params", [{"params": trained}])
    return cls(groups, **settings)


def low_rank_class(arguments: TrainingArguments, model: PreTrainedModel, decayed: set[nn.Parameter]) -> tuple:
    """Return class and settings of GaLore or APOLLO; `decayed` are the parameters whose weights decay.

    Trainer's own groups for them decay nothing. Its checkpoints of them cannot be loaded, since torch refuses the
    objects that project; here their classes are registered as safe.
    """
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)

    module = sys.modules[cls.__module__]
    classes = [member for member in vars(module).values() if isinstance(member, type)]
    projectors = [kind for kind in classes if kind.__name__.endswith("Projector")]
    torch.serialization.add_safe_globals(projectors)

    groups = []
    for group in settings["params"]:
        with_decay = [parameter for parameter in group["params"] if parameter in decayed]
        without_decay = [parameter for parameter in group["params"] if parameter not in decayed]
        groups.append({**group, "params": with_decay, "weight_decay": arguments.weight_decay})
        groups.append({**group, "params": without_decay, "weight_decay": 0.0})
    return cls, {**settings, "params": groups}
