"""A smaller model cut from a larger one: some of its layers, with their weights.

DistilBERT keeps every second layer of BERT (https://arxiv.org/abs/1910.01108, section 3).
"""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_llm.core.errors import UserError


def student_section(teacher: PreTrainedModel, section: dict[str, Any], keep_layers: list[int]) -> dict[str, Any]:
    """The `model` section of a student that keeps the layers `keep_layers` of `teacher`: the teacher's settings, and
    over them those of `section`.

    Raises UserError for layers that are not there, and for a section that says otherwise.
    """
    config, count = teacher.config, len(keep_layers)
    name_of_layers(teacher)
    layers = config.num_hidden_layers
    if not keep_layers or sorted({*keep_layers}) != keep_layers or not 0 <= keep_layers[0] <= keep_layers[-1] < layers:
        raise UserError(
            f"pretrain.keep_layers: {keep_layers} does not fit; list layers of the teacher in their order, "
            f"from 0 to {layers - 1}"
        )
    for key, own in (("model_type", config.model_type), ("num_hidden_layers", count)):
        if section.get(key, own) != own:
            raise UserError(f"model.{key}: {section[key]!r} does not fit pretrain.keep_layers, which makes it {own!r}")
    settings = {key: value for key, value in config.to_dict().items() if key in _own_keys(type(config))}
    for key, value in settings.items():
        if "layer" in key and isinstance(value, list) and len(value) == layers:  # one entry for each layer
            settings[key] = [value[layer] for layer in keep_layers]
    settings[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = count
    given = {config.attribute_map.get(key, key): value for key, value in section.items()}
    return {**settings, **given, "model_type": config.model_type}


def with_layers_of(teacher: PreTrainedModel, student: PreTrainedModel, keep_layers: list[int]) -> PreTrainedModel:
    """`student` with the weights of the teacher: layer `i` those of layer `keep_layers[i]`, all else as it is.

    Raises UserError where the two are not of the same shapes.
    """
    prefix = name_of_layers(teacher) + "."
    weights = {}
    for name, tensor in teacher.state_dict().items():
        if name.startswith(prefix):
            layer, _, rest = name.removeprefix(prefix).partition(".")
            if int(layer) not in keep_layers:
                continue
            name = f"{prefix}{keep_layers.index(int(layer))}.{rest}"
        weights[name] = tensor
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"pretrain.keep_layers: the layers kept do not fit the student (the first layer of some models is of "
            f"another kind than the rest: keep it): {' '.join(str(error).split())}"
        ) from None
    student.tie_weights()
    return student


def name_of_layers(model: PreTrainedModel) -> str:
    """The name of the module that lists a model's layers. Raises UserError where there is none with one for each."""
    lists = (
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    )
    found = None if model.config.is_encoder_decoder else next(lists, None)
    if found is None:
        raise UserError(
            f"pretrain.keep_layers: {model.config.model_type} has no single row of layers with weights of their own, "
            "so none can be taken out; start from a model of another type"
        )
    return found


def _own_keys(cls: type[PreTrainedConfig]) -> set[str]:
    """The settings of a model_type, its special tokens left out, which the tokenizer decides."""
    classes = cls.__mro__[: cls.__mro__.index(PreTrainedConfig)]
    keys = {key for each in classes for key in inspect.get_annotations(each)}
    return {key for key in keys if key in cls.__dataclass_fields__ and not key.endswith("_token_id")}
