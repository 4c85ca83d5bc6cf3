"""Collect the results of an experiment as plain values, one row for each variant, and format them for a terminal."""

import math
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hf_llm.core.format import align_columns, format_number
from hf_llm.core.manifest import read_manifest
from hf_llm.experiments.bits_per_byte import measure_bits_per_byte
from hf_llm.experiments.estimate import PlannedVariant
from hf_llm.experiments.seed_statistics import INCONCLUSIVE, LEVEL, compare_paired, mean_interval
from hf_llm.experiments.train_variants import Training, is_finished, run_in_subprocess
from hf_llm.experiments.variants import plan_pretraining
from hf_llm.reporting.lineage import read_log_history

BITS_PER_BYTE = "eval_bits_per_byte"
LOSS = "eval_loss"
METRIC_NAMES = {BITS_PER_BYTE: "bits per byte", LOSS: "loss"}


def collect_results(
    name: str, planned: list[PlannedVariant], trainings: list[Training], equal: str, compared: bool
) -> dict[str, Any]:
    """Collect everything the page shows, as plain values.

    Variants are in the order of `planned`; where they are `compared`, the baseline is first and the others follow by
    their score, those without one last.
    """
    metric, scores = read_scores(trainings)
    rows = []
    for entry in planned:
        own_trainings = [training for training in trainings if training.variant.name == entry.variant.name]
        rows.append(_build_row(entry, own_trainings, scores))

    if compared:
        baseline = rows[0]
        rows[1:] = sorted(rows[1:], key=lambda row: (row["mean"] is None, row["mean"]))
        for row in rows[1:]:
            difference, interval, verdict = compare_paired(row["scores"], baseline["scores"])
            row["difference"] = difference
            row["difference_interval"] = interval
            row["verdict"] = verdict
    return {
        "name": name,
        "equal": equal,
        "compared": compared,
        "metric": METRIC_NAMES[metric],
        "seeds": sorted({training.seed for training in trainings}),
        "variants": rows,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def _build_row(entry: PlannedVariant, trainings: list[Training], scores: dict[Path, float]) -> dict[str, Any]:
    scores_by_seed = {training.seed: scores[training.root] for training in trainings if training.root in scores}
    speeds = []
    failures = {}
    for training in trainings:
        speeds += _read_logged_values(training, "tokens_per_second")
        if training.seed not in scores_by_seed and training.failure:
            failures[training.seed] = training.failure

    return {
        "name": entry.variant.name,
        "changes": entry.variant.changes,
        "fitted": entry.variant.fitted,
        "parameters": entry.parameters,
        "flops_per_token": entry.flops_per_token,
        "tokens": entry.tokens,
        "tokens_per_second": median(speeds) if speeds else None,
        "scores": scores_by_seed,
        "failures": failures,
        "runs": {training.seed: str(training.root) for training in trainings},
        "mean": fmean(scores_by_seed.values()) if scores_by_seed else None,
        "interval": mean_interval(list(scores_by_seed.values())),
        "difference": None,
        "difference_interval": None,
        "verdict": None,
    }


def read_scores(trainings: list[Training]) -> tuple[str, dict[Path, float]]:
    """Return the metric by which trainings are compared, and its value by folder of the finished ones.

    Where all read the same tokens it is the value of their last evaluation: bits per byte, or the loss where a model
    has no bits per byte. Otherwise all are measured on the baseline's validation text.
    """
    finished = [training for training in trainings if is_finished(training)]
    data_names = {training.variant.tree["name"] for training in trainings}
    if len(data_names) > 1:
        baseline = trainings[0]
        return BITS_PER_BYTE, {training.root: _score_on_same_text(training, baseline) for training in finished}

    metrics = {training.root: read_manifest(training.base)["facts"]["metrics"] for training in finished}
    has_bits_per_byte = all(BITS_PER_BYTE in values for values in metrics.values())
    metric = BITS_PER_BYTE if has_bits_per_byte else LOSS
    return metric, {root: values[metric] for root, values in metrics.items()}


def _score_on_same_text(training: Training, baseline: Training) -> float:
    """Return bits per byte of a training's model on as much text as the baseline is evaluated on."""
    data = Path("runs") / baseline.variant.tree["name"]
    split = read_manifest(data / "tokens")["facts"]["splits"]["validation"]
    section = plan_pretraining(baseline.variant.tree, baseline.variant.name).section
    size = round(min(section.evaluation_tokens, split["tokens"]) * split["bytes_per_token"])

    context = plan_pretraining(training.variant.tree, training.variant.name).context
    return run_in_subprocess(measure_bits_per_byte, training.base, data / "corpus", context, size)


def _read_logged_values(training: Training, key: str) -> list[float]:
    """Return the finite values of a key in a training's log."""
    values = [entry.get(key) for entry in read_log_history(training.base)]
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def average_curves(trainings: list[Training], key: str) -> dict[str, list[tuple[float, float]]]:
    """Return by variant (tokens seen, mean over its finished seeds of what the log has under `key`)."""
    values_by_variant: dict[str, dict[int, list[float]]] = {}
    for training in trainings:
        if not is_finished(training):
            continue
        tokens_per_step = training.variant.tree["pretrain"]["tokens_per_step"]
        values_by_tokens = values_by_variant.setdefault(training.variant.name, {})
        for entry in read_log_history(training.base):
            if isinstance(entry.get(key), int | float):
                tokens = entry["step"] * tokens_per_step
                values_by_tokens.setdefault(tokens, []).append(entry[key])

    curves = {}
    for name, values_by_tokens in values_by_variant.items():
        curves[name] = [(tokens, fmean(values)) for tokens, values in sorted(values_by_tokens.items())]
    return curves


def format_table(results: dict[str, Any]) -> str:
    """Format the results for a terminal, a line for each variant."""
    has_intervals = len(results["seeds"]) > 1
    header = ["variant", "parameters", "tokens/s", results["metric"]]
    if has_intervals:
        header.append("95% interval")
    if results["compared"]:
        header.append("to baseline")
        if has_intervals:
            header.append("95% interval")
    header.append("")

    rows = [header]
    for result in results["variants"]:
        speed = format_number(result["tokens_per_second"]) if result["tokens_per_second"] else ""
        row = [result["name"], format_number(result["parameters"]), speed, format_score(result["mean"])]
        if has_intervals:
            row.append(format_interval(result["interval"]))
        if results["compared"]:
            row.append(format_score(result["difference"], "+.4f"))
            if has_intervals:
                row.append(format_interval(result["difference_interval"], "+.4f"))
        row.append(describe_status(result))
        rows.append(row)

    table = align_columns(rows)
    if not has_intervals:
        table += "\n  one seed: no intervals; --seeds 3 tells a difference from chance"
    return table


def describe_status(row: dict[str, Any]) -> str:
    """Return the verdict on a variant, and how many of its trainings failed or are missing."""
    failed = len(row["failures"])
    missing = len(row["runs"]) - len(row["scores"]) - failed
    parts = []
    if row["verdict"]:
        parts.append(row["verdict"])
    if failed:
        parts.append(f"{failed} failed")
    if missing:
        parts.append(f"{missing} not trained yet")
    return ", ".join(parts)


def summarize_comparison(results: dict[str, Any]) -> str:
    """State the result of the comparison in one sentence."""
    compared = [row for row in results["variants"] if row["difference"] is not None]
    if not compared:
        return "There is nothing to compare yet."

    unit = results["metric"]
    best = min(compared, key=lambda row: row["difference"])
    if best["difference_interval"] is None:
        return f"One seed tells no difference from chance; {best['name']} comes to {best['difference']:+.4f} {unit}."

    conclusive = [row for row in compared if row["verdict"] != INCONCLUSIVE]
    if not conclusive:
        return f"No variant differs from the baseline at a confidence level of {LEVEL:.0%}."
    parts = []
    for row in conclusive:
        low, high = sorted(abs(end) for end in row["difference_interval"])
        size = f"{abs(row['difference']):.4f} {unit} ({low:.4f} to {high:.4f})"
        parts.append(f"{row['name']} is {row['verdict']} than the baseline by {size}")
    return "; ".join(parts) + "."


def format_score(value: float | None, form: str = ".4f") -> str:
    """Format a score, None as nothing."""
    return "" if value is None else format(value, form)


def format_interval(interval: tuple[float, float] | None, form: str = ".4f") -> str:
    """Format an interval as `1.2000 to 1.3000`, None as nothing."""
    if interval is None:
        return ""
    low, high = interval
    return f"{low:{form}} to {high:{form}}"
