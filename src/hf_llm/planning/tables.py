"""A plan as text: tables of aligned columns."""

from hf_llm.planning.memory import ACTIVATIONS, COPIES, GRADIENTS, LOSS, OPTIMIZER, PARTS, TEMPORARY, WEIGHTS
from hf_llm.planning.memory_estimate import FRAMEWORK, HOLES, PROGRAM, Row
from hf_llm.planning.sharded_memory import BUFFERS
from hf_llm.planning.stage_plans import Prospect
from hf_llm.reporting.plan_accuracy import Score

SHORT = {
    WEIGHTS: "weights", COPIES: "copies", GRADIENTS: "gradients", OPTIMIZER: "optimizer", ACTIVATIONS: "activations",
    LOSS: "loss", TEMPORARY: "temporary", BUFFERS: "buckets", FRAMEWORK: "framework", HOLES: "holes",
    PROGRAM: "program",
}  # fmt: skip
LEAST = 2**30 / 200  # bytes that show in two digits


def aligned(rows: list[list[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell, the first `left` of them flush left, the rest right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{c:<{w}}" if n < left else f"{c:>{w}}" for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def memory_table(rows: list[Row]) -> str:
    """GiB by part at the highest moment of a step, an engine a line."""
    order = [*PARTS, BUFFERS, FRAMEWORK, HOLES, PROGRAM]
    parts = [part for part in order if any(row.footprint.parts.get(part, 0) >= LEAST for row in rows)]
    lines = [["GiB", *(SHORT[part] for part in parts), "peak", "micro-batch", "x accumulation"]]
    for row in rows:
        name = row.engine + (", checkpointing" if row.checkpointing else "")
        fits = [str(row.largest), str(row.accumulation)] if row.largest else ["does not fit", ""]
        values = [gib(row.footprint.parts.get(part, 0)) for part in parts]
        lines.append([name, *values, gib(row.footprint.peak), *fits])
    return aligned(lines)


def stage_table(stages: list[Prospect], priced: bool, powered: bool) -> str:
    """The training stages of a life, a line each."""
    head = ["stage", "memory, GiB", "steps", "tokens", "hours", "disk, GiB", "kWh"]
    lines = [[*head, *(["rent"] if priced else []), *(["electricity"] if powered else [])]]
    for stage in stages:
        told, money = ["", "as the data holds", "", "", ""], [None, None]
        if stage.tokens is not None:
            most = "<= " if stage.at_most else ""
            energy = f"{stage.cost.energy:,.1f}" if stage.cost.energy is not None else "not published"
            told = [f"{stage.steps:,}", most + number(stage.tokens), most + hours(stage.hours), gib(stage.disk), energy]
            money = [stage.cost.rent, stage.cost.electricity]
        cells = [f"{value:,.2f}" if value is not None else "" for value in money]
        cells = cells[: 1 if priced else 0] + (cells[1:] if powered else [])
        lines.append([stage.folder, gib(stage.memory), *told, *cells])
    return aligned(lines)


def score_table(scores: list[Score]) -> str:
    """Predicted beside actual."""
    rows = [[s.what, f"{s.predicted:,.4g}", f"{s.actual:,.4g}", f"{s.error:+.0%}"] for s in scores]
    return aligned([["pretraining", "predicted", "actual", "error"], *rows])


def gib(size: int) -> str:
    """Bytes in GiB, two digits behind the point."""
    return f"{size / 2**30:,.2f}"


def hours(value: float) -> str:
    """Hours as a number that shows something also for minutes."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def number(value: float) -> str:
    """12,345; from a million on 1.2M, 3.4B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:,.0f}"
