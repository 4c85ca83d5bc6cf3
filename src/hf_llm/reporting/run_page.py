"""Render one run as a self-contained HTML page: numbers, curves, samples, and the sources of the data."""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from markupsafe import Markup

from hf_llm.core.format import format_count, format_duration, format_megabytes
from hf_llm.core.jsonl import alerts_file, read_rows
from hf_llm.core.licenses import normalize_license
from hf_llm.core.manifest import package_versions, read_manifest
from hf_llm.evaluation.aggregate import Aggregate
from hf_llm.evaluation.benchmark_scores import BenchmarkScore, list_not_run, list_shown_scores
from hf_llm.evaluation.gates import check_run_gates
from hf_llm.evaluation.metrics import (
    METRICS,
    TEST_SPLIT,
    format_scores,
    list_charts,
    metrics_in,
    score_columns,
    title_chart,
)
from hf_llm.pipeline.stages import ALIGNED_MODELS, MODELS, STAGES, Stage, is_requested
from hf_llm.reporting import templates
from hf_llm.reporting.lineage import (
    count_parameters,
    describe_test_split,
    finite_values,
    format_license_shares,
    format_share,
    kept_licenses,
    list_sources,
    read_lineage,
    read_log_history,
    read_samples,
)
from hf_llm.reporting.plan_accuracy import compare_with_plan
from hf_llm.reporting.secrets import redact_secrets
from hf_llm.reporting.svg_charts import Point, Series, draw_line_chart


def render_run_page(root: Path, tree: dict[str, Any]) -> str:
    """Render the run in folder `root`, made by the recipe `tree`, as HTML. Unfinished stages are shown as missing."""
    manifests = _read_manifests(root)
    models = [folder for folder in MODELS if folder in manifests]
    evaluation = {"models": {}, "samples": []}
    if "evaluation" in manifests:
        evaluation = _read_evaluation(root)
    corpus_ledger = manifests.get("corpus", {}).get("facts", {}).get("ledger")

    # What the template shows.
    facts = {
        "title": tree["name"],
        "summary": _summarize_run(root, manifests, models),
        "numbers": _list_key_numbers(root, manifests, models, evaluation),
        "stages": _list_stages(tree, manifests),
        "plan": _compare_plan(root, tree),
        "evaluation": evaluation,
        "score_columns": [
            {"title": metric.title, "direction": metric.direction}
            for metric in score_columns(evaluation["models"].values())
        ],
        "scores_by_model": {name: dict(format_scores(scores)) for name, scores in evaluation["models"].items()},
        "gates": check_run_gates(root, tree) if "evaluation" in manifests else [],
        "domains": _list_domains(evaluation["models"]),
        "benchmarks": _list_benchmarks(evaluation["models"]),
        "aggregates": _describe_aggregates(evaluation["models"]),
        "not_run": _list_not_run(evaluation["models"]),
        "test_split": _describe_test_split(root, manifests, evaluation["models"]),
        "license_shares": [(name, format_share(share)) for name, share in kept_licenses(manifests)],
        "ledger": _summarize_ledger(corpus_ledger) if corpus_ledger else None,
        "sources": list_sources(manifests),
        "licenses": sorted({normalize_license(name) for entry in manifests.values() for name in entry["licenses"]}),
        "versions": manifests[models[-1]]["versions"] if models else package_versions(),
        "digests": {folder: manifest["digest"] for folder, manifest in manifests.items()},
        "recipe": yaml.safe_dump(redact_secrets(tree), sort_keys=False, allow_unicode=True, width=100),
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    template = templates.html_environment().get_template("page.html")
    return template.render(
        **redact_secrets(facts),
        trainings=[_describe_training(root / folder, STAGES[folder]) for folder in models],
        style=templates.read_asset("page.css"),
        script=templates.read_asset("page.js"),
    )


def _read_manifests(root: Path) -> dict[str, dict]:
    """Read the manifests of the run's finished stages by folder, except the report's own."""
    manifests = {}
    for folder in STAGES:
        manifest = read_manifest(root / folder)
        if manifest and folder != "report":
            manifests[folder] = manifest
    return manifests


def _read_evaluation(root: Path) -> dict[str, Any]:
    """Read the results of the evaluation stage: scores by model, and answers to the same prompts."""
    results = json.loads((root / "evaluation" / "results.json").read_text(encoding="utf-8"))
    return {"models": results.get("models", {}), "samples": results.get("samples", [])}


def _list_domains(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """List the bits per byte of each domain of text, by model."""
    domains: dict[str, dict[str, str]] = {}
    for model, scores in models.items():
        for domain, values in scores.get("domains", {}).items():
            domains.setdefault(domain, {})[model] = METRICS["bits_per_byte"].format_table_value(values["bits_per_byte"])
    return domains


def _list_benchmarks(models: dict[str, dict[str, Any]]) -> list[tuple[str, BenchmarkScore]]:
    """List the score of each benchmark and each group, one model below the other, as (model, score)."""
    rows: dict[str, list[tuple[str, BenchmarkScore]]] = {}
    for model, scores in models.items():
        for row in list_shown_scores(scores):
            rows.setdefault(row.title, []).append((model, row))
    return [pair for pairs in rows.values() for pair in pairs]


def _describe_aggregates(models: dict[str, dict[str, Any]]) -> list[str]:
    """Say the mean of each model's benchmarks that is centred on chance."""
    lines = []
    for model, scores in models.items():
        if scores.get("aggregate"):
            lines.append(f"{model}: {Aggregate(**scores['aggregate']).describe()}.")
    return lines


def _list_not_run(models: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """List the benchmarks that were not run, as (model, benchmark, reason); those of a group in one row."""
    names: dict[tuple[str, str], list[str]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for model, scores in models.items():
        for name, reason in list_not_run(scores):
            group = scores["benchmarks"][name].get("group") or name
            names.setdefault((model, group), []).append(name)
            reasons.setdefault((model, group), reason)
    listed = []
    for (model, group), members in names.items():
        title = members[0] if len(members) == 1 else f"{len(members)} tasks of {group}"
        listed.append((model, title, reasons[model, group]))
    return listed


def _summarize_run(root: Path, manifests: dict[str, dict], models: list[str]) -> str:
    """Describe the run in one sentence."""
    if not models:
        return f"{len(manifests)} of {len(STAGES) - 1} stages are finished; no model has been trained yet."

    starts_elsewhere = manifests.get("base", {}).get("settings", {}).get("pretrain.start_from")
    is_from_scratch = "base" in models and not starts_elsewhere
    steps = ["trained from scratch" if is_from_scratch else "trained further from another model"]
    if "sft" in models:
        steps.append("fine-tuned to chat")
    if any(folder in ALIGNED_MODELS for folder in models):
        steps.append("aligned to preferences")
    history = steps[0] if len(steps) == 1 else f"{', '.join(steps[:-1])} and {steps[-1]}"

    parameters = count_parameters(root / models[0])
    size = f" of {format_count(parameters)} parameters" if parameters else ""
    return f"A language model{size}, {history}."


def _list_key_numbers(
    root: Path, manifests: dict[str, dict], models: list[str], evaluation: dict[str, Any]
) -> list[tuple[str, str]]:
    """List the few numbers at the top of the page, as (value, title)."""
    numbers = []

    parameters = count_parameters(root / models[0]) if models else None
    if parameters:
        numbers.append((format_count(parameters), "parameters"))

    # The most important scores of the first evaluated model, and those that tell how good the last one is.
    evaluated = list(evaluation["models"].items())
    of_last_model = metrics_in("score of the last model")
    for name, scores in evaluated[:1]:
        shown = [metric for metric in score_columns([scores]) if metric.scored_on == TEST_SPLIT]
        for metric in shown[:2]:
            direction = f"; {metric.direction}" if metric.better else ""
            title = f"{metric.title} on the test split ({name}{direction})"
            numbers.append((metric.format_table_value(scores[metric.key]), title))
    for name, scores in evaluated[-1:]:
        for metric in of_last_model:
            if metric.key in scores:
                value = scores[metric.key]
                count = metric.describe_count(value, {f"eval_{key}": number for key, number in scores.items()})
                numbers.append((metric.format_table_value(value), f"{metric.title} ({name}; {count})"))

    log = read_log_history(root / "base")
    for metric in metrics_in("report"):
        values = finite_values(log, metric.key)
        if values:
            numbers.append((metric.format_value(median(values)), f"median {metric.title} in pretraining"))

    if manifests:
        seconds = sum(manifest["seconds"] for manifest in manifests.values())
        numbers.append((format_duration(seconds), "for all stages together"))
    return numbers


def _list_stages(tree: dict[str, Any], manifests: dict[str, dict]) -> list[dict[str, Any]]:
    """List a row for each folder the recipe asks for: its duration, and its headline, None where it is not finished."""
    rows = []
    for folder in STAGES:
        if folder == "report" or not is_requested(tree, folder):
            continue
        row = {"folder": folder, "duration": "", "headline": None}
        if folder in manifests:
            row["duration"] = format_duration(manifests[folder]["seconds"])
            row["headline"] = manifests[folder]["headline"]
        rows.append(row)
    return rows


def _compare_plan(root: Path, tree: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Compare the plan with what pretraining took, as rows (quantity, predicted, actual, error)."""
    rows = []
    for entry in compare_with_plan(root, tree):
        rows.append((entry.what, f"{entry.predicted:,.4g}", f"{entry.actual:,.4g}", f"{entry.error:+.0%}"))
    return rows


def _describe_test_split(root: Path, manifests: dict[str, dict], models: dict[str, dict[str, Any]]) -> str:
    """Say what is known of the test split and the training data of the evaluated models, by name with their scores."""
    lineages = {}
    for name, scores in models.items():
        # A model of another run may have the name of one of this run's.
        path = Path(scores.get("path", root / name))
        is_own = (path.parent.name, path.name) == (root.name, name)
        lineages[name] = read_lineage(root / name if is_own else path)
    tokens_digest = manifests.get("evaluation", {}).get("inputs", {}).get("tokens")
    return " ".join(describe_test_split(lineages, tokens_digest))


def _describe_training(folder: Path, stage: Stage) -> dict[str, Any]:
    """Collect what the page shows of one training stage: charts, alerts, and the completions sampled meanwhile."""
    samples_by_prompt: dict[str, list] = {}
    for sample in redact_secrets(read_samples(folder)):
        samples_by_prompt.setdefault(sample["prompt"], []).append(sample)
    return {
        "folder": folder.name,
        "title": stage.title,
        "evaluated_on": stage.evaluated_on,
        "charts": _draw_charts(read_log_history(folder), stage.evaluated_on),
        "samples": samples_by_prompt,
        "alerts": redact_secrets(read_rows(alerts_file(folder))),
    }


def _draw_charts(log: list[dict[str, Any]], evaluated_on: str) -> list[Markup]:
    """Draw the charts that a training log has data for; the first is shown large.

    `evaluated_on` says what the validation values are of.
    """
    drawn: dict[str, Markup] = {}
    for chart, lines in list_charts().items():
        series = [Series(legend, _points(log, key)) for legend, key in lines]
        title = title_chart(chart, evaluated_on)
        figure = draw_line_chart(title, series, chart.from_zero, note=chart.note)
        if figure and chart.hidden_by not in drawn:
            drawn[chart.title] = figure
    return list(drawn.values())


def _points(log: list[dict[str, Any]], key: str) -> list[Point]:
    """Return the (step, value) pairs of one logged number."""
    return [(entry["step"], float(entry[key])) for entry in log if isinstance(entry.get(key), int | float)]


def _summarize_ledger(ledger: dict[str, Any]) -> dict[str, Any]:
    """Summarize the corpus's ledger (`hf_llm.data.corpus.ledger`): what was read and what was kept, by source."""
    rows = []
    for source, entry in ledger["sources"].items():
        first, *_, last = entry["rules"].values()
        licenses = format_license_shares(entry)
        rows.append((source, first["documents"], first["bytes"], last["documents"], last["bytes"], licenses))
    splits = [
        f"{name} {split['documents']:,} ({format_megabytes(split['bytes'])})"
        for name, split in ledger["splits"].items()
    ]
    return {"rows": rows, "splits": ", ".join(splits)}
