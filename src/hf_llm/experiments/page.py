"""An experiment as results.json and one self-contained HTML page."""

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_llm.core.atomic_io import write_text
from hf_llm.core.format import format_count as count
from hf_llm.core.manifest import write_json
from hf_llm.experiments.results import NAMES, between, curves, said, shown, summary
from hf_llm.experiments.train_variants import Training
from hf_llm.reporting import templates
from hf_llm.reporting.secrets import redact
from hf_llm.reporting.svg_charts import Series, line_chart

MOST_LINES = 6  # of one chart: as many as there are colours
STYLE = ".law .line-0, .bare .line-1 { stroke-width: 8; }"  # what is measured: dots


def write_page(
    folder: Path, found: dict[str, Any], trainings: list[Training], law: dict[str, Any] | None = None
) -> Path:
    """Write `results.json` and `index.html` into `folder`, each whole or not at all. Returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = redact(found | ({"law": law} if law else {}))
    write_json(folder / "results.json", found)
    page = folder / "index.html"
    write_text(page, html(found, trainings))
    return page


def html(found: dict[str, Any], trainings: list[Training]) -> str:
    """The page, which loads nothing."""
    law, variants = found.get("law"), found["variants"]
    drawn = [row["name"] for row in variants if row["mean"] is not None][:MOST_LINES]
    metric = next(key for key, name in NAMES.items() if name == found["metric"])
    return (
        templates.html(Path(__file__).parent)
        .get_template("page.html")
        .render(
            **{"law": None, **found},
            title=found["name"],
            kicker="Ablation" if found["compared"] else "Scaling",
            summary=law["summary"] if law else summary(found) if found["compared"] else "",
            numbers=numbers(found),
            several=len(found["seeds"]) > 1,
            scale=scale(variants),
            note=note(found),
            charts=charts(trainings, drawn, metric),
            hidden=max(0, sum(row["mean"] is not None for row in variants) - MOST_LINES),
            law_chart=law_chart(law, found["metric"]) if law else None,
            shown=shown,
            between=between,
            said=said,
            count=count,
            style=templates.file("page.css") + templates.file("range.css") + Markup(STYLE),
            script=templates.file("page.js"),
        )
    )


def numbers(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The few figures at the top."""
    rows = found["variants"]
    done = sum(len(row["scores"]) for row in rows)
    asked = sum(len(row["runs"]) for row in rows)
    numbers = [(str(len(rows)), "variants" if found["compared"] else "sizes"), (str(len(found["seeds"])), "seeds")]
    numbers.append((f"{done} of {asked}" if done < asked else str(done), "trainings finished"))
    if best := min((row["mean"] for row in rows if row["mean"] is not None), default=None):
        numbers.append((f"{best:.3f}", f"{found['metric']}, best mean"))
    return numbers


def note(found: dict[str, Any]) -> str:
    """What the numbers of the table mean."""
    compared = len(found["variants"]) - 1
    seeds = len(found["seeds"])
    words = f"{found['metric'].capitalize()} of held-out text after the last step, "
    if seeds < 2:
        return words + "one seed each: there is no interval, and chance is not told from difference."
    words += f"mean over {seeds} seeds with Student's t interval"
    if not found["compared"]:
        return words + "."
    words += "; differences are paired by seed, which is the same data in the same order."
    if compared > 1:
        words += f" Each of the {compared} comparisons stands by itself: of twenty without an effect one is told apart."
    return words


def scale(variants: list[dict[str, Any]]) -> float:
    """How far from zero differences are drawn."""
    ends = [abs(end) for row in variants for end in (row["difference_interval"] or ())]
    ends += [abs(row["difference"]) for row in variants if row["difference"] is not None]
    return 1.08 * max(ends, default=0) or 1.0


def charts(trainings: list[Training], drawn: list[str], metric: str) -> list[Markup]:
    """Curves of the variants over each other, by tokens seen, means over seeds."""
    titles = {metric: f"{NAMES[metric].capitalize()}, validation", "loss": "Loss, training"}
    found = []
    for key, title in titles.items():
        lines = curves(trainings, key)
        found.append(line_chart(title, [Series(name, lines.get(name, [])) for name in drawn], x_label="tokens"))
    return [chart for chart in found if chart]


def law_chart(law: dict[str, Any], metric: str) -> Markup:
    """Points and law over the logarithm of FLOPs: measured ones as dots, the law as a line, its interval's ends."""
    dots = [(math.log10(flops), loss) for flops, loss in law["points"]]
    dots += [(math.log10(r["flops"]), r["measured"]) for r in law["predictions"] if r["measured"] is not None]
    apart = [point for x, y in sorted(set(dots)) for point in ((x, y), (x, math.nan))]
    series = [Series("measured", apart)]
    if law["curve"]:
        series.append(Series("law", [(math.log10(flops), loss) for flops, loss in law["curve"]]))
    if law["band"]:
        series += [Series(name, [(math.log10(c), loss) for c, loss in law["band"][name]]) for name in law["band"]]
    return line_chart(metric.capitalize(), series, x_label="log10 FLOPs", x_from_zero=False)
