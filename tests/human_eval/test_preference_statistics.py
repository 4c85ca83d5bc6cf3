import math
import random
from collections import Counter

import numpy as np
import pytest

from hf_llm.human_eval.preference_statistics import (
    bootstrap_interval,
    compute_agreement,
    compute_mean_scores,
    compute_position_bias,
    compute_ratings,
    compute_win_rates,
    fit_bradley_terry,
    majority_outcomes,
    summarize_annotators,
    vote_outcome,
    wilson_interval,
)
from tests.human_eval.comparison import vote


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_newcombes(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_solves_its_equation():
    """The ends are the shares p from which 7 of 10 is 1.96 standard errors away."""
    for end in wilson_interval(7, 10):
        assert abs(0.7 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 10), abs=1e-9)


def test_wins_are_counted_by_model_whatever_the_side():
    votes = [
        vote(0, "a"),
        vote(1, "b", first_is_a=False),
        vote(2, "b"),
        vote(3, "tie"),
        vote(4, "bad"),
        vote(5, "skip"),
    ]
    assert [vote_outcome(v) for v in votes] == ["first", "first", "second", "tie", "bad", None]
    [match] = compute_win_rates(votes)
    assert match["votes"] == {"first": 2, "second": 1, "tie": 1, "bad": 1, "skip": 1}
    assert match["win_rate"] == {"value": 3 / 5, "interval": wilson_interval(3, 5), "prompts": 5}
    assert match["decided"] == {"value": 2 / 3, "interval": wilson_interval(2, 3), "prompts": 3}


def test_ten_annotators_of_one_prompt_count_as_one_prompt():
    votes = [vote(pair, "a" if pair else "b", annotator=str(n)) for pair in range(4) for n in range(10)]
    assert compute_win_rates(votes)[0]["win_rate"] == {"value": 0.75, "interval": wilson_interval(3, 4), "prompts": 4}


def test_a_match_of_skips_alone_has_no_win_rate():
    assert compute_win_rates([vote(0, "skip")])[0]["win_rate"] is None
    assert compute_ratings([vote(0, "skip")], ["x", "y"]) == {}


def test_two_models_are_rated_by_the_logarithm_of_their_odds():
    votes = [vote(n, "a" if n < 75 else "b") for n in range(100)]
    ratings = compute_ratings(votes, ["x", "y"])
    assert list(ratings) == ["x", "y"]
    difference = ratings["x"]["rating"] - ratings["y"]["rating"]
    assert difference == pytest.approx(400 * math.log10(75.5 / 25.5), abs=1e-6)
    low, high = (end - 1000 for end in ratings["x"]["interval"])
    # The delta method: the log-odds of 75 of 100 have the standard error 1 / sqrt(100 * 0.75 * 0.25).
    half = 1.96 * 200 / math.log(10) / math.sqrt(100 * 0.75 * 0.25)
    assert (low, high) == pytest.approx((difference / 2 - half, difference / 2 + half), abs=8)


def test_ratings_of_three_models_are_the_most_likely_ones():
    wins = np.array([[[0, 30, 45], [12, 0, 28], [5, 14, 0]]], dtype=float)
    strength = (fit_bradley_terry(wins)[0] - 1000) * math.log(10) / 400
    with_ties = wins[0] + 0.5 * (1 - np.eye(3))

    def likelihood(at):
        return sum(with_ties[i, j] * -math.log1p(math.exp(at[j] - at[i])) for i in range(3) for j in range(3) if i != j)

    best = likelihood(strength)
    for i in range(3):
        for nudge in (-1e-3, 1e-3):
            assert likelihood(strength + nudge * np.eye(3)[i]) < best
    assert strength.sum() == pytest.approx(0, abs=1e-9)


def test_a_model_that_always_wins_has_a_finite_rating():
    votes = [vote(n, "a") for n in range(200)]
    ratings = compute_ratings(votes, ["x", "y"])
    assert ratings["x"]["rating"] - ratings["y"]["rating"] == pytest.approx(400 * math.log10(200.5 / 0.5), abs=1e-6)


def test_a_scripted_annotator_who_is_right_70_per_cent_of_the_time_is_recovered():
    inside = 0
    inside_rating = 0
    for seed in range(60):
        rng = random.Random(seed)
        votes = []
        for n in range(200):
            first_is_a = rng.random() < 0.5
            right = rng.random() < 0.7
            votes.append(vote(n, "a" if first_is_a == right else "b", first_is_a=first_is_a))
        low, high = compute_win_rates(votes)[0]["win_rate"]["interval"]
        inside += low <= 0.7 <= high
        low, high = compute_ratings(votes, ["x", "y"])["x"]["interval"]
        inside_rating += low <= 1000 + 200 * math.log10(0.7 / 0.3) <= high
    assert 53 <= inside <= 60  # 95% of 60 are 57; fewer than 53 have a chance of 2%
    assert 53 <= inside_rating <= 60


def test_position_bias_is_the_share_of_the_left_answer():
    votes = [vote(n, "a" if n < 60 else "b", first_is_a=n % 2 == 0) for n in range(80)] + [vote(99, "tie")]
    assert compute_position_bias(votes) == {"votes": 80, "a": 0.75, "interval": wilson_interval(60, 80)}
    assert compute_position_bias([vote(0, "tie")]) is None


def votes_of_two(table: dict[tuple[str, str], int]) -> list:
    votes = []
    pair = 0
    for (one, other), count in table.items():
        for _ in range(count):
            votes += [vote(pair, one, "Ada"), vote(pair, other, "Ben")]
            pair += 1
    return votes


def test_cohens_kappa_is_the_one_computed_by_hand():
    """50 pairs: they agree on 20 + 15; 0.7 observed, 0.5 by chance (25/50 and 30/50 for a): kappa 0.4."""
    agreement = compute_agreement(votes_of_two({("a", "a"): 20, ("a", "b"): 5, ("b", "a"): 10, ("b", "b"): 15}))
    [entry] = agreement["pairwise"]
    assert entry["annotators"] == ["Ada", "Ben"]
    assert (entry["pairs"], entry["agree"]) == (50, 0.7)
    assert entry["kappa"] == pytest.approx(0.4)
    low, high = entry["interval"]
    assert 0.05 < low < 0.25 and 0.55 < high < 0.72  # 0.4 +- 1.96 * 0.127, the usual standard error


def test_kappa_compares_models_not_sides():
    votes = [vote(n, "a", "Ada") for n in range(3)] + [vote(n, "b", "Ben", first_is_a=False) for n in range(3)]
    votes += [vote(3, "b", "Ada"), vote(3, "b", "Ben"), vote(4, "skip", "Ada"), vote(4, "a", "Ben")]
    assert compute_agreement(votes)["pairwise"][0] == compute_agreement(votes)["pairwise"][0] | {
        "pairs": 4,
        "agree": 1.0,
        "kappa": 1.0,
    }


def test_fleiss_kappa_is_the_one_computed_by_hand():
    """4 pairs, 3 annotators: AAA, AAB, BBB, ABB. Observed (1 + 1/3 + 1 + 1/3) / 4 = 2/3; by chance 1/2; kappa 1/3."""
    choices = ["aaa", "aab", "bbb", "abb"]
    votes = []
    for pair, row in enumerate(choices):
        votes += [vote(pair, choice, name) for name, choice in zip("PQR", row, strict=True)]
    agreement = compute_agreement(votes)
    assert agreement["all"]["kappa"] == pytest.approx(1 / 3)
    assert (agreement["all"]["pairs"], agreement["all"]["agree"]) == (4, 0.5)
    assert len(agreement["pairwise"]) == 3


def test_kappa_is_undefined_where_all_say_the_same_of_everything():
    agreement = compute_agreement(votes_of_two({("a", "a"): 5}))
    assert agreement["pairwise"][0]["kappa"] is None
    assert agreement["pairwise"][0]["agree"] == 1.0
    assert compute_agreement([vote(0, "a")]) == {"pairwise": [], "all": None}


def test_scores_belong_to_the_model_on_that_side():
    votes = [vote(0, "a", score_a=5, score_b=2), vote(1, "a", first_is_a=False, score_a=1, score_b=4), vote(2, "tie")]
    scores = compute_mean_scores(votes, ["x", "y", "z"])
    assert (scores["x"]["mean"], scores["x"]["scores"]) == (4.5, 2)
    assert scores["y"]["mean"] == 1.5
    assert scores["x"]["interval"] is None  # two prompts say nothing of the next ones
    assert "z" not in scores


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = bootstrap_interval(400, lambda weights: weights @ values / weights.sum(1))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap_interval(1, lambda weights: weights[:, 0]) is None


def test_most_annotators_decide_and_a_draw_decides_nothing():
    choices = {0: "aab", 1: "ab", 2: "att", 3: "as", 4: "tt", 5: "ss", 6: "axt"}
    names = {"a": "a", "b": "b", "t": "tie", "s": "skip", "x": "bad"}
    votes = [vote(pair, names[c], str(n)) for pair, row in choices.items() for n, c in enumerate(row)]
    assert majority_outcomes(votes) == {0: "first", 1: None, 2: "tie", 3: "first", 4: "tie", 6: None}


def test_annotators_are_counted_one_by_one():
    votes = [vote(0, "a", seconds=2.0), vote(1, "skip", seconds=4.0), vote(0, "b", "Ben")]
    annotators = summarize_annotators(votes)
    assert annotators["Ada"]["votes"] == 2
    assert annotators["Ada"]["seconds"] == 3.0
    assert Counter(annotators["Ada"]["choices"]) == Counter({"a": 1, "skip": 1})
    assert annotators["Ben"]["seconds"] is None


def test_there_is_no_interval_where_nothing_varies_or_too_little_was_seen():
    few = [vote(n, "a" if n % 2 else "b") for n in range(4)]
    same = [vote(n, "tie") for n in range(40)]
    for votes in (few, same):
        assert all(entry["interval"] is None for entry in compute_ratings(votes, ["x", "y"]).values())
    agreement = compute_agreement(votes_of_two({("a", "b"): 1, ("b", "a"): 1}))
    assert agreement["pairwise"][0]["interval"] is None
    scores = compute_mean_scores([vote(n, "a", score_a=4) for n in range(40)], ["x", "y"])
    assert scores["x"] == {"mean": 4.0, "interval": None, "scores": 40}


def test_a_model_that_nobody_voted_on_is_not_rated():
    votes = [vote(n, "a" if n < 12 else "b") for n in range(20)] + [vote(30, "skip", second="unseen")]
    ratings = compute_ratings(votes, ["x", "y", "unseen"])
    assert list(ratings) == ["x", "y"]
    assert ratings == compute_ratings(votes, ["x", "y"])
    assert ratings["x"]["prompts"] == 20
