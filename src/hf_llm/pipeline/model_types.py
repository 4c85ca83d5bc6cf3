"""Which config class the `model` section of a recipe belongs to, and what its models can be trained on: names only.

Nothing here imports transformers, so that a recipe can be parsed before that is done.
"""

from collections.abc import Iterable
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.settings.library_settings import ARGUMENT, read_model_types
from hf_llm.core.similar_names import suggest_names

OWN_MODEL_TYPE = "hf_llm"
OWN_CONFIG_CLASS = "hf_llm.model.configuration_hf_llm.HfLlmConfig"
FIND_CONFIG_CLASS = "hf_llm.model.load.find_config_class"

# Objectives: what a model is trained to predict.
CAUSAL = "causal"
MASKED = "masked"
SPAN_CORRUPTION = "span_corruption"


def name_config_class(section: dict[str, Any]) -> str:
    """Return the config class that a recipe's `model` section names by `model_type`, as `load_class` takes it.

    Raises UserError for a model_type that transformers does not have.
    """
    model_type = section.get("model_type", OWN_MODEL_TYPE)
    if model_type == OWN_MODEL_TYPE:
        return OWN_CONFIG_CLASS
    known = read_model_types()
    if known and model_type not in known:
        raise UserError(describe_unknown_model_type(model_type, known))
    return f"{FIND_CONFIG_CLASS}{ARGUMENT}{model_type}"


def describe_unknown_model_type(model_type: Any, known: Iterable[str]) -> str:
    """Return the message for a model_type that is not among the `known` ones."""
    hint = suggest_names(model_type, known, "use hf_llm, or a model_type of transformers")
    return f"model_type: {model_type!r} is unknown; {hint}"
