"""Check the `lora` section of a post-training stage against the model before any work: its modules, and whether the
adapter can be merged and leaves the reference as it is.

None of the checks needs the model's weights. The values themselves are checked in `lora_settings.py`.
"""

import copy
import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.similar_names import suggest_names
from hf_llm.model.adapters import INVALID_ADAPTER
from hf_llm.model.load import build_untrained_model

MAX_OWNERS_NAMED = 3  # architectures that are named for a layer of theirs


def build_lora_config(lora: dict[str, Any], task: str, where: str) -> LoraConfig:
    """Build PEFT's config of the section `<where>.lora` for the `task` (CAUSAL_LM or SEQ_CLS).

    Raises UserError for values that do not go together.
    """
    try:
        return LoraConfig(**{"task_type": task, **lora})
    except INVALID_ADAPTER as error:
        raise UserError(f"{where}.lora: {one_line(error)}") from error


def check_lora_fits(
    lora: dict[str, Any], config: PreTrainedConfig, where: str, task: str = "CAUSAL_LM", reads_output_layer: bool = True
) -> None:
    """Raise UserError where the adapter of `<where>.lora` cannot be attached to, or merged into, a model of `config`.

    The model is built on the meta device, without weights. `reads_output_layer` says whether the stage's loss takes the
    output layer's weights directly, as TRL's do, so that an adapter there would be neither used nor trained.
    """
    skeleton = build_skeleton(config, task)
    layers = describe_layers(skeleton)
    check_names_exist(lora, skeleton, where)

    # Other starts, and KaSA, decompose the weights, which are not here.
    plain = {**lora, "init_lora_weights": lora.get("init_lora_weights", True) is not False, "kasa_config": None}
    peft_config = build_lora_config(plain, task, where)
    try:
        model = get_peft_model(skeleton, peft_config)
        if reads_output_layer:
            check_output_layer(model, where)
        model.merge_and_unload()
    except (*INVALID_ADAPTER, re.error) as error:
        raise UserError(f"{where}.lora: {one_line(error)} ({layers})") from error


def check_names_exist(lora: dict[str, Any], model: nn.Module, where: str) -> None:
    """Raise UserError for a name in a list of the section that fits no part of the model: PEFT ignores it where another
    one fits."""
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    for key in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
        names = lora.get(key)
        if not isinstance(names, list):
            continue
        known = parameters if key == "target_parameters" else modules
        for name in names:
            if any(full == name or full.endswith(f".{name}") for full in known):
                continue
            if key == "target_modules":
                hint = suggest_names(name, _list_layers(model), _describe_origin(name))
                hint = f"{hint} ({describe_layers(model)})" if hint else describe_layers(model)
            else:
                last_parts = sorted({full.rpartition(".")[2] for full in known if full})
                hint = suggest_names(name, last_parts, f"known: {', '.join(last_parts)}")
            raise UserError(f"{where}.lora.{key}: the model has no {name}; {hint}")


def describe_layers(model: nn.Module) -> str:
    """Return which layers of a model take an adapter, by the last parts of their names."""
    return (
        f"layers of this model that take an adapter: {', '.join(_list_layers(model))}; all-linear is all of its "
        "matrices but the embeddings"
    )


def _list_layers(model: nn.Module) -> list[str]:
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _can_be_adapted(module)})


def _describe_origin(name: str) -> str:
    """Say which architectures have a layer of this name, as PEFT knows them; "" where it knows none."""
    table = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    owners = [model_type for model_type, layers in table.items() if name in layers]
    return f"{name} is a layer of {', '.join(owners[:MAX_OWNERS_NAMED])}" if owners else ""


def build_skeleton(config: PreTrainedConfig, task: str) -> nn.Module:
    """Build a model of `config` on the meta device: with one score for the task SEQ_CLS, else a language model."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the names of the modules are the same
    with torch.device("meta"):
        if task == "SEQ_CLS":
            return AutoModelForSequenceClassification.from_config(config)
        return build_untrained_model(config)


def check_output_layer(model: PeftModel, where: str) -> None:
    """Raise UserError where the output layer has an adapter. A whole copy of it (`modules_to_save`) is trained."""
    output_layer = model.get_output_embeddings()
    if output_layer is None or isinstance(output_layer, (nn.Linear, ModulesToSaveWrapper)):
        return
    raise UserError(
        f"{where}.lora: the output layer (lm_head, or embed_tokens where both are one matrix) cannot have an adapter "
        "here: the loss reads its weights directly, so the adapter would not be trained; take lm_head, "
        "ensure_weight_tying and trainable_token_indices out, or name lm_head in modules_to_save"
    )


def _can_be_adapted(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding))
