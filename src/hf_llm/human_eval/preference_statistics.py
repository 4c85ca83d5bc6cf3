"""What the votes say, and how sure that is.

A prompt is the unit of chance: votes of several people on the same two answers are no independent evidence, so a prompt
counts once, with the mean of its votes. All intervals are 95%.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from hf_llm.human_eval.votes import CHOICES, Vote

Z = 1.959964  # of the normal distribution, for 95%
RESAMPLES = 2000
ELO = 400 / np.log(10)  # points of rating for each unit of log-odds
CENTRE = 1000.0  # mean rating of the models
OUTCOMES = ("first", "second", "tie", "bad")

Interval = tuple[float, float]


def wilson(successes: float, trials: int) -> Interval:
    """The Wilson score interval of a share (Wilson 1927); for values between 0 and 1 instead of yes and no it is wider
    than it need be, never narrower, since none vary more than yes and no do."""
    assert 0 <= successes <= trials and trials > 0
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap(groups: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Interval | None:
    """The percentile interval (Efron 1979) of a statistic over resampled groups; None for fewer than two groups.

    `statistic` takes how often each group was drawn, (RESAMPLES, groups), and gives (RESAMPLES,) values; those that are
    not finite are left out.
    """
    return percentiles(statistic(resampled(groups, seed))) if groups > 1 else None


def resampled(groups: int, seed: int = 0) -> np.ndarray:
    """How often each group is drawn, (RESAMPLES, groups)."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return draws.astype(float)


def percentiles(values: np.ndarray) -> Interval | None:
    """The middle 95% of the values (RESAMPLES,) that are finite; None where none are."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def outcome(vote: Vote) -> str | None:
    """A vote in terms of its models, whichever side they stood on: one of OUTCOMES, None for a skip."""
    if vote.winner is not None:
        return "first" if vote.winner == vote.first else "second"
    return None if vote.choice == "skip" else vote.choice


def win_rates(votes: Iterable[Vote]) -> list[dict[str, Any]]:
    """For every two models that met: counts of votes, and how often the first wins.

    `win_rate` counts a tie, and both bad, as half a win; `decided` leaves them out. Wilson intervals over prompts.
    """
    matches: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        matches[vote.first, vote.second].append(vote)
    rows = []
    for (first, second), cast in sorted(matches.items()):
        counts = Counter(outcome(vote) or "skip" for vote in cast)
        values = _by_prompt((vote.prompt, _value(vote)) for vote in cast if outcome(vote))
        decided = _by_prompt((vote.prompt, _value(vote)) for vote in cast if vote.winner)
        votes_by_outcome = {name: counts[name] for name in (*OUTCOMES, "skip")}
        match = {"first": first, "second": second, "votes": votes_by_outcome}
        rows.append({**match, "win_rate": _share(values), "decided": _share(decided)})
    return rows


def _share(values: dict[int, float]) -> dict[str, Any] | None:
    if not values:
        return None
    total = sum(values.values())
    return {"value": total / len(values), "interval": wilson(total, len(values)), "prompts": len(values)}


def _value(vote: Vote) -> float:
    return {"first": 1.0, "second": 0.0}.get(outcome(vote), 0.5)


def _by_prompt(pairs: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The mean of what each prompt has."""
    found: dict[int, list[float]] = defaultdict(list)
    for prompt, value in pairs:
        found[prompt].append(value)
    return {prompt: fmean(values) for prompt, values in found.items()}


def ratings(votes: Iterable[Vote], models: list[str]) -> dict[str, dict[str, Any]]:
    """Bradley-Terry ratings on the Elo scale (400 points are odds of 10 to 1, the mean is 1000) and bootstrap intervals
    over prompts.

    The most likely ratings (Bradley and Terry 1952), which Elo's running update only comes near, in an order that does
    not matter. A tie is half a win to each; one tie more between every two models keeps a model that wins all finite.
    """
    by_prompt: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if outcome(vote):
            by_prompt[vote.prompt].append(vote)
    if not by_prompt:
        return {}
    number = {name: i for i, name in enumerate(models)}
    wins = np.zeros((len(by_prompt), len(models), len(models)))
    for group, cast in enumerate(by_prompt.values()):
        for vote in cast:
            first, second, value = number[vote.first], number[vote.second], _value(vote) / len(cast)
            wins[group, first, second] += value
            wins[group, second, first] += 1 / len(cast) - value
    fitted = bradley_terry(wins.sum(0)[None])[0]
    again = bradley_terry(np.tensordot(resampled(len(wins)), wins, 1))  # (resamples, models)
    found = {
        name: {"rating": float(fitted[i]), "interval": percentiles(again[:, i]) if len(wins) > 1 else None}
        for name, i in number.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]["rating"]))


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Ratings (resamples, models) from `wins` (resamples, models, models), of the row's model over the column's.

    Newton's method on the log-likelihood, which is concave; steps are cut to 1 so that none overshoots.
    """
    models = wins.shape[-1]
    wins = wins + 0.5 * (1 - np.eye(models))
    played = wins + wins.transpose(0, 2, 1)
    strength = np.zeros(wins.shape[:2])
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))  # (resamples, winner, loser)
        slope = (wins - played * chance).sum(2)
        information = played * chance * (1 - chance)
        hessian = np.eye(models) * information.sum(2)[:, :, None] - information + 1 / models  # fixes the mean
        step = np.clip(np.linalg.solve(hessian, slope[..., None])[..., 0], -1, 1)
        strength += step
        if np.abs(step).max() < 1e-9:
            break
    return CENTRE + ELO * (strength - strength.mean(1, keepdims=True))


def position(votes: Iterable[Vote]) -> dict[str, Any] | None:
    """How often the answer on the left (A) wins, of the votes for one of the two, with its Wilson interval over votes.

    Sides are drawn at random, so it is one half where position plays no part. None without such votes.
    """
    choices = Counter(vote.choice for vote in votes)
    decided = choices["a"] + choices["b"]
    if not decided:
        return None
    return {"votes": decided, "a": choices["a"] / decided, "interval": wilson(choices["a"], decided)}


def agreement(votes: Iterable[Vote]) -> dict[str, Any]:
    """How far annotators agree beyond chance, on which model wins, tie or both bad; skips are left out.

    `pairwise` is Cohen's kappa (1960) of every two who have judged the same pairs; `all` Fleiss' kappa (1971) over the
    pairs that every annotator has judged, None for fewer than two people or pairs. Bootstrap intervals over pairs.
    """
    judged: dict[str, dict[int, str]] = defaultdict(dict)
    for vote in votes:
        if outcome(vote):
            judged[vote.annotator][vote.pair] = outcome(vote)
    pairwise = []
    for one, other in combinations(sorted(judged), 2):
        common = sorted(judged[one].keys() & judged[other].keys())
        if len(common) > 1:
            table = [[judged[name][pair] for name in (one, other)] for pair in common]
            pairwise.append({"annotators": [one, other], **_kappa(table, cohen)})
    common = sorted(set.intersection(*(set(pairs) for pairs in judged.values()))) if len(judged) > 1 else []
    table = [[judged[name][pair] for name in sorted(judged)] for pair in common]
    return {"pairwise": pairwise, "all": _kappa(table, fleiss) if len(common) > 1 else None}


def _kappa(table: list[list[str]], kappa: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Share of pairs on which all agree, and a kappa of the (pair, annotator) table of outcomes."""
    coded = np.eye(len(OUTCOMES))[[[OUTCOMES.index(said) for said in row] for row in table]]  # (pairs, annotators, 4)
    value = float(kappa(coded, np.ones((1, len(table))))[0])
    return {
        "pairs": len(table),
        "agree": float(np.mean([len(set(row)) == 1 for row in table])),
        "kappa": value if np.isfinite(value) else None,  # all said the same of everything: chance explains it all
        "interval": bootstrap(len(table), lambda weights: kappa(coded, weights)),
    }


def cohen(coded: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen's kappa (resamples,) of two annotators: `coded` (pairs, 2, outcomes) one-hot, `weights` (resamples, pairs).

    Expected agreement comes from each annotator's own shares.
    """
    total = weights.sum(1)
    observed = weights @ (coded[:, 0] * coded[:, 1]).sum(1) / total
    shares = np.einsum("rp,pac->rac", weights, coded) / total[:, None, None]
    expected = (shares[:, 0] * shares[:, 1]).sum(1)
    return _beyond_chance(observed, expected)


def fleiss(coded: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss' kappa (resamples,) of n annotators: `coded` (pairs, n, outcomes) one-hot, `weights` (resamples, pairs).

    Observed is the share of agreeing couples of annotators, expected comes from the shares of all together.
    """
    people, total = coded.shape[1], weights.sum(1)
    counts = coded.sum(1)
    observed = weights @ ((counts * (counts - 1)).sum(1) / (people * (people - 1))) / total
    expected = ((weights @ counts / (people * total[:, None])) ** 2).sum(1)
    return _beyond_chance(observed, expected)


def _beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(observed - expected) / (1 - expected); not a number where chance explains everything."""
    room = 1 - expected
    return np.divide(observed - expected, room, out=np.full_like(room, np.nan), where=room > 1e-12)


def mean_scores(votes: Iterable[Vote], models: list[str]) -> dict[str, dict[str, Any]]:
    """Each model's mean score from 1 to 5, each prompt counting once, with a bootstrap interval over prompts."""
    given: dict[str, list[tuple[int, float]]] = {name: [] for name in models}
    for vote in votes:
        for model, score in ((vote.model_a, vote.score_a), (vote.model_b, vote.score_b)):
            if score is not None:
                given[model].append((vote.prompt, score))
    found = {}
    for name, scores in given.items():
        values = np.array(list(_by_prompt(scores).values()))
        if len(values):
            interval = bootstrap(len(values), lambda weights, v=values: weights @ v / weights.sum(1))
            found[name] = {"mean": float(values.mean()), "interval": interval, "scores": len(scores)}
    return found


def annotators(votes: Iterable[Vote]) -> dict[str, dict[str, Any]]:
    """For each annotator: votes by choice, median seconds, and the share of A where one of the two was chosen."""
    by_name: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_name[vote.annotator].append(vote)
    found = {}
    for name, cast in sorted(by_name.items()):
        seconds = [vote.seconds for vote in cast if vote.seconds is not None]
        found[name] = {
            "votes": len(cast),
            "choices": {choice: sum(vote.choice == choice for vote in cast) for choice in CHOICES},
            "seconds": median(seconds) if seconds else None,
            "position": position(cast),
        }
    return found


def verdicts(votes: Iterable[Vote]) -> dict[int, str | None]:
    """What most annotators say of each pair: one of OUTCOMES, or None where two are as frequent. Skips do not count."""
    said: dict[int, Counter] = defaultdict(Counter)
    for vote in votes:
        if outcome(vote):
            said[vote.pair][outcome(vote)] += 1
    found = {}
    for pair, counts in said.items():
        (best, most), *rest = counts.most_common(2)
        found[pair] = None if rest and rest[0][1] == most else best
    return found
