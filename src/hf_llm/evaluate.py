"""Score the models of a run on its test split, and let them answer the same prompts; makes runs/<name>/evaluation.

    python -m hf_llm.evaluate recipes/gpt125m.yaml
    python -m hf_llm.evaluate recipes/gpt125m.yaml '--evaluate.models=[runs/gpt125m/base, runs/other/base]'

Writes results.json: loss, perplexity and bits per byte of each model, and its answers. Of a model that fills gaps
masked-token accuracy and pseudo-perplexity, or the share of spans generated exactly (docs/objectives.md).
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import read_manifest, write_json
from hf_llm.data.chat.loaders import ConversationSource, load_questions
from hf_llm.evaluation.metrics import METRICS, score_columns
from hf_llm.evaluation.questions import score_replies
from hf_llm.pipeline.model_types import CAUSAL, MASKED
from hf_llm.pipeline.run import Run, licenses_of, read_run
from hf_llm.pipeline.stage_inputs import name_models
from hf_llm.pipeline.stages import LANGUAGE_MODELS
from hf_llm.preflight.before_work import check_before_work
from hf_llm.reporting.model_card import CARD_FILE, write_model_card
from hf_llm.tokenization.compare_tokenizers import check_shards_tokenizer
from hf_llm.training.sections import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PROMPTS = ["What does the function sorted do?", "What is a generator?", "Explain what an exception is."]
TOKENS_PER_BATCH = 8192
PROMPTS_PER_BATCH = 32
MIN_COLUMN_WIDTH = 10

# Scores that the headline names beside bits per byte.
HEADLINE_ACCURACIES = ("answered_right", "masked_accuracy", "span_exact_match")

Scores = dict[str, Any]  # one model's scores, as in results.json


@dataclass
class Evaluation:
    """The `evaluate` section."""

    tokens: int = 1 << 18
    """Tokens of the test split to predict."""
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))
    """Prompts that each model answers."""
    questions: list[ConversationSource] = field(default_factory=list)
    """Rows of questions whose answers are known: a reply that holds the row's answer is right."""
    max_new_tokens: int = 64
    """Tokens of the longest answer."""
    models: list[str] | None = None
    """Folders or Hub ids to evaluate instead of this run's models."""


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    evaluate: Evaluation = field(default_factory=Evaluation)
    """The test text, the prompts and the models."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "evaluation")
    section = recipe.evaluate
    models = list_models(run, section)
    with run.open_stage("evaluation", recipe, {"tokens": None, **models}) as output:
        if output.is_complete:
            return

        questions = load_questions(section.questions) if section.questions else []
        results: dict[str, Any] = {
            "models": {},
            "samples": [{"prompt": prompt, "answers": {}} for prompt in section.prompts],
            "questions": [{**question, "replies": {}} for question in questions],
        }
        for name, path in models.items():
            print_main(f"evaluating {path}")
            model, tokenizer = load_model_and_tokenizer(path, output.sources["tokens"])
            objective = read_objective(model, path)
            scores = score_model(model, tokenizer, output.sources["tokens"], section.tokens, objective)
            answers = answer_prompts(model, tokenizer, path, section.prompts, section.max_new_tokens)
            for sample, answer in zip(results["samples"], answers, strict=True):
                sample["answers"][name] = answer
            if questions:
                prompts = [question["prompt"] for question in questions]
                replies = answer_prompts(model, tokenizer, path, prompts, section.max_new_tokens)
                scores |= score_replies(replies, [question["answer"] for question in questions])
                for question, reply in zip(results["questions"], replies, strict=True):
                    question["replies"][name] = reply
            results["models"][name] = {"path": str(path), "objective": objective.kind, **scores}

        write_json(output.path / "results.json", results)
        print_main(format_table(results["models"]))
        headline = format_headline(results["models"])
        output.complete(headline, licenses_of(*models.values()), results=results["models"])
        update_model_cards(run, list(models.values()))


def update_model_cards(run: Run, models: list[Path | str]) -> None:
    """Write the cards of the run's models again, now with their test scores.

    A card on the Hub stays as it is; the command that replaces it is printed.
    """
    for model in models:
        folder = Path(model)
        manifest = read_manifest(folder)
        if manifest is None or folder.parent.resolve() != run.root.resolve():
            continue
        arguments = manifest["facts"].get("arguments", {})
        repository = arguments.get("hub_model_id") if arguments.get("push_to_hub") else None
        write_model_card(folder, repository)
        if repository:
            card = folder / CARD_FILE
            command = shlex.join(["hf", "upload", repository, str(card), CARD_FILE])
            print_main(f"{card} has the test scores now; {command}")


def list_models(run: Run, section: Evaluation) -> dict[str, Path | str]:
    """Return the models to evaluate, by short name: those the recipe lists, else every model this run makes."""
    if section.models is None:
        return {folder: run.ensure_stage(folder) for folder in LANGUAGE_MODELS if run.is_requested(folder)}
    return {name: run.resolve_source(model) for name, model in name_models(section.models).items()}


def load_model_and_tokenizer(path: Path | str, tokens: Path | str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a model on the best device of this machine, and its tokenizer.

    Raises UserError where that is not the tokenizer that encoded the test text, in the folder `tokens`.
    """
    import torch

    from hf_llm.model.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(path)
    try:
        check_shards_tokenizer(tokens, tokenizer, "evaluate.models")
    except UserError as error:
        raise UserError(
            f"{error}\n  {path} has another tokenizer than the test text; evaluate it in a run of its own tokenizer "
            "(bits per byte compare across runs)"
        ) from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return load_model(path, objective=None).to(device), tokenizer


def read_objective(model: "PreTrainedModel", path: Path | str) -> Objective:
    """Return the objective of a model: with the settings of its training for ours, with the papers' for another."""
    from hf_llm.model.load import find_objective
    from hf_llm.training.objectives import fill_objective_defaults

    manifest = read_manifest(Path(path)) or {}
    settings = manifest.get("facts", {}).get("objective")
    if settings:
        return Objective(**settings)
    return fill_objective_defaults(Objective(), find_objective(model.config), model.config.model_type)


def score_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tokens: Path, max_tokens: int, objective: Objective
) -> Scores:
    """Score the model's objective on at most `max_tokens` tokens of the test split of the folder `tokens`."""
    from hf_llm.data.tokens.byte_lengths import token_byte_lengths
    from hf_llm.data.tokens.token_dataset import TokenWindows
    from hf_llm.evaluation.denoising import score_masked, score_spans
    from hf_llm.evaluation.perplexity import score_next_tokens
    from hf_llm.model.load import context_length

    context = context_length(model.config, tokenizer)
    windows = TokenWindows(tokens, "test", context).limit_tokens(max_tokens)
    batch_size = max(1, TOKENS_PER_BATCH // context)
    if objective.kind == CAUSAL:
        windows.measure_bytes(token_byte_lengths(tokenizer))
        return score_next_tokens(model, windows, batch_size)
    corruption = objective.corruption(tokenizer, context)
    if objective.kind == MASKED:
        return score_masked(model, windows, corruption, batch_size)
    return score_spans(model, tokenizer, windows, corruption, batch_size)


def answer_prompts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    path: Path | str,
    prompts: list[str],
    max_new_tokens: int,
) -> list[str]:
    """Return greedy answers to the prompts: the reply of a chat model, the completion of a base model, and the prompt
    with its gaps filled of one that fills gaps."""
    from hf_llm.inference.generate import generate_replies
    from hf_llm.inference.infill import complete_or_infill

    is_chat = is_chat_model(path, tokenizer)
    answers = []
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        batch = prompts[start : start + PROMPTS_PER_BATCH]
        if is_chat:
            conversations = [[{"role": "user", "content": prompt}] for prompt in batch]
            answers += generate_replies(model, tokenizer, conversations, max_new_tokens, do_sample=False)
        else:
            answers += complete_or_infill(model, tokenizer, batch, max_new_tokens)
    return answers


def is_chat_model(path: Path | str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a model is trained to chat. Our base models carry a chat template too, so their manifest
    decides."""
    manifest = read_manifest(Path(path))
    return manifest["folder"] != "base" if manifest else tokenizer.chat_template is not None


def format_headline(models: dict[str, Scores]) -> str:
    """Return the one number that matters of each model."""
    parts = []
    bits = [f"{name} {scores['bits_per_byte']:.3f}" for name, scores in models.items() if "perplexity" in scores]
    if bits:
        parts.append(f"{', '.join(bits)} bits per byte on the test split (lower is better)")
    for key in HEADLINE_ACCURACIES:
        shares = [f"{name} {scores[key]:.1%}" for name, scores in models.items() if key in scores]
        if shares:
            parts.append(f"{', '.join(shares)} {METRICS[key].title}")
    return ", ".join(parts)


def format_table(models: dict[str, Scores]) -> str:
    """Return one line for each model, with the columns that any of them has."""
    metrics = score_columns(models.values())
    has_loss = any("loss" in scores for scores in models.values())
    if has_loss and "bits_per_byte" not in {metric.key for metric in metrics}:  # which is the loss in other units
        metrics.append(METRICS["loss"])

    titles = ["model", *(metric.title for metric in metrics), "tokens"]
    rows = []
    for name, scores in models.items():
        cells = [metric.format_table_value(scores[metric.key]) if metric.key in scores else "" for metric in metrics]
        rows.append([name, *cells, f"{scores['tokens']:,}" if "tokens" in scores else ""])

    name_width = max(len(row[0]) for row in [titles, *rows])
    widths = [max(MIN_COLUMN_WIDTH, len(title)) for title in titles[1:]]
    lines = []
    for name, *cells in [titles, *rows]:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join(["", name.ljust(name_width), *aligned]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
