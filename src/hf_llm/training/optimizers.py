"""Optimizers by Trainer's own names, and Muon: what each needs, and what Trainer leaves out when it makes one.

docs/optimizers.md says when to use which.
"""

import difflib
import sys
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_llm.core.errors import UserError
from hf_llm.parallel.layout import launched_layout, uses
from hf_llm.training.muon import MUON, Muon, check_muon, matrices_of

Arguments = TypeVar("Arguments", bound=TrainingArguments)

LOW_RANK = ("galore", "apollo")
IN_BACKWARD = ("layerwise", "lomo")  # how the names of those end that make their steps amid the backward pass
ON_SHARDS = ("adamw_torch", "sgd")  # how the names of those begin that know DTensors
INSIDE_LAYERS = r".*\.\d+\..*"  # the names of modules below a numbered one
IN_EXTRA = ("torchao", "bitsandbytes", "galore_torch")  # packages of hf-llm[optimizers]


def arguments_of(cls: type[Arguments], settings: dict[str, Any]) -> Arguments:
    """`cls(**settings)`, where `optim` may be muon, and GaLore and APOLLO project the matrices inside layers.

    Raises ValueError for an optimizer that there is not, and whatever `cls` raises.
    """
    name = str(settings.get("optim", MUON))
    known = [MUON, *(kind.value for kind in OptimizerNames)]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(f"optim: there is no {name!r}; {f'did you mean {near[0]}?' if near else ', '.join(known)}")
    if name.startswith(LOW_RANK):
        settings = {"optim_target_modules": INSIDE_LAYERS, **settings}
    if settings.get("optim") != MUON:
        return cls(**settings)
    arguments = cls(**{key: value for key, value in settings.items() if key != "optim"})
    arguments.optim = MUON
    return arguments


def check_optimizer(arguments: TrainingArguments, where: str) -> None:
    """Raise UserError where the optimizer's package is not installed, or it cannot train the stage launched here."""
    if arguments.optim == MUON:
        return check_muon(where)
    name, key = OptimizerNames(arguments.optim).value, f"{where}.training.optim"
    if name.endswith(IN_BACKWARD):
        raise UserError(
            f"{key}: {name} changes weights amid the backward pass, where no bad step can be dropped and no gradient "
            "clipped; use galore_adamw or adafactor"
        )
    if uses("FSDP") or launched_layout().splits_layers:
        if not name.startswith(ON_SHARDS):
            raise UserError(
                f"{key}: {name} makes no step on the parts of weights that FSDP and tensor parallelism leave it; use "
                "adamw_torch_fused, adamw_torch_8bit or muon, or launch with ddp or zero2 of accelerate_configs/"
            )
    if name.startswith(LOW_RANK) and uses("DEEPSPEED"):
        raise UserError(
            f"{key}: {name} projects whole matrices, which DeepSpeed cuts up; launch with ddp of accelerate_configs/, "
            "or use muon or adamw_torch_8bit"
        )
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except ImportError as error:
        ours = any(package in str(error) for package in IN_EXTRA)
        remedy = "pip install 'hf-llm[optimizers]'" if ours else " ".join(str(error).split())
        raise UserError(f"{key}: {name} needs a package that is not installed: {remedy}") from None
    except ValueError:
        pass  # it asks for the model, which is not there yet


def optimizer_class(arguments: TrainingArguments, model: PreTrainedModel | None) -> tuple[Any, dict[str, Any]]:
    """What `Trainer.get_optimizer_cls_and_kwargs` gives: the class and its settings, of Muon too."""
    if arguments.optim != MUON:
        return Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    settings = {"lr": arguments.learning_rate, "betas": (arguments.adam_beta1, arguments.adam_beta2)}
    return Muon, {**settings, "eps": arguments.adam_epsilon, "matrices": matrices_of(model)}


def new_optimizer(arguments: TrainingArguments, model: PreTrainedModel) -> Optimizer:
    """The optimizer of all of a model's parameters that are trained, weight decay left out."""
    cls, settings = optimizer_class(arguments, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return cls(settings.pop("params", [{"params": trained}]), **settings)


def low_rank_optimizer(arguments: TrainingArguments, model: PreTrainedModel, decayed: set[nn.Parameter]) -> tuple:
    """Class and settings of GaLore or APOLLO; `decayed` are the parameters whose weights decay.

    Trainer's own groups for them decay nothing, and cannot be loaded from a checkpoint: torch refuses the objects that
    project, unless it is told that their classes are safe.
    """
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    module = vars(sys.modules[cls.__module__]).values()
    projectors = [kind for kind in module if isinstance(kind, type) and kind.__name__.endswith("Projector")]
    torch.serialization.add_safe_globals(projectors)
    groups = []
    for group in settings["params"]:
        for decays in (True, False):
            members = [parameter for parameter in group["params"] if (parameter in decayed) == decays]
            groups.append({**group, "params": members, "weight_decay": arguments.weight_decay if decays else 0.0})
    return cls, {**settings, "params": groups}
