"""Format a plan as text: tables of aligned columns."""

from hf_llm.core.format import align_columns, format_gib, format_hours, format_number
from hf_llm.planning.memory import ACTIVATIONS, COPIES, GRADIENTS, LOSS, OPTIMIZER, PARTS, TEMPORARY, WEIGHTS
from hf_llm.planning.memory_estimate import FRAMEWORK, HOLES, PROGRAM, EngineEstimate
from hf_llm.planning.sharded_memory import BUFFERS
from hf_llm.planning.stage_plans import StagePlan
from hf_llm.reporting.plan_accuracy import PredictedQuantity

PART_HEADINGS = {
    WEIGHTS: "weights",
    COPIES: "copies",
    GRADIENTS: "gradients",
    OPTIMIZER: "optimizer",
    ACTIVATIONS: "activations",
    LOSS: "loss",
    TEMPORARY: "temporary",
    BUFFERS: "buckets",
    FRAMEWORK: "framework",
    HOLES: "holes",
    PROGRAM: "program",
}
MIN_SHOWN_BYTES = 2**30 / 200  # 0.01 GiB when rounded


def format_memory_table(estimates: list[EngineEstimate]) -> str:
    """Tabulate the GiB by part at the peak of a step, an engine a line."""
    # A column for each part that is large enough to show anywhere.
    parts = []
    for part in [*PARTS, BUFFERS, FRAMEWORK, HOLES, PROGRAM]:
        if any(estimate.footprint.parts.get(part, 0) >= MIN_SHOWN_BYTES for estimate in estimates):
            parts.append(part)
    headings = [PART_HEADINGS[part] for part in parts]

    rows = [["GiB", *headings, "peak", "micro-batch", "x accumulation"]]
    for estimate in estimates:
        name = estimate.engine
        if estimate.checkpointing:
            name += ", checkpointing"
        sizes = [format_gib(estimate.footprint.parts.get(part, 0)) for part in parts]
        batches = ["does not fit", ""]
        if estimate.max_micro_batch:
            batches = [str(estimate.max_micro_batch), str(estimate.accumulation)]
        rows.append([name, *sizes, format_gib(estimate.footprint.peak), *batches])
    return align_columns(rows)


def format_stage_table(stages: list[StagePlan], with_rent: bool, with_electricity: bool, currency: str = "") -> str:
    """Tabulate the training stages of a run, a line each, with the costs whose prices are known, in `currency`."""
    heading = ["stage", "memory, GiB", "steps", "tokens", "hours", "disk, GiB", "kWh"]
    if with_rent:
        heading.append(f"rent, {currency}" if currency else "rent")
    if with_electricity:
        heading.append("electricity")

    rows = [heading]
    for stage in stages:
        row = [stage.folder, format_gib(stage.memory), *_format_training(stage)]
        if with_rent:
            row.append(_format_amount(stage.cost and stage.cost.rent))
        if with_electricity:
            row.append(_format_amount(stage.cost and stage.cost.electricity))
        rows.append(row)
    return align_columns(rows)


def _format_training(stage: StagePlan) -> list[str]:
    """Format steps, tokens, hours, disk and energy of a stage."""
    if stage.tokens is None:
        return ["", "depends on the data", "", "", ""]
    limit = "<= " if stage.at_most else ""
    energy = "not published"
    if stage.cost.energy is not None:
        energy = f"{stage.cost.energy:,.1f}"
    return [
        f"{stage.steps:,}",
        limit + format_number(stage.tokens),
        limit + format_hours(stage.hours),
        format_gib(stage.disk),
        energy,
    ]


def _format_amount(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.2f}"


def format_score_table(scores: list[PredictedQuantity]) -> str:
    """Tabulate predicted and actual values."""
    rows = [["pretraining", "predicted", "actual", "error"]]
    for score in scores:
        rows.append([score.what, f"{score.predicted:,.4g}", f"{score.actual:,.4g}", f"{score.error:+.0%}"])
    return align_columns(rows)
