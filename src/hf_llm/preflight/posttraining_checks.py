"""Check the sections of post-training: their data, the model they start from, adapters, rewards and training keys."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset

from hf_llm.core.errors import UserError
from hf_llm.core.settings.dataclass_fields import field_types
from hf_llm.core.settings.library_settings import import_class
from hf_llm.data.chat.loaders import (
    FILE_BESIDE,
    ConversationSource,
    load_conversations,
    load_labelled_completions,
    load_preferences,
    load_prompts,
)
from hf_llm.model.load import load_tokenizer
from hf_llm.pipeline.run import StageOutput
from hf_llm.pipeline.stages import STAGES
from hf_llm.posttraining.group_trainer import check_enough_prompts
from hf_llm.posttraining.kto_trainer import check_labels
from hf_llm.posttraining.lora import check_lora_fits
from hf_llm.posttraining.qlora import check_quantization
from hf_llm.posttraining.reward_functions import (
    check_every_completion_scored,
    check_same_tokenizer,
    import_reward_function,
    try_reward_function,
)
from hf_llm.posttraining.rows.overlong_rows import describe_fitted_rows, fit_rows, measure_rows, prompt_limit
from hf_llm.posttraining.rows.sft_dataset import build_sft_rows
from hf_llm.posttraining.sections import PostTrainingSection, RolloutSection, default_completion_length
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.hub_checks import check_repository
from hf_llm.preflight.model_checks import StartingModel, check_arguments, shorten
from hf_llm.preflight.stand_in import (
    BYTES_PER_TOKEN_LIMIT,
    STAND_IN_REWARD,
    save_stand_in,
    stand_in_lora,
    stand_in_training,
    write_stand_in_rows,
)

SAMPLE_ROWS = 1000  # of each source; a smaller source is read whole
INSTALLED_ROWS = 50  # of the documentation on this disk, whose rows are made by us
STAND_IN_ROWS = 16

# The columns of answers that count with the prompt, by folder.
COMPLETIONS = {"dpo": ("chosen", "rejected"), "reward": ("chosen", "rejected"), "kto": ("completion",)}

Loader = Callable[..., tuple[Any, Any, dict[str, Any]]]


def check_section(
    folder: str,
    recipe: Any,
    start: StartingModel,
    has_reward_stage: bool,
    work: Path,
    on_this_host: bool,
    findings: Findings,
) -> None:
    """Check the section of the stage that makes `folder`."""
    section = getattr(recipe, folder)
    task = "SEQ_CLS" if STAGES[folder].kind == "reward_model" else "CAUSAL_LM"
    rows = check_rows(folder, section, recipe.seed, findings)
    if section.lora is not None and start.config is not None:
        findings.attempt(f"{folder}.lora", check_lora_fits, section.lora, start.config, folder, task)
    if section.quantize and on_this_host:
        findings.attempt(f"{folder}.quantize", check_quantization, section.quantize, folder)
    if isinstance(section, RolloutSection):
        check_rewards(folder, section, start, has_reward_stage, rows, findings)

    requested = section.training.get("max_length")
    if requested and start.context and requested > start.context:
        findings.add_problem(
            f"{folder}.training.max_length",
            f"{requested} tokens are more than the {start.context} that the model sees; lower it, or pretrain with a "
            "longer context",
        )
    if on_this_host:
        (class_name,) = get_args(field_types(type(section))["training"])
        check_arguments(folder, import_class(class_name), section.training, recipe.seed, work, findings)
    if start.tokenizer is not None and start.context and not findings.has_problem(folder):
        trainer = findings.attempt(folder, build_stand_in_trainer, folder, recipe, start, work / folder, findings)
        if trainer is not None and rows is not None and folder in ("grpo", "rloo"):
            findings.attempt(folder, check_enough_prompts, trainer, len(rows[0]), folder)
    if rows is not None and start.is_tokenizer_final and start.context and not findings.has_problem(folder):
        findings.attempt(f"{folder}.data", check_lengths, folder, section, recipe.seed, rows, start, findings)


def check_rows(folder: str, section: PostTrainingSection, seed: int, findings: Findings) -> list[Dataset] | None:
    """Read the first rows of every source of a section, all of those with few.

    Returns those to train and to evaluate on; None where they have not all been read, or cannot be used.
    """
    load = select_loader(folder, section)
    sources_are_whole = True
    for position, source in enumerate(section.data):
        key = f"{folder}.data[{position}]"
        if source.hub:
            check_repository(f"{key}.hub", source.hub, "dataset", findings)
            sources_are_whole = False
            continue
        report = findings.attempt(key, read_sample, load, source, section, seed)
        if report is None:
            sources_are_whole = False
        elif report["is_cut"]:
            sources_are_whole = False
            note_dropped(key, report, findings)
    if not sources_are_whole:
        return None
    loaded = findings.attempt(f"{folder}.data", load, section.data, section.evaluation_share, seed, section.allow_drop)
    if loaded is None:
        return None
    train, evaluation, _ = loaded
    if folder == "kto" and findings.attempt("kto.data", check_labels, [train, evaluation]) is None:
        return None if findings.has_problem("kto.data") else [train, evaluation]
    return [train, evaluation]


def check_lengths(
    folder: str, section: PostTrainingSection, seed: int, rows: list[Dataset], start: StartingModel, findings: Findings
) -> None:
    """Note how many rows do not fit the context, and what becomes of them. Raises UserError where none is left."""
    assert start.tokenizer is not None and start.context is not None
    limit = section.training.get("max_length") or start.context
    if folder == "sft":
        report = build_sft_rows(section, seed, start.tokenizer, limit).report
        if report["truncated"]:
            findings.add_note(
                f"sft: {report['truncated']:,} of {report['kept']:,} rows are longer than {limit:,} tokens"
            )
        return

    completions = COMPLETIONS.get(folder, ())
    if isinstance(section, RolloutSection):
        limit = prompt_limit(start.context, default_completion_length(section, start.context), folder)
    lengths = measure_rows(rows, completions, start.tokenizer)
    if lengths.too_long(limit):
        _, counts = fit_rows(rows, completions, start.tokenizer, limit, section, folder)
        findings.add_note(f"{folder}: {describe_fitted_rows(lengths, limit, counts, section)}")


def read_sample(load: Loader, source: ConversationSource, section: PostTrainingSection, seed: int) -> dict[str, Any]:
    """Read the first rows of one source. Raises UserError where not one can be used, or too few of a small source."""
    limit = INSTALLED_ROWS if source.installed else SAMPLE_ROWS
    sample = replace(source, take=min(source.take or limit, limit), share=None)
    most = 1 - 1e-9  # of a sample, only what holds for the whole source is refused
    _, _, report = load([sample], 0.0, seed, most)
    read = report["kept"] + sum(report["dropped"].values())
    read += sum(count for reason, count in report["left_out"].items() if not reason.startswith(f"{FILE_BESIDE}:"))
    is_cut = read >= limit and source.take != limit
    if not is_cut and not source.installed:
        load([sample], 0.0, seed, section.allow_drop)
    return {**report, "is_cut": is_cut}


def read_first_rows(folder: str, section: PostTrainingSection, seed: int) -> tuple[list[Dataset], bool] | None:
    """Read the first rows of every source: those to train and to evaluate on, and whether these are all there are.

    None where a source lies on the Hub, or cannot be read.
    """
    if any(source.hub for source in section.data):
        return None
    sources = []
    for source in section.data:
        sources.append(replace(source, take=min(source.take or SAMPLE_ROWS, SAMPLE_ROWS), share=None))
    try:
        train, evaluation, report = select_loader(folder, section)(sources, section.evaluation_share, seed, 1 - 1e-9)
    except UserError:
        return None
    is_whole = report["kept"] < SAMPLE_ROWS or all(source.take for source in section.data)
    return [train, evaluation], is_whole


def select_loader(folder: str, section: PostTrainingSection) -> Loader:
    """Return the function that loads the rows of a stage."""
    if folder == "sft":
        return partial(load_conversations, documents=True)
    if folder == "kto":
        return load_labelled_completions
    if folder in ("grpo", "rloo") or getattr(section, "rows", "") == "conversations":
        return load_prompts
    return load_preferences


def note_dropped(key: str, report: dict[str, Any], findings: Findings) -> None:
    dropped = sum(report["dropped"].values())
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
        findings.add_note(f"{key}: of the first {SAMPLE_ROWS:,} rows {dropped:,} cannot be used ({reasons})")


def check_rewards(
    folder: str,
    section: RolloutSection,
    start: StartingModel,
    has_reward_stage: bool,
    rows: list[Dataset] | None,
    findings: Findings,
) -> None:
    """Check what gives the rewards of a stage: functions, a model that the recipe names, or the run's own.

    The functions are called on the first `rows`.
    """
    key = f"{folder}.reward_functions"
    if section.reward_functions:
        check_reward_functions(key, section, rows, findings)
    if section.reward_model:
        key = f"{folder}.reward_model"
        if Path(section.reward_model).is_dir():
            if start.tokenizer is not None and start.is_tokenizer_final:
                findings.attempt(key, check_reward_tokenizer, section.reward_model, start.tokenizer)
        else:
            check_repository(key, section.reward_model, "model", findings)
    elif not section.reward_functions and not has_reward_stage:
        findings.add_problem(
            folder, "nothing gives a reward: name a reward_model or reward_functions, or write a `reward` section"
        )


def check_reward_functions(key: str, section: RolloutSection, rows: list[Dataset] | None, findings: Findings) -> None:
    """Import each of the functions that a section names, and call it on the first `rows`."""
    functions = []
    for name in section.reward_functions:
        function = findings.attempt(key, import_reward_function, name)
        if function is not None:
            functions.append(function)
    if rows is None:
        return

    scores = []
    for function in functions:
        function_scores = findings.attempt(key, try_reward_function, function, rows[0])
        if function_scores is not None:
            scores.append(function_scores)
    if len(scores) == len(section.reward_functions) and not section.reward_model:
        findings.attempt(key, check_every_completion_scored, torch.stack(scores), functions)


def check_reward_tokenizer(path: str, tokenizer: Any) -> None:
    check_same_tokenizer(path, load_tokenizer(path), tokenizer)


def count_sampled_together(training: dict[str, Any]) -> int:
    """Count the completions that GRPO or RLOO samples together; of other trainers, the rows of a step."""
    if training.get("generation_batch_size"):
        return training["generation_batch_size"]
    micro_batches = training.get("steps_per_generation") or training.get("gradient_accumulation_steps", 1)
    return training.get("per_device_train_batch_size", 8) * micro_batches


def build_stand_in_trainer(folder: str, recipe: Any, start: StartingModel, work: Path, findings: Findings) -> Any:
    """Build the trainer of a stage for a tiny model and made-up rows, so that its library checks every setting.

    Returns the trainer. Raises UserError for what is refused. Any other error is a note, and None is returned: it may
    be the stand-in's fault.
    """
    assert start.tokenizer is not None and start.context is not None
    section = getattr(recipe, folder)
    context = start.context
    if not start.is_tokenizer_final:
        context *= BYTES_PER_TOKEN_LIMIT
    work.mkdir(parents=True)
    sources: dict[str, Path | str] = {"start": save_stand_in(work / "start", start.tokenizer, context)}
    is_rollout = isinstance(section, RolloutSection)
    rewards = {}
    if is_rollout:
        rewards = {"reward_functions": [STAND_IN_REWARD] * len(section.reward_functions)}
    if is_rollout and (section.reward_model or not section.reward_functions):
        sources["reward"] = save_stand_in(work / "reward", start.tokenizer, context, is_reward_model=True)

    takes_pairs = folder in ("reward", "dpo", "kto") or getattr(section, "rows", "") == "preferences"
    count = max(STAND_IN_ROWS, 2 * count_sampled_together(section.training))
    rows = write_stand_in_rows(work / "rows.jsonl", count, takes_pairs)
    small_section = replace(
        section,
        data=[rows],
        training=stand_in_training(section.training),
        lora=stand_in_lora(section.lora),
        model=None,
        quantize=None,
        evaluation_share=0.25,
        **rewards,
    )
    stand_in = replace(recipe, **{folder: small_section})
    output = StageOutput(path=work / "run" / folder, folder=folder, settings={}, inputs={}, sources=sources)
    module = importlib.import_module(STAGES[folder].module)
    try:
        trainer, _ = module.build_stage_trainer(stand_in, output)
        return trainer
    except UserError:
        raise
    except Exception as error:
        findings.add_note(f"{folder}: its trainer could not be tried beforehand ({shorten(error)})")
        return None
