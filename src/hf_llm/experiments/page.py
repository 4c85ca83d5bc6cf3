"""Write an experiment as results.json and one self-contained HTML page."""

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_llm.core.atomic_io import write_text
from hf_llm.core.format import format_count as count
from hf_llm.core.manifest import write_json
from hf_llm.experiments.results import (
    METRIC_NAMES,
    average_curves,
    describe_status,
    format_interval,
    format_score,
    summarize_comparison,
)
from hf_llm.experiments.train_variants import Training
from hf_llm.reporting import templates
from hf_llm.reporting.secrets import redact_secrets
from hf_llm.reporting.svg_charts import Series, draw_line_chart

MAX_CURVES = 6  # curves in one chart, one for each colour
LAW_STYLE = ".law path.dots { stroke-width: 8; }"


def write_page(
    folder: Path, results: dict[str, Any], trainings: list[Training], law: dict[str, Any] | None = None
) -> Path:
    """Write `results.json` and `index.html` into `folder`, each whole or not at all. Returns the page's path.

    `law` is what hf_llm.scaling adds to the results.
    """
    if law:
        results = {**results, "law": law}
    results = redact_secrets(results)

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    page = folder / "index.html"
    write_text(page, render_page(results, trainings))
    return page


def render_page(results: dict[str, Any], trainings: list[Training]) -> str:
    """Render the experiment as an HTML page that loads nothing."""
    law = results.get("law")
    variants = results["variants"]
    if law:
        summary = law["summary"]
    elif results["compared"]:
        summary = summarize_comparison(results)
    else:
        summary = ""

    scored = [row["name"] for row in variants if row["mean"] is not None]
    drawn = scored[:MAX_CURVES]
    [metric] = [key for key, name in METRIC_NAMES.items() if name == results["metric"]]
    template = templates.html_environment(Path(__file__).parent).get_template("page.html")
    return template.render(
        **{"law": None, **results},
        title=results["name"],
        kicker="Ablation" if results["compared"] else "Scaling",
        summary=summary,
        numbers=key_figures(results),
        has_intervals=len(results["seeds"]) > 1,
        scale=max_difference(variants),
        note=explain_table(results),
        charts=draw_curves(trainings, drawn, metric),
        hidden=len(scored) - len(drawn),
        law_chart=draw_law(law, results["metric"]) if law else None,
        format_score=format_score,
        format_interval=format_interval,
        describe_status=describe_status,
        format_count=count,
        style=templates.read_asset("page.css") + templates.read_asset("range.css") + Markup(LAW_STYLE),
        script=templates.read_asset("page.js"),
    )


def key_figures(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the few figures at the top of the page, (value, what it counts) each."""
    rows = results["variants"]
    finished = sum(len(row["scores"]) for row in rows)
    planned = sum(len(row["runs"]) for row in rows)
    progress = f"{finished} of {planned}" if finished < planned else str(finished)
    figures = [
        (str(len(rows)), "variants" if results["compared"] else "sizes"),
        (str(len(results["seeds"])), "seeds"),
        (progress, "trainings finished"),
    ]

    means = [row["mean"] for row in rows if row["mean"] is not None]
    if means:
        figures.append((f"{min(means):.3f}", f"{results['metric']} on validation text, best mean; lower is better"))
    return figures


def explain_table(results: dict[str, Any]) -> str:
    """Return a note on what the numbers of the table mean."""
    note = f"{results['metric'].capitalize()} on the validation split after the last step, "
    seeds = len(results["seeds"])
    if seeds < 2:
        return note + "one seed each: there is no interval, so differences cannot be told from chance."

    note += f"mean over {seeds} seeds with Student's t interval"
    if not results["compared"]:
        return note + "."
    note += "; differences are paired by seed, which is the same data in the same order."
    comparisons = len(results["variants"]) - 1
    if comparisons > 1:
        note += (
            f" The {comparisons} comparisons are not corrected for their number: of twenty variants without an effect, "
            "one is expected to seem better or worse."
        )
    return note


def max_difference(variants: list[dict[str, Any]]) -> float:
    """Return how far from zero the axis of differences reaches."""
    values = []
    for row in variants:
        if row["difference"] is not None:
            values.append(row["difference"])
        if row["difference_interval"]:
            values += row["difference_interval"]
    largest = max((abs(value) for value in values), default=0)
    return 1.08 * largest or 1.0


def draw_curves(trainings: list[Training], drawn: list[str], metric: str) -> list[Markup]:
    """Draw the curves of some variants by tokens seen, means over seeds: validation metric and training loss."""
    titles = {metric: f"{METRIC_NAMES[metric].capitalize()} on validation text", "loss": "Loss, training"}
    charts = []
    for key, title in titles.items():
        curves = average_curves(trainings, key)
        series = [Series(name, curves.get(name, [])) for name in drawn]
        chart = draw_line_chart(title, series, x_label="tokens", note="lower is better")
        if chart:
            charts.append(chart)
    return charts


def draw_law(law: dict[str, Any], metric: str) -> Markup:
    """Draw loss over the logarithm of FLOPs: measured losses as dots, the law as a line, its interval as two."""
    measured = _log_points(law["points"])
    for prediction in law["predictions"]:
        if prediction["measured"] is not None:
            measured += _log_points([(prediction["flops"], prediction["measured"])])

    measured = sorted(set(measured))
    series = [Series("measured", measured, is_line=False)]
    if law["curve"]:
        series.append(Series("law", _log_points(law["curve"])))
    for name, points in law["band"].items():
        series.append(Series(name, _log_points(points)))
    title = f"{metric.capitalize()} of the validation split"
    return draw_line_chart(
        title, series, x_label="training FLOPs", x_from_zero=False, note="lower is better", x_is_log10=True
    )


def _log_points(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(math.log10(flops), loss) for flops, loss in points]
