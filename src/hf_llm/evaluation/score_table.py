"""The results of an evaluation as text: a headline, a table of scores and one of benchmarks."""

from collections.abc import Mapping
from typing import Any

from hf_llm.core.format import align_columns
from hf_llm.evaluation.benchmark_scores import list_shown_scores
from hf_llm.evaluation.metrics import METRICS, score_columns

Models = Mapping[str, Mapping[str, Any]]  # the scores of each model, as in results.json

# Scores that the headline names beside bits per byte.
HEADLINE_ACCURACIES = ("answered_right", "masked_accuracy", "span_exact_match")

AT_CHANCE = "?"  # behind a score that is not distinguishable from chance


def describe_models(models: Models) -> str:
    """Return the numbers that matter of each model, in one line."""
    parts = []
    bits = _list_values(models, "bits_per_byte", ".3f")
    if bits:
        parts.append(f"{bits} bits per byte on the test split (lower is better)")
    for key in HEADLINE_ACCURACIES:
        shares = _list_values(models, key, ".1%")
        if shares:
            parts.append(f"{shares} {METRICS[key].title}")
    benchmarks = _count_benchmarks(models)
    if benchmarks:
        parts.append(benchmarks)
    return ", ".join(parts) or f"answers of {_count(len(models), 'model')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _list_values(models: Models, key: str, number_format: str) -> str:
    """Return `base 0.157, sft 0.346`, of the models that have this score; empty where none has."""
    values = [f"{name} {scores[key]:{number_format}}" for name, scores in models.items() if key in scores]
    return ", ".join(values)


def _count_benchmarks(models: Models) -> str:
    """Return `24 benchmarks (116 more were not run)`; empty without benchmarks."""
    run = set()
    not_run = set()
    for scores in models.values():
        for name, result in scores.get("benchmarks", {}).items():
            (not_run if result.get("not_run") else run).add(name)
    if not run and not not_run:
        return ""
    rest = f" ({len(not_run - run)} more were not run)" if not_run - run else ""
    return f"{_count(len(run), 'benchmark')}{rest}"


def format_model_table(models: Models) -> str:
    """Return one line for each model, with the columns that any of them has."""
    metrics = score_columns(models.values())
    has_bits = any(metric.key == "bits_per_byte" for metric in metrics)  # which is the loss in other units
    if not has_bits and any("loss" in scores for scores in models.values()):
        metrics.append(METRICS["loss"])

    table = [["model", *(metric.title for metric in metrics), "tokens"]]
    for name, scores in models.items():
        row = [name]
        for metric in metrics:
            row.append(metric.format_table_value(scores[metric.key]) if metric.key in scores else "")
        row.append(f"{scores['tokens']:,}" if "tokens" in scores else "")
        table.append(row)
    return align_columns(table)


def format_benchmark_table(models: Models) -> str:
    """Return a line for each benchmark, with the primary score of each model and its interval; empty without any."""
    values: dict[str, dict[str, str]] = {}  # by title, then by model
    chances: dict[str, str] = {}
    is_any_at_chance = False
    for model, scores in models.items():
        for row in list_shown_scores(scores):
            is_any_at_chance |= row.score.is_at_chance
            mark = AT_CHANCE if row.score.is_at_chance else ""
            values.setdefault(row.title, {})[model] = row.value + mark
            chances[row.title] = "" if row.score.chance is None else row.score.format_number(row.score.chance)
    if not values:
        return ""

    table = [["benchmark", *models, "chance"]]
    for title, by_model in values.items():
        cells = [by_model.get(model, "") for model in models]
        table.append([title, *cells, chances[title]])
    text = align_columns(table)
    return f"{text}\n  {AT_CHANCE} not distinguishable from chance" if is_any_at_chance else text
