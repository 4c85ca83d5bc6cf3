"""A plan as text: tables that a terminal of 120 columns shows whole."""

from hf_llm.planning.memory import ACTIVATIONS, COPIES, GRADIENTS, LOSS, OPTIMIZER, TEMPORARY, WEIGHTS
from hf_llm.planning.prospect import FRAMEWORK, HOLES, PROGRAM
from hf_llm.planning.score import Score
from hf_llm.planning.sharding import BUFFERS

SHORT = {
    WEIGHTS: "weights", COPIES: "copies", GRADIENTS: "gradients", OPTIMIZER: "optimizer", ACTIVATIONS: "activations",
    LOSS: "loss", TEMPORARY: "temporary", BUFFERS: "buckets", FRAMEWORK: "framework", HOLES: "holes",
    PROGRAM: "program",
}  # fmt: skip


def aligned(rows: list[list[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell, the first `left` of them flush left, the rest right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
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
