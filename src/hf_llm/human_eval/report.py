"""What the votes say, as JSON, as one self-contained HTML page and as lines for the terminal."""

import time
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import write_json
from hf_llm.human_eval import preference_statistics
from hf_llm.human_eval.votes import Votes
from hf_llm.reporting import templates
from hf_llm.reporting.secrets import redact


def results(votes: Votes) -> dict[str, Any]:
    """Everything the report shows, as plain values. Raises UserError where nobody has voted yet."""
    cast, models = votes.standing(), votes.models()
    if not cast:
        raise UserError(f"{votes.path} holds no votes yet; judge some pairs first")
    progress = votes.progress("")
    return {
        "models": models,
        "pairs": progress["total"],
        "equal_answers": progress["equal"],
        "votes": len(cast),
        "judged_pairs": len({vote.pair for vote in cast}),
        "ratings": preference_statistics.ratings(cast, list(models)),
        "win_rates": preference_statistics.win_rates(cast),
        "scores": preference_statistics.mean_scores(cast, list(models)),
        "position": preference_statistics.position(cast),
        "agreement": preference_statistics.agreement(cast),
        "annotators": preference_statistics.annotators(cast),
        "seed": votes.seed,
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def write_report(votes: Votes) -> tuple[Path, dict[str, Any]]:
    """Write the report beside the votes, `<votes>-report.html` and `.json`; the page's path and the results."""
    found = results(votes)
    page = votes.path.with_name(f"{votes.path.stem}-report.html")
    write_json(page.with_suffix(".json"), found)
    write_text(page, html(found, votes.path.stem))
    return page, found


def html(found: dict[str, Any], title: str) -> str:
    """The page, which loads nothing."""
    environment = templates.html(Path(__file__).parent)
    environment.filters["per_cent"] = per_cent
    return environment.get_template("report.html").render(
        **redact(found),
        title=title,
        summary=summary(found),
        scale=rating_scale(found["ratings"]),
        style=templates.file("page.css") + templates.file("range.css"),
    )


def summary(found: dict[str, Any]) -> str:
    """The result in one sentence."""
    best, *others = found["ratings"] or [None]
    if len(others) != 1:
        return f"{best} is rated highest of {len(found['models'])} models." if best else "Nobody has chosen yet."
    share = found["win_rates"][0]["win_rate"]
    low, high = share["interval"]
    if found["win_rates"][0]["first"] != best:
        share, low, high = {"value": 1 - share["value"]}, 1 - high, 1 - low
    sure = "" if low > 0.5 else ", which may be chance"
    return (
        f"{best} wins against {others[0]} on {per_cent(share['value'])} of the prompts "
        f"({per_cent(low)} to {per_cent(high)}){sure}."
    )


def rating_scale(ratings: dict[str, Any]) -> tuple[float, float]:
    """From where to where the ratings are drawn."""
    ends = [end for entry in ratings.values() for end in (entry["interval"] or ())]
    ends += [entry["rating"] for entry in ratings.values()]
    if not ends:
        return 900.0, 1100.0
    margin = max(20.0, 0.06 * (max(ends) - min(ends)))
    return min(ends) - margin, max(ends) + margin


def per_cent(value: float) -> str:
    """A share in whole per cent."""
    return f"{100 * value:.0f}%"


def lines(found: dict[str, Any]) -> list[str]:
    """The report in short, for the terminal."""
    people = len(found["annotators"])
    said = [f"{found['votes']} votes of {people} annotators on {found['judged_pairs']} of {found['pairs']} pairs"]
    for match in found["win_rates"]:
        if match["win_rate"]:
            said.append(
                f"{match['first']} wins against {match['second']}: {with_interval(match['win_rate'])}, ties half"
            )
    for name, entry in found["ratings"].items():
        low, high = entry["interval"] or (None, None)
        within = f" ({low:.0f} to {high:.0f})" if low is not None else ""
        score = found["scores"].get(name)
        said.append(f"{name}: rating {entry['rating']:.0f}{within}" + (f", score {score['mean']:.2f}" if score else ""))
    if found["position"]:
        said.append(f"A is chosen: {with_interval({**found['position'], 'value': found['position']['a']})}")
    every = found["agreement"]["all"]
    if every and every["kappa"] is not None:
        said.append(f"agreement of all annotators: kappa {every['kappa']:.2f} on {every['pairs']} pairs")
    return said


def with_interval(share: dict[str, Any]) -> str:
    """A share with its interval: 63% (51% to 74%)."""
    low, high = share["interval"]
    return f"{per_cent(share['value'])} ({per_cent(low)} to {per_cent(high)})"
