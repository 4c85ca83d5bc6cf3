"""What came of an experiment: one row for each variant, as plain values, and the lines of a table."""

import math
import time
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hf_llm.core.manifest import read_manifest
from hf_llm.experiments import bits_per_byte
from hf_llm.experiments.estimate import Planned
from hf_llm.experiments.seed_statistics import LEVEL, NOT_APART, mean_interval, paired
from hf_llm.experiments.train_variants import Training, apart, is_finished
from hf_llm.experiments.variants import checked
from hf_llm.planning.tables import aligned, number
from hf_llm.reporting.lineage import log_history

BITS, LOSS = "eval_bits_per_byte", "eval_loss"
NAMES = {BITS: "bits per byte", LOSS: "loss"}


def results(name: str, planned: list[Planned], trainings: list[Training], equal: str, compared: bool) -> dict[str, Any]:
    """Everything the page shows as plain values: the variants in their order; where they are `compared`, the baseline
    first and the others by their score."""
    scores = _scores(trainings)
    metric = LOSS if any(key == LOSS for key, _ in scores.values()) else BITS
    by_name = {entry.variant.name: entry for entry in planned}
    rows = []
    for variant, group in groupby(sorted(trainings, key=lambda t: t.variant.name), lambda t: t.variant.name):
        rows.append(_row(by_name[variant], list(group), {root: value for root, (_, value) in scores.items()}))
    order = [entry.variant.name for entry in planned]
    rows.sort(key=lambda row: order.index(row["name"]))
    if compared:
        rows[1:] = sorted(rows[1:], key=lambda row: (row["mean"] is None, row["mean"]))
    for row in rows[1:] if compared else ():
        row["difference"], row["difference_interval"], row["verdict"] = paired(row["scores"], rows[0]["scores"])
    return {
        "name": name,
        "equal": equal,
        "compared": compared,
        "metric": NAMES[metric],
        "seeds": sorted({training.seed for training in trainings}),
        "variants": rows,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def _row(entry: Planned, group: list[Training], scores: dict[Path, float]) -> dict[str, Any]:
    found = {training.seed: scores[training.root] for training in group if training.root in scores}
    rates = [value for training in group for value in _logged(training, "tokens_per_second")]
    return {
        "name": entry.variant.name,
        "changes": entry.variant.changes,
        "fitted": entry.variant.fitted,
        "parameters": entry.parameters,
        "flops_per_token": entry.flops,
        "tokens": entry.tokens,
        "tokens_per_second": median(rates) if rates else None,
        "scores": found,
        "failures": {t.seed: t.failure for t in group if t.seed not in found and t.failure},
        "runs": {training.seed: str(training.root) for training in group},
        "mean": fmean(found.values()) if found else None,
        "interval": mean_interval(list(found.values())),
        "difference": None,
        "difference_interval": None,
        "verdict": None,
    }


def _scores(trainings: list[Training]) -> dict[Path, tuple[str, float]]:
    """By folder of the finished trainings: which score (bits per byte where the model tells them) and its value.

    Where all read the same tokens it is that of their last evaluation; otherwise all are measured on the text that the
    baseline holds out.
    """
    finished = [training for training in trainings if is_finished(training)]
    if len({training.variant.tree["name"] for training in trainings}) > 1:
        return {training.root: (BITS, _on_same_text(training, trainings[0])) for training in finished}
    metrics = {t.root: read_manifest(t.base)["facts"]["metrics"] for t in finished}
    key = BITS if all(BITS in found for found in metrics.values()) else LOSS
    return {root: (key, found[key]) for root, found in metrics.items()}


def _on_same_text(training: Training, first: Training) -> float:
    data = Path("runs") / first.variant.tree["name"]
    section = checked(first.variant.tree, first.variant.name).section
    split = read_manifest(data / "tokens")["facts"]["splits"]["validation"]
    size = round(min(section.evaluation_tokens, split["tokens"]) * split["bytes_per_token"])
    context = checked(training.variant.tree, training.variant.name).context
    return apart(bits_per_byte.measured, training.base, data / "corpus", context, size)


def _logged(training: Training, key: str) -> list[float]:
    """The finite values of a key in a training's log."""
    values = (entry.get(key) for entry in log_history(training.base))
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def curves(trainings: list[Training], key: str) -> dict[str, list[tuple[float, float]]]:
    """Variant -> (tokens seen, mean over its finished seeds of what the log has under `key`)."""
    found: dict[str, dict[int, list[float]]] = {}
    for training in filter(is_finished, trainings):
        each = training.variant.tree["pretrain"]["tokens_per_step"]
        steps = found.setdefault(training.variant.name, {})
        for entry in log_history(training.base):
            if isinstance(entry.get(key), int | float):
                steps.setdefault(entry["step"] * each, []).append(entry[key])
    return {name: [(step, fmean(values)) for step, values in sorted(steps.items())] for name, steps in found.items()}


def table(found: dict[str, Any]) -> str:
    """The results for a terminal, a line for each variant."""
    several, compared = len(found["seeds"]) > 1, found["compared"]
    interval = ["95% interval"] if several else []
    lines = [["variant", "parameters", "tokens/s", found["metric"], *interval]]
    lines[0] += ["to baseline", *interval] if compared else []
    for row in found["variants"]:
        rates = number(row["tokens_per_second"]) if row["tokens_per_second"] else ""
        line = [row["name"], number(row["parameters"]), rates, shown(row["mean"])]
        line += [between(row["interval"])] if several else []
        if compared:
            line.append(shown(row["difference"], "+.4f"))
            line += [between(row["difference_interval"], "+.4f")] if several else []
        lines.append([*line, said(row)])
    lines[0].append("")
    note = "" if several else "\n  one seed: no intervals; --seeds 3 tells chance from difference"
    return aligned(lines) + note


def said(row: dict[str, Any]) -> str:
    """The verdict on a variant, or why there is none."""
    failed, missing = len(row["failures"]), len(row["runs"]) - len(row["scores"]) - len(row["failures"])
    parts = [row["verdict"]] if row["verdict"] else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{missing} not trained yet"] if missing else []
    return ", ".join(parts)


def summary(found: dict[str, Any]) -> str:
    """The result in one sentence."""
    others = [row for row in found["variants"] if row["difference"] is not None]
    if not others:
        return "There is nothing to compare yet."
    unit, best = found["metric"], min(others, key=lambda row: row["difference"])
    if best["difference_interval"] is None:
        return f"With one seed nothing is told apart; {best['name']} comes to {best['difference']:+.4f} {unit}."
    told = [row for row in others if row["verdict"] != NOT_APART]
    if not told:
        return f"No variant is told apart from the baseline at {LEVEL:.0%}."
    parts = []
    for row in told:
        low, high = sorted(abs(end) for end in row["difference_interval"])
        by = f"{abs(row['difference']):.4f} {unit} ({low:.4f} to {high:.4f})"
        parts.append(f"{row['name']} is {row['verdict']} than the baseline by {by}")
    return "; ".join(parts) + "."


def shown(value: float | None, form: str = ".4f") -> str:
    """A score, or nothing."""
    return "" if value is None else format(value, form)


def between(interval: tuple[float, float] | None, form: str = ".4f") -> str:
    """An interval as people say it."""
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
