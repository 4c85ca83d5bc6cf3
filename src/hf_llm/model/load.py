"""Models and tokenizers: new ones from a recipe's `model` section, others loaded from a folder or Hub id.

A model has the class of its objective, which is what it is trained to predict: `causal` (each token from those before
it), `masked` (tokens hidden in a text, as BERT) or `span_corruption` (spans cut out of a text, which a decoder writes,
as T5).
"""

import copy
import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_llm.core.console import hold_notices, print_main
from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.similar_names import suggest_names
from hf_llm.model.adapters import attach_adapter, is_adapter, merge_into_base, read_adapter_base, scores_texts
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.layer_pruning import build_pruned_section, copy_kept_layers
from hf_llm.pipeline.find_model import check_model_path
from hf_llm.pipeline.model_types import CAUSAL, MASKED, OWN_MODEL_TYPE, SPAN_CORRUPTION, describe_unknown_model_type
from hf_llm.tokenization.padding import give_padding
from hf_llm.tokenization.text_boundaries import count_ids

INTERMEDIATE_MULTIPLE = 64
PROPORTIONED_KEYS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
PROBE_TOKENS = 8  # that are let through a new model
VOCABULARY_MULTIPLE = 64  # matrix units work on tiles of this many columns
DEFAULT_CONTEXT = 512  # tokens, where neither a model nor its tokenizer names a limit, as T5's do not

AUTO_CLASSES = {
    CAUSAL: AutoModelForCausalLM,
    MASKED: AutoModelForMaskedLM,
    SPAN_CORRUPTION: AutoModelForSeq2SeqLM,
}
OBJECTIVE_DESCRIPTIONS = {
    CAUSAL: "a causal language model, which continues text",
    MASKED: "a masked language model, which fills gaps and does not continue text",
    SPAN_CORRUPTION: "an encoder-decoder, which fills gaps and does not continue text",
}

REWARD_MODEL_WRITES_NOTHING = (
    "is a reward model, which scores texts and writes none; name a model that was not made by hf_llm.reward"
)

# What transformers raises for settings that do not go together.
INVALID_CONFIG = (ValueError, TypeError, KeyError, ImportError, StrictDataclassError)


def config_class(section: dict[str, Any]) -> type[PreTrainedConfig]:
    """Return the config class that a recipe's `model` section names by `model_type`; ours where it names none.

    Raises UserError for a model_type that transformers does not have.
    """
    return find_config_class(section.get("model_type", OWN_MODEL_TYPE))


def find_config_class(model_type: str) -> type[PreTrainedConfig]:
    """Return the config class of a `model_type`. Raises UserError where transformers has none, or one of several."""
    if model_type not in CONFIG_MAPPING:
        raise UserError(describe_unknown_model_type(model_type, CONFIG_MAPPING.keys()))
    cls = CONFIG_MAPPING[model_type]
    refuse_composite(cls)
    return cls


def refuse_composite(cls: type[PreTrainedConfig]) -> None:
    """Raise UserError for a class of several models, of texts and images for one, which this package does not train."""
    names = {*cls.__dataclass_fields__, *cls.attribute_map}
    if not cls.sub_configs or "num_hidden_layers" in names:
        return
    sub_configs = cast("dict[str, type[PreTrainedConfig]]", cls.sub_configs)  # a property of the class
    parts = [getattr(part, "model_type", "") for part in sub_configs.values()]
    texts = [part for part in parts if part in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and part != cls.model_type]
    remedy = "choose a model of texts alone: hf_llm, llama, gpt2 ..."
    if texts:
        remedy = f"its part for texts is model_type: {texts[0]}"
    raise UserError(f"model_type: {cls.model_type} is a model made of several, as for texts and images; {remedy}")


def default_objective(section: dict[str, Any]) -> str:
    """Return the objective of a model of a `model` section where the recipe names none."""
    cls = config_class(section)
    if cls.is_encoder_decoder:
        return SPAN_CORRUPTION
    if section.get("is_decoder"):  # a BERT that sees only what stands before
        return CAUSAL
    return MASKED if cls.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else CAUSAL


def find_objective(config: PreTrainedConfig) -> str:
    """Return the objective of a model of `config`: that of its class, which a saved config names, else the usual."""
    architecture = next(iter(config.architectures or []), "")
    if architecture.endswith("ForMaskedLM"):
        return MASKED
    if architecture.endswith(("ForCausalLM", "LMHeadModel")) and not config.is_encoder_decoder:
        return CAUSAL
    return default_objective({"model_type": config.model_type, "is_decoder": getattr(config, "is_decoder", False)})


def build_without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model of `config` on the meta device. Raises UserError where its class cannot be built so."""
    try:
        with torch.device("meta"):
            return build_untrained_model(config)
    except UserError:
        raise
    except Exception as error:  # each class of transformers checks its settings in its own way, or not at all
        if config.model_type == HfLlmConfig.model_type and not isinstance(error, INVALID_CONFIG):
            raise
        raise UserError(describe_invalid_model(config, error)) from error


def check_shapes(config: PreTrainedConfig) -> bool:
    """Let a few tokens through a model of `config` that has no weights, which takes neither memory nor time.

    Returns whether that was possible: some classes cannot do without weights. Raises UserError where the settings do
    not go together.
    """
    model = build_without_weights(config)
    try:
        with torch.device("meta"):
            pass_tokens(model)
    except NotImplementedError:
        return False
    except UserError as error:
        reason = str(error.__cause__)
        if "meta" in reason or "dtype" in reason:  # operations that are not written for tensors without data
            return False
        raise
    return True


def pass_tokens(model: PreTrainedModel) -> None:
    """Let a few tokens through a model, as an evaluation does. Raises UserError where the shapes disagree."""
    tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                model(input_ids=tokens, decoder_input_ids=tokens)
            else:
                model(input_ids=tokens)
    except NotImplementedError:
        raise
    except Exception as error:
        if model.config.model_type == HfLlmConfig.model_type and not isinstance(error, INVALID_CONFIG):
            raise
        raise UserError(describe_invalid_model(model.config, error)) from error
    finally:
        model.train(was_training)


def describe_invalid_model(config: PreTrainedConfig, error: Exception) -> str:
    """Return what to say of settings with which a class of transformers cannot be built or run."""
    return (
        f"model: {config.model_type} with these settings cannot be built ({type(error).__name__}: {one_line(error)}); "
        f"compare them with the defaults of {type(config).__name__}"
    )


def build_untrained_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model of `config` with random weights, of the class of its objective."""
    return AUTO_CLASSES[find_objective(config)].from_config(config, dtype=dtype)


def resolve_context(config: PreTrainedConfig, context: int | None = None) -> int:
    """Return the tokens of a training window: `context`, else the longest text of the model.

    Raises UserError where the model has no limit of its own.
    """
    window = context or max_text_length(config)
    if not window:
        raise UserError(
            f"pretrain.context: missing; {config.model_type} has relative positions and no context of its own, so name "
            "the tokens of a window, 512 for one"
        )
    return window


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens that a trained model sees at once; of one with relative positions as its tokenizer says."""
    return max_text_length(config) or min(tokenizer.model_max_length, DEFAULT_CONTEXT)


def max_text_length(config: PreTrainedConfig) -> int | None:
    """Return the tokens that a model has positions for; None where they are relative."""
    num_positions = getattr(config, "max_position_embeddings", None)
    if num_positions is None or num_positions < 0:  # XLNet says -1
        return None
    return num_positions - count_unused_positions(config)


def count_unused_positions(config: PreTrainedConfig) -> int:
    """Count the rows of the table of positions that no text uses.

    RoBERTa and its kin count positions from the id of padding on, MPNet from a number of its own.
    """
    if config.model_type == HfLlmConfig.model_type:
        return 0
    probe = copy.deepcopy(config)
    probe.pad_token_id = 0  # the real one may lie beyond the table
    modules = build_without_weights(probe).named_modules()
    for name, module in modules:
        if not name.endswith("position_embeddings") or not isinstance(module, nn.Embedding):
            continue
        if module.padding_idx is not None:
            return 1 + (module.padding_idx or config.pad_token_id)
    return 0


def build_model(
    section: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    context: int | None = None,
    start_from: Path | str | None = None,
    keep_layers: list[int] | None = None,
) -> PreTrainedModel:
    """Build a language model of the `model` section: random weights in float32, vocabulary and special tokens those of
    `tokenizer`, and a context of `context` tokens where the section names none.

    With `start_from`, a folder or Hub id, it has the weights of that model under this section's settings: a longer
    context, other rope_parameters, a window. With `keep_layers` too, it has only these layers of it, and its settings
    where the section names none.

    Raises UserError where the section's keys or values are wrong or do not fit the tokenizer, the context or the
    weights.
    """
    if keep_layers is not None:
        assert start_from is not None  # keep_layers goes with it
        source = load_model(start_from, objective=None)
        assert isinstance(source, PreTrainedModel)  # an adapter comes merged
        section = build_pruned_section(source, section, keep_layers)
        pruned = build_untrained_model(build_config(section, tokenizer, context))
        return copy_kept_layers(source, pruned, keep_layers)

    config = build_config(section, tokenizer, context)
    derived = derive_proportions(config_class(section), section)
    if derived:
        sizes = ", ".join(f"{key} {value:,}" for key, value in derived.items())
        print_main(f"model: {sizes}: not given, in proportion to the hidden size")
    has_checked_shapes = check_shapes(config)
    if start_from:
        model = load_model(start_from, config=config, objective=find_objective(config))
        assert isinstance(model, PreTrainedModel)  # an adapter comes merged
        return model
    model = build_untrained_model(config)
    if not has_checked_shapes:
        pass_tokens(model)
    return model


def build_config(
    section: dict[str, Any], tokenizer: PreTrainedTokenizerBase, context: int | None = None
) -> PreTrainedConfig:
    """Build the config of `build_model`. Raises UserError as that does."""
    cls = config_class(section)
    settings = {cls.attribute_map.get(key, key): value for key, value in section.items() if key != "model_type"}
    check_config_keys(settings, cls)

    defaults = special_token_ids(tokenizer)
    bos_field = cls.__dataclass_fields__.get("bos_token_id")
    if defaults["bos_token_id"] is None and bos_field is not None and bos_field.type is int:
        defaults["bos_token_id"] = defaults["eos_token_id"]  # some classes want one
    for key in ("cls_token_id", "sep_token_id"):
        if key in cls.__dataclass_fields__:
            defaults[key] = getattr(tokenizer, key)  # the config's own is an id of another vocabulary
    if cls.is_encoder_decoder:
        defaults["decoder_start_token_id"] = defaults["pad_token_id"]  # as T5 begins

    num_ids = count_ids(tokenizer)
    vocab_size = math.ceil(num_ids / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    defaults["vocab_size"] = vocab_size
    if settings.get("vocab_size", vocab_size) < num_ids:
        raise UserError(
            f"model.vocab_size: {settings['vocab_size']} is less than the tokenizer's {num_ids} ids; "
            f"leave it out, and the tokenizer decides ({vocab_size})"
        )
    return instantiate_config(cls, settings, defaults, context)


def instantiate_config(
    cls: type[PreTrainedConfig], settings: dict[str, Any], defaults: dict[str, Any], context: int | None
) -> PreTrainedConfig:
    """Build the config of a section's `settings`, with `defaults` for keys that it does not name, and positions for
    texts of `context` tokens.

    Raises UserError for values that do not go together.
    """
    defaults = {**defaults, **derive_proportions(cls, settings)}
    position_key = cls.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    if context and not isinstance(getattr(cls, position_key, None), property):  # XLNet has no limit to set
        defaults = {**defaults, position_key: context}
    try:
        config = cls(**{**defaults, **settings})
        unused = count_unused_positions(config)
    except INVALID_CONFIG as error:
        raise UserError(f"model: {one_line(error)}") from error

    if unused and position_key not in settings:
        config.max_position_embeddings += unused
    longest = max_text_length(config)
    if context and longest and context > longest:
        size = f"{longest + unused}"
        if unused:
            size += f" less {unused} that {config.model_type} leaves unused"
        raise UserError(
            f"pretrain.context: {context} is more than model.max_position_embeddings, {size}; raise that one too"
        )
    return config


def derive_proportions(cls: type[PreTrainedConfig], settings: dict[str, Any]) -> dict[str, int]:
    """Return the sizes that a section does not name and that follow from its `hidden_size`, by their keys in `cls`.

    Intermediate size, heads and key-value heads keep the proportions of the class's defaults, the first in multiples of
    `INTERMEDIATE_MULTIPLE`. A section without `hidden_size` gets none: the class's defaults go together.
    """
    names = {key: cls.attribute_map.get(key, key) for key in PROPORTIONED_KEYS}
    defaults = {}
    for key, name in names.items():
        field = cls.__dataclass_fields__.get(name)
        defaults[key] = field.default if field and isinstance(field.default, int) else None
    width = settings.get(names["hidden_size"])
    default_width = defaults["hidden_size"]
    if not isinstance(width, int) or width < 1 or not default_width:
        return {}

    derived = {}
    scale = width / default_width
    if names["intermediate_size"] not in settings and defaults["intermediate_size"]:
        multiples = math.ceil(defaults["intermediate_size"] * scale / INTERMEDIATE_MULTIPLE)
        derived[names["intermediate_size"]] = multiples * INTERMEDIATE_MULTIPLE

    heads = settings.get(names["num_attention_heads"])
    if heads is None and defaults["num_attention_heads"] and settings.get("head_dim") is None:
        key_value_heads = settings.get(names["num_key_value_heads"]) or 1
        heads = largest_divisor(width, max(1, round(defaults["num_attention_heads"] * scale)), key_value_heads)
        derived[names["num_attention_heads"]] = heads
    if names["num_key_value_heads"] not in settings and defaults["num_key_value_heads"] and isinstance(heads, int):
        share = defaults["num_key_value_heads"] / defaults["num_attention_heads"]
        derived[names["num_key_value_heads"]] = largest_divisor(heads, max(1, round(heads * share)))
    return derived


def largest_divisor(number: int, limit: int, factor: int = 1) -> int:
    """Return the largest divisor of `number` up to `limit` that is a multiple of `factor`; else `factor`."""
    for divisor in range(limit, 0, -1):
        if number % divisor == 0 and divisor % factor == 0:
            return divisor
    return factor


def check_config_keys(settings: dict[str, Any], cls: type[PreTrainedConfig]) -> None:
    """Raise UserError for a key that `cls` does not have: transformers' configs accept any key."""
    known = {*cls.__dataclass_fields__, *cls.attribute_map, "attn_implementation"}
    for key in settings:
        if key not in known:
            hint = suggest_names(key, sorted(known), f"known: {', '.join(sorted(known))}")
            raise UserError(f"model.{key}: {cls.__name__} has no such key; {hint}")


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """Return the ids of padding, begin and end of text.

    Raises UserError where padding does not have a token of its own.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{tokenizer.name_or_path or 'the tokenizer'} pads with {tokenizer.pad_token!r} and ends texts with "
            f"{tokenizer.eos_token!r}; a model learns to stop only where padding has a token of its own: "
            "tokenizer.add_special_tokens({'pad_token': '<|pad|>'})"
        )
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def load_model(
    path: Path | str,
    dtype: torch.dtype | str = torch.float32,
    merge_adapter: bool = True,
    config: PreTrainedConfig | None = None,
    objective: str | None = CAUSAL,
) -> PreTrainedModel | torch.nn.Module:
    """Load the language model of a folder or Hub id, in `dtype` ("auto" for that of the file, which `from_pretrained`
    would take unasked), under its own configuration or `config`. The folder of a LoRA adapter loads with its base,
    merged or as a PeftModel.

    Raises UserError where there is nothing to load, where the model has another `objective` (None for any), or where
    weights are missing, of another shape, or without a place in `config`.
    """
    check_model_path(path)
    if is_adapter(path):
        if scores_texts(path):
            raise UserError(f"{path} {REWARD_MODEL_WRITES_NOTHING}")
        base = load_model(read_adapter_base(path), dtype, config=config, objective=objective)
        assert isinstance(base, PreTrainedModel)  # an adapter comes merged
        model = attach_adapter(base, path)
        return merge_into_base(model) if merge_adapter else model
    try:
        model_objective = check_objective(path, objective)
        model, loading = AUTO_CLASSES[model_objective].from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no model to load: {one_line(error)}") from error
    except UnpicklingError:
        raise UserError(unsafe_pickle_message(path)) from None

    mismatched = [name for name, *_ in loading["mismatched_keys"]]
    lacking = sorted([*loading["missing_keys"], *mismatched])
    if lacking:
        raise UserError(f"{path}: {len(lacking)} weights are missing or of another shape, {lacking[0]} for one")
    unused = sorted(loading["unexpected_keys"])
    if config is not None and unused:
        raise UserError(
            f"{path}: the model section has no place for {len(unused)} of its weights, {unused[0]} for one; give it "
            f"the switches and sizes of {Path(path) / 'config.json'}"
        )
    enable_cache(model.config)
    return model


def enable_cache(config: PreTrainedConfig) -> None:
    """Let a model generate with a key-value cache again, which Trainer switches off in the config that it saves."""
    if getattr(config, "use_cache", None) is False:
        config.use_cache = True


def check_objective(path: Path | str, wanted: str | None = CAUSAL) -> str:
    """Return the objective of the model of a folder or Hub id.

    Raises UserError where that is not what is `wanted` (None for anything), OSError or ValueError where there is no
    model.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    is_reward_model = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    if wanted and is_reward_model:
        raise UserError(f"{path} {REWARD_MODEL_WRITES_NOTHING}")

    objective = find_objective(config)
    if wanted not in (None, objective):
        remedy = "pretrain one with model_type hf_llm, llama, gpt2 ..." if wanted == CAUSAL else "name another model"
        raise UserError(
            f"{path} is {OBJECTIVE_DESCRIPTIONS[objective]}; what is needed here is {OBJECTIVE_DESCRIPTIONS[wanted]}: "
            f"{remedy} (docs/objectives.md)"
        )
    return objective


def unsafe_pickle_message(path: Path | str) -> str:
    """Return what to say of a model whose weights PyTorch has refused to unpickle; its own message tells how to run
    them."""
    return f"{path}: its weights are a pickle that would run a program when loaded; ask for them as safetensors"


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or Hub id; that of the base where an adapter has none of its own.

    It pads with a token of its own where it has one to spare (`give_padding`). Raises UserError where there is none.
    """
    check_model_path(path)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").exists():
        return load_tokenizer(read_adapter_base(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer to load: {one_line(error)}") from error
    give_padding(tokenizer)
    return tokenizer


def load_reward_model(path: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the sequence classifier with one score of a folder or Hub id; of a language model, with a new, random score.

    Raises UserError where there is nothing to load, where other weights than the score's are missing, or where the
    model gives several scores.
    """
    model, _ = load_scorer(path, dtype)
    return model


def load_scorer(path: Path | str, dtype: torch.dtype) -> tuple[PreTrainedModel, bool]:
    """Load as `load_reward_model` does. Return the model, and whether its score came with it."""
    check_model_path(path)
    if is_adapter(path):
        base, _ = load_scorer(read_adapter_base(path), dtype)
        return merge_into_base(attach_adapter(base, path)), scores_texts(path)
    report: list[str] = []
    try:
        # transformers reports which weights are missing or left over; what is wrong among them is told below.
        with hold_notices("transformers.modeling_utils", "LOAD REPORT") as report:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no model to load: {one_line(error)}") from error
    except UnpicklingError:
        raise UserError(unsafe_pickle_message(path)) from None
    except RuntimeError as error:  # of weights of another shape
        reason = "\n".join([one_line(error), *report])
        raise UserError(f"{path} is not a model with one score: {reason}") from error

    missing = sorted(str(key) for key in loading["missing_keys"])
    missing_backbone = [key for key in missing if not key.startswith("score.")]
    if missing_backbone:
        raise UserError(f"{path}: {len(missing_backbone)} weights are missing, {missing_backbone[0]} for one")
    return model, not missing
