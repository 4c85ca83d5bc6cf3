"""A smaller model cut from a larger one: some of its layers, with their weights.

DistilBERT keeps every second layer of BERT (https://arxiv.org/abs/1910.01108, section 3).
"""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_llm.core.errors import UserError


def build_pruned_section(teacher: PreTrainedModel, section: dict[str, Any], keep_layers: list[int]) -> dict[str, Any]:
    """Return the `model` section of a model that keeps the layers `keep_layers` of `teacher`, the larger one: its
    settings, and over them those of `section`.

    Raises UserError for layers that it does not have, and for a section that contradicts `keep_layers`.
    """
    config = teacher.config
    find_layer_list(teacher)
    check_kept_layers(keep_layers, config.num_hidden_layers)
    for key, value in (("model_type", config.model_type), ("num_hidden_layers", len(keep_layers))):
        if section.get(key, value) != value:
            raise UserError(
                f"model.{key}: {section[key]!r} does not fit pretrain.keep_layers, which makes it {value!r}"
            )

    own_keys = _architecture_keys(type(config))
    settings = {key: value for key, value in config.to_dict().items() if key in own_keys}
    for key, value in settings.items():
        has_entry_per_layer = isinstance(value, list) and len(value) == config.num_hidden_layers
        if "layer" in key and has_entry_per_layer:
            settings[key] = [value[layer] for layer in keep_layers]
    settings[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(keep_layers)

    section_settings = {config.attribute_map.get(key, key): value for key, value in section.items()}
    return {**settings, **section_settings, "model_type": config.model_type}


def check_kept_layers(keep_layers: list[int], num_layers: int) -> None:
    """Raise UserError unless `keep_layers` are different layers out of `num_layers`, in their order."""
    is_ordered = sorted(set(keep_layers)) == keep_layers
    if not keep_layers or not is_ordered or keep_layers[0] < 0 or keep_layers[-1] >= num_layers:
        raise UserError(
            f"pretrain.keep_layers: {keep_layers} does not fit; list layers of the larger model in their order, "
            f"from 0 to {num_layers - 1}"
        )


def copy_kept_layers(source: PreTrainedModel, pruned: PreTrainedModel, keep_layers: list[int]) -> PreTrainedModel:
    """Give `pruned` the weights of `source`: layer `i` those of layer `keep_layers[i]`, all else as it is.

    Raises UserError where the two do not have the same shapes.
    """
    prefix = find_layer_list(source) + "."
    weights = {}
    for name, tensor in source.state_dict().items():
        if name.startswith(prefix):
            layer, _, name_in_layer = name.removeprefix(prefix).partition(".")
            if int(layer) not in keep_layers:
                continue
            name = f"{prefix}{keep_layers.index(int(layer))}.{name_in_layer}"
        weights[name] = tensor

    try:
        pruned.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"pretrain.keep_layers: the layers kept do not fit the model section (the first layer of some models is of "
            f"another kind than the others: keep it): {' '.join(str(error).split())}"
        ) from None
    pruned.tie_weights()
    return pruned


def find_layer_list(model: PreTrainedModel) -> str:
    """Return the name of the module that lists a model's layers.

    Raises UserError where there is none with an entry for each layer, or two of them, as in an encoder-decoder.
    """
    config = model.config
    if not config.is_encoder_decoder:
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
                return name
    raise UserError(
        f"pretrain.keep_layers: {config.model_type} does not have a single list of layers with weights of their own, "
        "so none can be taken out; start from a model of another type"
    )


def _architecture_keys(cls: type[PreTrainedConfig]) -> set[str]:
    """Return the settings of a model_type, without its special tokens, which the tokenizer decides."""
    own_classes = cls.__mro__[: cls.__mro__.index(PreTrainedConfig)]
    annotated = {key for own_class in own_classes for key in inspect.get_annotations(own_class)}
    return {key for key in annotated if key in cls.__dataclass_fields__ and not key.endswith("_token_id")}
