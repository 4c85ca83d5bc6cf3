"""Turn votes into results as JSON, one self-contained HTML page, and lines for the terminal."""

import time
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.core.format import format_percent
from hf_llm.core.manifest import write_json
from hf_llm.human_eval.preference_statistics import (
    compute_agreement,
    compute_mean_scores,
    compute_position_bias,
    compute_ratings,
    compute_win_rates,
    summarize_annotators,
)
from hf_llm.human_eval.votes import VoteDatabase
from hf_llm.reporting import templates
from hf_llm.reporting.secrets import redact_secrets

EMPTY_RATING_AXIS = (900.0, 1100.0)
MIN_RATING_MARGIN = 20.0


def compute_results(database: VoteDatabase) -> dict[str, Any]:
    """Compute everything the report shows, as plain values. Raises UserError where nobody has voted yet."""
    votes = database.read_votes()
    if not votes:
        raise UserError(f"{database.path} holds no votes yet; vote on some pairs first")

    models = database.read_models()
    progress = database.count_progress(annotator="")
    return {
        "models": models,
        "pairs": progress["total"],
        "equal_answers": progress["equal"],
        "votes": len(votes),
        "judged_pairs": len({vote.pair for vote in votes}),
        "ratings": compute_ratings(votes, list(models)),
        "win_rates": compute_win_rates(votes),
        "scores": compute_mean_scores(votes, list(models)),
        "position": compute_position_bias(votes),
        "agreement": compute_agreement(votes),
        "annotators": summarize_annotators(votes),
        "seed": database.seed,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def write_report(database: VoteDatabase) -> tuple[Path, dict[str, Any]]:
    """Write `<votes>-report.html` and `.json` beside the file of votes. Returns the page's path and the results."""
    results = compute_results(database)
    page = database.path.with_name(f"{database.path.stem}-report.html")
    write_json(page.with_suffix(".json"), results)
    write_text(page, render_page(results, title=database.path.stem))
    return page, results


def render_page(results: dict[str, Any], title: str) -> str:
    """Render the report as an HTML page that loads nothing."""
    environment = templates.html_environment(Path(__file__).parent)
    environment.filters["percent"] = format_percent
    return environment.get_template("report.html").render(
        **redact_secrets(results),
        title=title,
        summary=summarize_results(results),
        scale=rating_axis(results["ratings"]),
        style=templates.read_asset("page.css") + templates.read_asset("range.css"),
    )


def summarize_results(results: dict[str, Any]) -> str:
    """State the result in one sentence."""
    ranking = list(results["ratings"])
    if not ranking:
        return "Nobody has chosen yet."
    if len(ranking) != 2:
        return f"{ranking[0]} is rated highest of {len(results['models'])} models."

    best, other = ranking
    match = results["win_rates"][0]
    win_rate = match["win_rate"]["value"]
    low, high = match["win_rate"]["interval"]
    if match["first"] != best:
        win_rate = 1 - win_rate
        low, high = 1 - high, 1 - low
    caveat = "" if low > 0.5 else ", which may be chance"
    return (
        f"{best} wins against {other} on {format_percent(win_rate)} of the prompts "
        f"({format_percent(low)} to {format_percent(high)}){caveat}."
    )


def rating_axis(ratings: dict[str, Any]) -> tuple[float, float]:
    """Return the lower and upper end of the axis on which the ratings are drawn."""
    values = [entry["rating"] for entry in ratings.values()]
    for entry in ratings.values():
        values += entry["interval"] or ()
    if not values:
        return EMPTY_RATING_AXIS

    low, high = min(values), max(values)
    margin = max(MIN_RATING_MARGIN, 0.06 * (high - low))
    return low - margin, high + margin


def format_share(value: float, interval: tuple[float, float]) -> str:
    """Format a share with its interval: `63% (51% to 74%)`."""
    low, high = interval
    return f"{format_percent(value)} ({format_percent(low)} to {format_percent(high)})"


def format_results(results: dict[str, Any]) -> list[str]:
    """Format the report for the terminal, a line for each figure."""
    annotator_count = len(results["annotators"])
    lines = [
        f"{results['votes']} votes of {annotator_count} annotators on {results['judged_pairs']} of "
        f"{results['pairs']} pairs"
    ]
    for match in results["win_rates"]:
        win_rate = match["win_rate"]
        if win_rate:
            share = format_share(win_rate["value"], win_rate["interval"])
            lines.append(f"{match['first']} wins against {match['second']}: {share}, a tie counts half")

    for name, rating in results["ratings"].items():
        line = f"{name}: rating {rating['rating']:.0f}"
        if rating["interval"]:
            low, high = rating["interval"]
            line += f" ({low:.0f} to {high:.0f})"
        if name in results["scores"]:
            line += f", score {results['scores'][name]['mean']:.2f}"
        lines.append(line)

    position = results["position"]
    if position:
        lines.append(f"A is chosen: {format_share(position['a'], position['interval'])}")
    agreement = results["agreement"]["all"]
    if agreement and agreement["kappa"] is not None:
        lines.append(f"agreement of all annotators: kappa {agreement['kappa']:.2f} on {agreement['pairs']} pairs")
    return lines
