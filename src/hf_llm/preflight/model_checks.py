"""Check the `model` and `pretrain` sections: the config, the shapes, the batch, the trainer of a stand-in."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.recipe import Settings
from hf_llm.model.adapters import is_adapter
from hf_llm.model.load import (
    CAUSAL,
    build_config,
    check_shapes,
    load_tokenizer,
    resolve_context,
)
from hf_llm.pipeline.run import StageOutput
from hf_llm.pipeline.stages import STAGES
from hf_llm.pipeline.tokens_folder import read_index, require_tokenizer
from hf_llm.planning.memory_estimate import build_planned_config
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.hub_checks import check_repository
from hf_llm.preflight.named_files import check_named_model
from hf_llm.preflight.stand_in import stand_in_training, write_stand_in_tokens
from hf_llm.tokenization.compare_tokenizers import check_shards_tokenizer
from hf_llm.tokenization.train import TokenizerSection
from hf_llm.training.arguments import build_training_arguments, check_deepspeed_config, split_batch
from hf_llm.training.batch_rampup import first_step_updates
from hf_llm.training.objectives import Objective
from hf_llm.training.schedules import check_schedule_fits

MESSAGE_CHARS = 300  # of an error of a library


@dataclass
class StartingModel:
    """What is known of the model that a stage starts from, which may not exist yet."""

    config: PreTrainedConfig | None
    """None for a model on the Hub that has not been downloaded."""
    tokenizer: PreTrainedTokenizerBase | None
    """Its tokenizer, or a byte-level stand-in for one that has not been trained; None if neither is known."""
    is_tokenizer_final: bool
    """Whether that is the tokenizer itself, so that tokens can be counted."""
    context: int | None
    """Tokens that it sees at once."""


def plan_base_model(
    recipe: Any, tokenizer: PreTrainedTokenizerBase | None, is_final: bool, vocabulary: int | None, findings: Findings
) -> StartingModel:
    """Check the `model` section, and return the model that the pretraining will make."""
    section = recipe.pretrain
    config = findings.attempt("model", build_base_config, recipe, tokenizer if is_final else None, vocabulary)
    context = None
    if config is not None:
        context = findings.attempt("pretrain.context", resolve_context, config, section.context)
        findings.attempt("model", check_shapes, config)
    return StartingModel(config, tokenizer, is_final, context)


def build_base_config(
    recipe: Any, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int | None
) -> PreTrainedConfig:
    """Build the config of the base model with its tokenizer, or with a `vocabulary` of so many tokens."""
    section = recipe.pretrain
    model = recipe.model
    if section.keep_layers is not None:
        model = {"num_hidden_layers": len(section.keep_layers), **model}
    if tokenizer is not None:
        return build_config(model, tokenizer, section.context)
    size = vocabulary or TokenizerSection().vocab_size
    if model.get("vocab_size", size) < size:
        raise UserError(
            f"model.vocab_size: {model['vocab_size']} is less than the tokenizer's {size} tokens; leave it out, and "
            "the tokenizer decides"
        )
    return build_planned_config(model, size, section.context)


def load_starting_model(key: str, path: str, findings: Findings) -> StartingModel:
    """Return what is known of a model that the recipe names: a folder, or an id on the Hub."""
    unknown = StartingModel(None, None, False, None)
    if findings.attempt(key, check_named_model, key, path) is None and findings.has_problem(key):
        return unknown
    if not Path(path).is_dir():
        check_repository(key, path, "model", findings)
        if findings.has_problem(key):
            return unknown
    return findings.attempt(key, read_starting_model, key, path) or unknown


def read_starting_model(key: str, path: str) -> StartingModel | None:
    """Read config and tokenizer of a model on this disk; None for one that has to be downloaded."""
    if is_adapter(path):
        return None  # its stage reads its base
    is_local = Path(path).is_dir()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        tokenizer = load_tokenizer(path) if is_local else None
    except (OSError, ValueError) as error:
        if not is_local:
            return None
        raise UserError(f"{key}: {path} is not a model folder: {shorten(error)}") from error
    context = getattr(config, "max_position_embeddings", None)
    return StartingModel(config, tokenizer, tokenizer is not None, context)


def check_pretraining_launch(section: Any, context: int, findings: Findings) -> None:
    """Check what depends on this launch: its number of processes, and its DeepSpeed config."""
    findings.attempt("pretrain", split_step, section, context)
    findings.attempt("pretrain.training", check_deepspeed_config, "pretrain")


def split_step(section: Any, context: int) -> None:
    """Split a step into micro-batches for this launch. Raises UserError where it cannot be split evenly."""
    updates = first_step_updates(section.tokens_per_step, section.batch_warmup)
    split_batch(section.tokens_per_step, context, section.training, "pretrain", updates)


def check_pretraining(
    recipe: Any, objective: Objective, base: StartingModel, work: Path, on_this_host: bool, findings: Findings
) -> None:
    """Check the `pretrain` section: the arguments, what it starts from, and the trainer of a stand-in."""
    section = recipe.pretrain
    if section.start_from is not None:
        load_starting_model("pretrain.start_from", section.start_from, findings)
    if section.tokens is not None:
        findings.attempt("pretrain.tokens", check_tokens, section)
    if section.tokenizer is not None:
        findings.attempt("pretrain.tokenizer", load_tokenizer, section.tokenizer)

    if on_this_host:
        check_arguments("pretrain", TrainingArguments, section.training, recipe.seed, work, findings)
    can_build = objective.kind == CAUSAL and base.context and base.tokenizer is not None
    if can_build and not findings.has_problem("pretrain"):
        findings.attempt("pretrain", build_stand_in_pretraining, recipe, objective, base, work / "base")


def check_tokens(section: Any) -> None:
    """Raise UserError where `pretrain.tokens` holds no shards, or their tokenizer is not at hand or another one."""
    read_index(Path(section.tokens))
    if section.tokenizer is None:
        require_tokenizer(section.tokens)
    else:
        check_shards_tokenizer(section.tokens, load_tokenizer(section.tokenizer), "pretrain.tokenizer")


def check_arguments(
    folder: str, arguments_class: type, settings: Settings, seed: int, work: Path, findings: Findings
) -> None:
    """Build the library's training arguments from a section's settings, for this device."""
    settings = Settings({**settings, "report_to": "none"})
    settings.pop("push_to_hub", None)
    arguments = findings.attempt(
        f"{folder}.training", build_training_arguments, arguments_class, settings, work / "arguments", seed, folder
    )
    if arguments is not None and arguments.max_steps > 0:
        findings.attempt(f"{folder}.training", check_schedule_fits, arguments, arguments.max_steps, folder)


def build_stand_in_pretraining(recipe: Any, objective: Objective, base: StartingModel, folder: Path) -> None:
    """Build the trainer of the pretraining for a tiny model."""
    tokens = write_stand_in_tokens(folder / "tokens", base.tokenizer, base.context)
    tokenizer_folder = folder / "tokenizer"
    base.tokenizer.save_pretrained(tokenizer_folder)
    section = replace(
        recipe.pretrain,
        training=stand_in_training(recipe.pretrain.training),
        context=base.context,
        start_from=None,
        keep_layers=None,
    )
    model = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    stand_in = replace(recipe, pretrain=section, model=Settings(model))
    sources: dict[str, Path | str] = {"tokens": tokens, "tokenizer": tokenizer_folder}
    output = StageOutput(path=folder / "output", folder="base", settings={}, inputs={}, sources=sources)
    importlib.import_module(STAGES["base"].module).build_pretraining_trainer(stand_in, objective, output)


def shorten(error: Exception) -> str:
    """Return the message of a library's error on one line, cut where it is long."""
    text = one_line(error)
    return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]} ..."
