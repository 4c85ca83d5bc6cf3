"""Turn votes into win rates, ratings, scores, position bias and agreement: each with what it counts, and a 95% interval
where there is one.

The independent unit is the prompt: votes of several people on the same two answers are not independent evidence, so a
prompt counts once, with the mean of its votes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from hf_llm.evaluation.intervals import (
    MIN_GROUPS,
    bootstrap_interval,
    draw_resamples,
    percentile_interval,
    wilson_interval,
)
from hf_llm.human_eval.votes import CHOICES, Vote

ELO_PER_LOG_ODDS = 400 / np.log(10)
MEAN_RATING = 1000.0
MAX_NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-9
OUTCOMES = ("first", "second", "tie", "bad")


def vote_outcome(vote: Vote) -> str | None:
    """Return a vote's outcome for the pair's first and second model (one of OUTCOMES); None for a skip."""
    if vote.winner is not None:
        return "first" if vote.winner == vote.first else "second"
    return None if vote.choice == "skip" else vote.choice


def first_model_score(vote: Vote) -> float:
    """Return 1 for a win of the first model, 0 for a loss, and one half for a tie or both bad."""
    outcome = vote_outcome(vote)
    if outcome == "first":
        return 1.0
    if outcome == "second":
        return 0.0
    return 0.5


def compute_win_rates(votes: Iterable[Vote]) -> list[dict[str, Any]]:
    """Count the votes of every two models that met, and how often the first of them wins.

    `decided` is the win rate over the prompts with a preference, which ties and both bad are not; `win_rate` counts
    each of those as half a win. Wilson intervals over prompts.
    """
    votes_by_match: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        votes_by_match[vote.first, vote.second].append(vote)

    matches = []
    for (first, second), match_votes in sorted(votes_by_match.items()):
        counts = Counter(vote_outcome(vote) or "skip" for vote in match_votes)
        answered = [vote for vote in match_votes if vote_outcome(vote)]
        decided = [vote for vote in match_votes if vote.winner]
        match = {
            "first": first,
            "second": second,
            "votes": {name: counts[name] for name in (*OUTCOMES, "skip")},
            "win_rate": _win_rate_over_prompts(answered),
            "decided": _win_rate_over_prompts(decided),
        }
        matches.append(match)
    return matches


def _win_rate_over_prompts(votes: list[Vote]) -> dict[str, Any] | None:
    """Return how often the first model wins, each prompt counting once, with its interval; None without votes."""
    if not votes:
        return None
    scores = _mean_by_prompt((vote.prompt, first_model_score(vote)) for vote in votes)
    wins = sum(scores.values())
    return {"value": wins / len(scores), "interval": wilson_interval(wins, len(scores)), "prompts": len(scores)}


def _mean_by_prompt(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Return the mean value of each prompt."""
    values_by_prompt: dict[int, list[float]] = defaultdict(list)
    for prompt, value in values:
        values_by_prompt[prompt].append(value)
    return {prompt: fmean(values) for prompt, values in values_by_prompt.items()}


def compute_ratings(votes: Iterable[Vote], models: list[str]) -> dict[str, dict[str, Any]]:
    """Return Bradley-Terry ratings on the Elo scale, the best first, with `prompts` counted and bootstrap intervals.

    Only of the models that someone voted on: of another nothing is known.

    400 points are odds of 10 to 1, and the mean is 1000. These are the maximum-likelihood ratings (Bradley and Terry
    1952), which do not depend on the order of the votes; Elo's running update only approaches them. A tie is half a win
    to each; one tie added between every two models keeps the rating of a model that wins every vote finite.
    """
    votes_by_prompt: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote_outcome(vote):
            votes_by_prompt[vote.prompt].append(vote)
    if not votes_by_prompt:
        return {}

    prompts_by_model = {name: set() for name in models}
    for prompt, prompt_votes in votes_by_prompt.items():
        for vote in prompt_votes:
            prompts_by_model[vote.first].add(prompt)
            prompts_by_model[vote.second].add(prompt)
    rated = [name for name in models if prompts_by_model[name]]

    wins = _count_wins(list(votes_by_prompt.values()), rated)
    fitted = fit_bradley_terry(wins.sum(0)[None])[0]  # (models,)
    resampled_wins = np.tensordot(draw_resamples(len(wins)), wins, 1)  # (RESAMPLES, models, models)
    resampled = fit_bradley_terry(resampled_wins)  # (RESAMPLES, models)

    ratings = {}
    for index, name in enumerate(rated):
        prompts = len(prompts_by_model[name])
        interval = percentile_interval(resampled[:, index]) if prompts >= MIN_GROUPS else None
        ratings[name] = {"rating": float(fitted[index]), "interval": interval, "prompts": prompts}
    return dict(sorted(ratings.items(), key=lambda item: -item[1]["rating"]))


def _count_wins(votes_by_prompt: list[list[Vote]], models: list[str]) -> np.ndarray:
    """Count wins of the row's model over the column's, (prompts, models, models); the votes of a prompt add up to 1."""
    model_index = {name: index for index, name in enumerate(models)}
    wins = np.zeros((len(votes_by_prompt), len(models), len(models)))
    for prompt_index, prompt_votes in enumerate(votes_by_prompt):
        for vote in prompt_votes:
            first = model_index[vote.first]
            second = model_index[vote.second]
            first_share = first_model_score(vote) / len(prompt_votes)
            wins[prompt_index, first, second] += first_share
            wins[prompt_index, second, first] += 1 / len(prompt_votes) - first_share
    return wins


def fit_bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Fit ratings (resamples, models) to `wins` (resamples, models, models), of the row's model over the column's.

    Newton's method on the log-likelihood, which is concave; steps are clipped to 1 so that none overshoots.
    """
    model_count = wins.shape[-1]
    identity = np.eye(model_count)
    wins = wins + 0.5 * (1 - identity)  # one tie more between every two models
    games = wins + wins.transpose(0, 2, 1)

    strength = np.zeros(wins.shape[:2])  # (resamples, models), in log-odds
    for _ in range(MAX_NEWTON_STEPS):
        advantage = strength[:, None, :] - strength[:, :, None]
        win_probability = 1 / (1 + np.exp(advantage))  # (resamples, winner, loser)
        gradient = (wins - games * win_probability).sum(2)  # (resamples, models)

        # Ratings are determined up to a constant: 1 / models in every cell fixes their mean.
        information = games * win_probability * (1 - win_probability)
        diagonal = identity * information.sum(2)[:, :, None]
        negative_hessian = diagonal - information + 1 / model_count

        newton_step = np.linalg.solve(negative_hessian, gradient[..., None])[..., 0]
        newton_step = np.clip(newton_step, -1, 1)
        strength += newton_step
        if np.abs(newton_step).max() < NEWTON_TOLERANCE:
            break
    return MEAN_RATING + ELO_PER_LOG_ODDS * (strength - strength.mean(1, keepdims=True))


def compute_position_bias(votes: Iterable[Vote]) -> dict[str, Any] | None:
    """Return how often the answer on the left (A) wins among the votes for one of the two; None without such votes.

    Sides are drawn at random, so the share is one half where position plays no part. Wilson interval over votes.
    """
    choices = Counter(vote.choice for vote in votes)
    decided = choices["a"] + choices["b"]
    if not decided:
        return None
    return {"votes": decided, "a": choices["a"] / decided, "interval": wilson_interval(choices["a"], decided)}


def compute_agreement(votes: Iterable[Vote]) -> dict[str, Any]:
    """Measure how far annotators agree beyond chance on the outcome of a pair; skips are ignored.

    `pairwise` is Cohen's kappa (1960) of every two annotators on the pairs both voted on; `all` is Fleiss' kappa (1971)
    on the pairs that every annotator voted on, None for fewer than two people or pairs. Bootstrap intervals over pairs.
    """
    outcomes: dict[str, dict[int, str]] = defaultdict(dict)  # by annotator and pair
    for vote in votes:
        outcome = vote_outcome(vote)
        if outcome:
            outcomes[vote.annotator][vote.pair] = outcome
    names = sorted(outcomes)

    pairwise = []
    for one, other in combinations(names, 2):
        agreement = _agreement_of_annotators(outcomes, [one, other], cohen_kappa)
        if agreement:
            pairwise.append({"annotators": [one, other], **agreement})
    return {"pairwise": pairwise, "all": _agreement_of_annotators(outcomes, names, fleiss_kappa)}


def _agreement_of_annotators(
    outcomes: dict[str, dict[int, str]], names: list[str], kappa: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> dict[str, Any] | None:
    """Return raw agreement and a kappa on the pairs that all of `names` voted on; None for fewer than two of either."""
    if len(names) < 2:
        return None
    common_pairs = sorted(set.intersection(*(set(outcomes[name]) for name in names)))
    if len(common_pairs) < 2:
        return None

    table = [[outcomes[name][pair] for name in names] for pair in common_pairs]
    codes = [[OUTCOMES.index(outcome) for outcome in row] for row in table]
    one_hot = np.eye(len(OUTCOMES))[codes]  # (pairs, annotators, outcomes)
    equal_weights = np.ones((1, len(table)))
    value = float(kappa(one_hot, equal_weights)[0])
    return {
        "pairs": len(table),
        "agree": float(np.mean([len(set(row)) == 1 for row in table])),
        "kappa": value if np.isfinite(value) else None,  # undefined where everybody gave the same outcome to every pair
        "interval": bootstrap_interval(len(table), lambda weights: kappa(one_hot, weights)),
    }


def cohen_kappa(one_hot: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa (resamples,) of two annotators.

    `one_hot` is (pairs, 2, outcomes), `weights` (resamples, pairs). Expected agreement is that of two annotators who
    answer independently, each with their own shares of outcomes.
    """
    total = weights.sum(1)
    observed = weights @ (one_hot[:, 0] * one_hot[:, 1]).sum(1) / total
    shares = np.einsum("rp,pac->rac", weights, one_hot) / total[:, None, None]  # (resamples, annotators, outcomes)
    expected = (shares[:, 0] * shares[:, 1]).sum(1)
    return _agreement_beyond_chance(observed, expected)


def fleiss_kappa(one_hot: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Fleiss' kappa (resamples,) of n annotators.

    `one_hot` is (pairs, n, outcomes), `weights` (resamples, pairs). Observed agreement is the share of agreeing couples
    of annotators, expected agreement follows from the shares of outcomes of all together.
    """
    annotator_count = one_hot.shape[1]
    total = weights.sum(1)
    counts = one_hot.sum(1)  # (pairs, outcomes)

    agreeing_couples = (counts * (counts - 1)).sum(1)
    observed = weights @ (agreeing_couples / (annotator_count * (annotator_count - 1))) / total
    shares = weights @ counts / (annotator_count * total[:, None])  # (resamples, outcomes)
    expected = (shares**2).sum(1)
    return _agreement_beyond_chance(observed, expected)


def _agreement_beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return (observed - expected) / (1 - expected); not a number where chance explains everything."""
    possible = 1 - expected
    undefined = np.full_like(possible, np.nan)
    return np.divide(observed - expected, possible, out=undefined, where=possible > 1e-12)


def compute_mean_scores(votes: Iterable[Vote], models: list[str]) -> dict[str, dict[str, Any]]:
    """Return each model's mean score from 1 to 5, each prompt counting once, with a bootstrap interval over prompts."""
    scores_by_model: dict[str, list[tuple[int, float]]] = {name: [] for name in models}
    for vote in votes:
        if vote.score_a is not None:
            scores_by_model[vote.model_a].append((vote.prompt, vote.score_a))
        if vote.score_b is not None:
            scores_by_model[vote.model_b].append((vote.prompt, vote.score_b))

    mean_scores = {}
    for name, scores in scores_by_model.items():
        if not scores:
            continue
        values = np.array(list(_mean_by_prompt(scores).values()))
        interval = bootstrap_interval(len(values), lambda weights, values=values: weights @ values / weights.sum(1))
        mean_scores[name] = {"mean": float(values.mean()), "interval": interval, "scores": len(scores)}
    return mean_scores


def summarize_annotators(votes: Iterable[Vote]) -> dict[str, dict[str, Any]]:
    """Count each annotator's votes by choice, with the median seconds of a vote and the position bias."""
    votes_by_annotator: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        votes_by_annotator[vote.annotator].append(vote)

    annotators = {}
    for name, annotator_votes in sorted(votes_by_annotator.items()):
        counts = Counter(vote.choice for vote in annotator_votes)
        seconds = [vote.seconds for vote in annotator_votes if vote.seconds is not None]
        annotators[name] = {
            "votes": len(annotator_votes),
            "choices": {choice: counts[choice] for choice in CHOICES},
            "seconds": median(seconds) if seconds else None,
            "position": compute_position_bias(annotator_votes),
        }
    return annotators


def majority_outcomes(votes: Iterable[Vote]) -> dict[int, str | None]:
    """Return by pair the most frequent outcome, or None where two are equally frequent. Skips do not count."""
    counts_by_pair: dict[int, Counter] = defaultdict(Counter)
    for vote in votes:
        outcome = vote_outcome(vote)
        if outcome:
            counts_by_pair[vote.pair][outcome] += 1

    majorities: dict[int, str | None] = {}
    for pair, counts in counts_by_pair.items():
        top_two = counts.most_common(2)
        is_draw = len(top_two) == 2 and top_two[0][1] == top_two[1][1]
        majorities[pair] = None if is_draw else top_two[0][0]
    return majorities
