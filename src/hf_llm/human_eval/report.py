"""Turn votes into results as JSON, one self-contained HTML page, and lines for the terminal."""

import shlex
import time
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.core.format import format_percent
from hf_llm.core.manifest import write_json
from hf_llm.evaluation.intervals import MIN_GROUPS
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


def report_command(database: VoteDatabase) -> str:
    """Return the command that turns the votes into a report."""
    return f"python -m hf_llm.arena --votes {shlex.quote(str(database.path))} --report"


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
        unrated=[name for name in results["models"] if name not in results["ratings"]],
        min_groups=MIN_GROUPS,
        style=templates.read_asset("page.css") + templates.read_asset("range.css"),
        script=templates.read_asset("page.js"),
    )


def summarize_results(results: dict[str, Any]) -> str:
    """State the result in one sentence."""
    if not results["ratings"]:
        return "Nobody has chosen yet."
    if len(results["win_rates"]) == 1:
        return summarize_match(results["win_rates"][0])

    ranking = list(results["ratings"].items())
    best, best_entry = ranking[0]
    runner_up, runner_up_entry = ranking[1]
    if round(best_entry["rating"]) == round(runner_up_entry["rating"]):
        return f"{best} and {runner_up} are rated highest and equal, of {len(ranking)} models with votes."
    is_apart = False
    if best_entry["interval"] and runner_up_entry["interval"]:
        is_apart = best_entry["interval"][0] > runner_up_entry["interval"][1]
    caveat = "" if is_apart else ", which may be chance"
    return f"{best} is rated highest of {len(ranking)} models with votes{caveat}."


def summarize_match(match: dict[str, Any]) -> str:
    """State in one sentence how two models compare: preferences, and beside them what was not a preference."""
    undecided = f"ties: {match['votes']['tie']}, both bad: {match['votes']['bad']}"
    decided = match["decided"]
    if decided is None:
        return f"Neither {match['first']} nor {match['second']} was preferred on any prompt ({undecided})."

    best, other, wins = match["first"], match["second"], decided["value"] * decided["prompts"]
    low, high = decided["interval"]
    if decided["value"] < 0.5:
        best, other, wins = other, best, decided["prompts"] - wins
        low, high = 1 - high, 1 - low
    if decided["value"] == 0.5:
        return (
            f"{best} and {other} are each preferred on half of the {decided['prompts']} prompts with a preference "
            f"({undecided})."
        )
    caveat = "" if low > 0.5 else ", which may be chance"
    return (
        f"{best} is preferred to {other} on {wins:.3g} of the {decided['prompts']} prompts with a preference "
        f"({format_share(wins / decided['prompts'], (low, high))}){caveat}; {undecided}."
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
    """Format a share with its interval: `63%, 95% interval 51% to 74%`."""
    low, high = interval
    return f"{format_percent(value)}, 95% interval {format_percent(low)} to {format_percent(high)}"


def format_results(results: dict[str, Any]) -> list[str]:
    """Format the report for the terminal, a line for each figure."""
    votes = format_number_of(results["votes"], "vote")
    annotators = format_number_of(len(results["annotators"]), "annotator")
    lines = [f"{votes} of {annotators} on {results['judged_pairs']} of {results['pairs']} pairs"]
    for match in results["win_rates"]:
        lines.append(summarize_match(match))

    for name in results["models"]:
        if name not in results["ratings"]:
            lines.append(f"{name}: not rated, nobody has voted on its answers")
    for name, rating in results["ratings"].items():
        line = f"{name}: rating {rating['rating']:.0f} on {format_number_of(rating['prompts'], 'prompt')}"
        if rating["interval"]:
            low, high = rating["interval"]
            line += f" ({low:.0f} to {high:.0f})"
        if name in results["scores"]:
            score = results["scores"][name]
            line += f", score {score['mean']:.2f} of 5 ({format_number_of(score['scores'], 'score')})"
        lines.append(line)

    position = results["position"]
    if position:
        share = format_share(position["a"], position["interval"])
        lines.append(f"A is chosen in {position['a'] * position['votes']:.0f} of {position['votes']} choices ({share})")
    agreement = results["agreement"]["all"]
    if agreement and agreement["kappa"] is not None:
        lines.append(f"agreement of all annotators: kappa {agreement['kappa']:.2f} on {agreement['pairs']} pairs")
    return lines


def format_number_of(count: int, noun: str) -> str:
    """Format a number with its noun: `1 score`, `2 scores`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
