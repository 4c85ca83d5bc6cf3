"""Models and tokenizers by recipe or by folder: new from a `model` section, or loaded with an explicit dtype.

A model has the class of its objective, what it learns from text: `causal` (each token from those before it), `masked`
(tokens hidden in a text, as BERT) or `span_corruption` (the gaps of a text, written by a decoder, as T5).

Importing this module makes `model_type: hf_llm` known to transformers' Auto classes.
"""

import copy
import difflib
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_llm.core.errors import UserError
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.layer_pruning import student_section, with_layers_of
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM, HfLlmForSequenceClassification, HfLlmModel

AutoConfig.register("hf_llm", HfLlmConfig)
AutoModel.register(HfLlmConfig, HfLlmModel)
AutoModelForCausalLM.register(HfLlmConfig, HfLlmForCausalLM)
AutoModelForSequenceClassification.register(HfLlmConfig, HfLlmForSequenceClassification)

VOCABULARY_MULTIPLE = 64  # matrix units work on tiles of this many columns
USUAL_CONTEXT = 512  # where neither a model nor its tokenizer names one, as T5's
CAUSAL, MASKED, SPAN_CORRUPTION = "causal", "masked", "span_corruption"
AUTO_CLASSES = {
    CAUSAL: AutoModelForCausalLM,
    MASKED: AutoModelForMaskedLM,
    SPAN_CORRUPTION: AutoModelForSeq2SeqLM,
}
IN_WORDS = {
    CAUSAL: "a causal language model, which continues text",
    MASKED: "a masked language model, which fills gaps and does not continue text",
    SPAN_CORRUPTION: "an encoder-decoder, which fills gaps and does not continue text",
}


def config_class(section: dict[str, Any]) -> type[PreTrainedConfig]:
    """The config class that a recipe's `model` section names by `model_type`; ours where it says nothing."""
    name = section.get("model_type", "hf_llm")
    if name not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(name), CONFIG_MAPPING.keys(), 1)
        hint = f"did you mean {near[0]}?" if near else "use hf_llm, or a model_type of transformers"
        raise UserError(f"model_type: {name!r} is unknown; {hint}")
    return CONFIG_MAPPING[name]


def usual_objective(section: dict[str, Any]) -> str:
    """What a model of a `model` section learns from text, unless something else is asked for."""
    cls = config_class(section)
    if cls.is_encoder_decoder:
        return SPAN_CORRUPTION
    if section.get("is_decoder"):  # a BERT that sees only what stands before
        return CAUSAL
    return MASKED if cls.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else CAUSAL


def objective_of(config: PreTrainedConfig) -> str:
    """What a model of `config` learns from text: as its class says, which a saved one names, else what is usual."""
    architecture = next(iter(config.architectures or []), "")
    if architecture.endswith("ForMaskedLM"):
        return MASKED
    if architecture.endswith(("ForCausalLM", "LMHeadModel")) and not config.is_encoder_decoder:
        return CAUSAL
    return usual_objective({"model_type": config.model_type, "is_decoder": getattr(config, "is_decoder", False)})


def untrained(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of `config` with random weights, of the class of its objective."""
    return AUTO_CLASSES[objective_of(config)].from_config(config, dtype=dtype)


def context_of(config: PreTrainedConfig, context: int | None = None) -> int:
    """The tokens of a window: `context`, else the model's own. Raises UserError where it has none of its own."""
    found = context or longest_text(config)
    if not found:
        raise UserError(
            f"pretrain.context: missing; {config.model_type} has relative positions and no context of its own, so name "
            "the tokens of a window, 512 for one"
        )
    return found


def context_with(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens that a trained model sees at once; of one with relative positions as its tokenizer says."""
    return longest_text(config) or min(tokenizer.model_max_length, USUAL_CONTEXT)


def longest_text(config: PreTrainedConfig) -> int | None:
    """The tokens that a model has positions for; None where they are relative."""
    rows = getattr(config, "max_position_embeddings", None)
    return rows and rows - positions_unused(config)


def positions_unused(config: PreTrainedConfig) -> int:
    """Rows of the table of positions that no text uses: RoBERTa and its kin count from the id of padding on, MPNet from
    a number of its own."""
    if config.model_type == HfLlmConfig.model_type:
        return 0
    probe = copy.deepcopy(config)
    probe.pad_token_id = 0  # there may be fewer rows than the real one
    with torch.device("meta"):
        parts = untrained(probe).named_modules()
    tables = [part for name, part in parts if name.endswith("position_embeddings") and isinstance(part, nn.Embedding)]
    first = next((table.padding_idx for table in tables if table.padding_idx is not None), None)
    return 0 if first is None else 1 + (first or config.pad_token_id)


def new_model(
    section: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    context: int | None = None,
    start_from: Path | str | None = None,
    keep_layers: list[int] | None = None,
) -> PreTrainedModel:
    """A language model of the `model` section: random weights in float32, vocabulary and special tokens those of
    `tokenizer`, and a context of `context` tokens where the section names none. With `start_from`, a folder or Hub id,
    its weights under this section's settings instead: a longer context, other rope_parameters, a window. With
    `keep_layers` too, these of its layers alone, and its own settings where the section says nothing.

    Raises UserError where the section's keys or values are wrong or do not fit the tokenizer, the context or the
    weights.
    """
    if keep_layers is not None:
        teacher = load_model(start_from, objective=None)
        section = student_section(teacher, section, keep_layers)
        return with_layers_of(teacher, untrained(new_config(section, tokenizer, context)), keep_layers)
    config = new_config(section, tokenizer, context)
    if start_from:
        return load_model(start_from, config=config, objective=objective_of(config))
    try:
        return untrained(config)
    except (ValueError, TypeError, KeyError, ImportError, StrictDataclassError) as error:
        raise UserError(f"model: {one_line(error)}") from error


def new_config(
    section: dict[str, Any], tokenizer: PreTrainedTokenizerBase, context: int | None = None
) -> PreTrainedConfig:
    """The config of `new_model`. Raises UserError as that does."""
    cls = config_class(section)
    settings = {cls.attribute_map.get(key, key): value for key, value in section.items() if key != "model_type"}
    check_keys(settings, cls)
    fitted = special_tokens(tokenizer)
    # Where a config has these, its own are ids of another vocabulary.
    fitted |= {
        key: getattr(tokenizer, key) for key in ("cls_token_id", "sep_token_id") if key in cls.__dataclass_fields__
    }
    fitted["vocab_size"] = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if settings.get("vocab_size", fitted["vocab_size"]) < len(tokenizer):
        raise UserError(
            f"model.vocab_size: {settings['vocab_size']} is less than the tokenizer's {len(tokenizer)} tokens; "
            f"leave it out, and the tokenizer decides ({fitted['vocab_size']})"
        )
    if cls.is_encoder_decoder:
        fitted["decoder_start_token_id"] = fitted["pad_token_id"]  # as T5 begins
    return config_of(cls, settings, fitted, context)


def config_of(
    cls: type[PreTrainedConfig], settings: dict[str, Any], fitted: dict[str, Any], context: int | None
) -> PreTrainedConfig:
    """The config of a section's `settings` over what is `fitted` to the tokenizer, for texts of `context` tokens where
    they say nothing of it. Raises UserError for values that do not go together."""
    rows = cls.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    if context:
        fitted = {**fitted, rows: context}
    try:
        config = cls(**{**fitted, **settings})
        unused = positions_unused(config)
    except (ValueError, TypeError, KeyError, ImportError, StrictDataclassError) as error:
        raise UserError(f"model: {one_line(error)}") from error
    if unused and rows not in settings:
        config.max_position_embeddings += unused
    longest = longest_text(config)
    if context and longest and context > longest:
        room = f"{longest + unused}" + (f" less {unused} that {config.model_type} leaves unused" if unused else "")
        raise UserError(f"context: {context} is more than model.max_position_embeddings, {room}; raise that one too")
    return config


def check_keys(settings: dict[str, Any], cls: type[PreTrainedConfig]) -> None:
    """Raise UserError for a key that `cls` has not: transformers' configs swallow what they do not know."""
    known = {*cls.__dataclass_fields__, *cls.attribute_map, "attn_implementation"}
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"model.{key}: {cls.__name__} has no such key{hint}")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The ids of padding, begin and end of text. Raises UserError where padding has no token of its own."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{tokenizer.name_or_path or 'the tokenizer'} pads with {tokenizer.pad_token!r} and ends texts with "
            f"{tokenizer.eos_token!r}; a model learns to stop only where padding has a token of its own: "
            "tokenizer.add_special_tokens({'pad_token': '<|pad|>'})"
        )
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def one_line(error: Exception) -> str:
    """The message of another library's error, its line breaks taken out."""
    return " ".join(str(error).split())


def load_model(
    path: Path | str,
    dtype: torch.dtype | str = torch.float32,
    merge_adapter: bool = True,
    config: PreTrainedConfig | None = None,
    objective: str | None = CAUSAL,
) -> PreTrainedModel | torch.nn.Module:
    """The language model of a folder or Hub id, in `dtype` ("auto" for that of the file, which `from_pretrained` would
    take unasked), under its own configuration or `config`. The folder of a LoRA adapter loads with its base, merged or
    as a PeftModel.

    Raises UserError where there is nothing to load, where it has learnt another `objective` than is asked for (None
    for any), or weights are missing, of another shape, or without a place in `config`.
    """
    check_exists(path)
    adapter = Path(path) / "adapter_config.json"
    if adapter.exists():
        from peft import PeftModel

        base = load_model(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"], dtype)
        model = PeftModel.from_pretrained(base, path)
        return model.merge_and_unload() if merge_adapter else model
    try:
        learnt = check_objective(path, objective)
        model, found = AUTO_CLASSES[learnt].from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # said below, by name
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no model to load: {one_line(error)}") from error
    except UnpicklingError:
        raise UserError(evil_pickle(path)) from None
    if found["missing_keys"] or found["mismatched_keys"]:
        lacking = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
        raise UserError(f"{path}: {len(lacking)} weights are missing or of another shape, {lacking[0]} for one")
    if config is not None and found["unexpected_keys"]:
        unused = sorted(found["unexpected_keys"])
        raise UserError(
            f"{path}: the model section has no place for {len(unused)} of its weights, {unused[0]} for one; give it "
            f"the switches and sizes of {Path(path) / 'config.json'}"
        )
    return model


def check_objective(path: Path | str, wanted: str | None = CAUSAL) -> str:
    """What the model of a folder or Hub id has learnt from text. Raises UserError where that is not what is `wanted`
    (None for anything), OSError or ValueError where there is no model."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if wanted and any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        raise UserError(f"{path} scores texts and writes none; name a model that was not made by hf_llm.reward")
    learnt = objective_of(config)
    if wanted not in (None, learnt):
        remedy = "pretrain one with model_type hf_llm, llama, gpt2 ..." if wanted == CAUSAL else "name another model"
        raise UserError(
            f"{path} is {IN_WORDS[learnt]}; what is needed here is {IN_WORDS[wanted]}: {remedy} (docs/objectives.md)"
        )
    return learnt


def evil_pickle(path: Path | str) -> str:
    """What to say of a model whose weights PyTorch has refused to unpickle; its own message tells how to run them."""
    return f"{path}: its weights are a pickle that would run a program when loaded; ask for them as safetensors"


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id. Raises UserError where there is none."""
    check_exists(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer to load: {one_line(error)}") from error


def check_exists(path: Path | str) -> None:
    """Raise UserError for a path that is no folder and cannot be a Hub id, `owner/name` or `name`."""
    folder = Path(path)
    looks_local = folder.is_absolute() or str(path).startswith((".", "~", "runs/")) or len(folder.parts) > 2
    if not folder.is_dir() and looks_local:
        raise UserError(f"there is no folder {path}; name one made by a stage, such as runs/<name>/base, or a Hub id")


def load_reward_model(path: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The sequence classifier with one score of a folder or Hub id; of a language model, with a new, random score.

    Raises UserError where there is nothing to load, where other weights than the score's are missing, or where the
    model gives several scores.
    """
    return load_scorer(path, dtype)[0]


def load_scorer(path: Path | str, dtype: torch.dtype) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its score came with it."""
    check_exists(path)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no model to load: {one_line(error)}") from error
    except UnpicklingError:
        raise UserError(evil_pickle(path)) from None
    except RuntimeError as error:  # of weights of another shape
        raise UserError(f"{path} is no model with one score: {one_line(error)}") from error
    lacking = sorted(str(key) for key in loading["missing_keys"])
    others = [key for key in lacking if not key.startswith("score.")]
    if others:
        raise UserError(f"{path}: {len(others)} weights are missing, {others[0]} for one")
    return model, not lacking
