import math
import random
from collections import Counter

import numpy as np
import pytest

from hf_llm.human_eval.preference_statistics import (
    agreement,
    annotators,
    bootstrap,
    bradley_terry,
    mean_scores,
    outcome,
    position,
    ratings,
    verdicts,
    wilson,
    win_rates,
)
from tests.human_eval.comparison import vote


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_newcombes(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_solves_its_equation():
    """The ends are the shares p from which 7 of 10 is 1.96 standard errors away."""
    for end in wilson(7, 10):
        assert abs(0.7 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 10), abs=1e-9)


def test_wins_are_counted_by_model_whatever_the_side():
    cast = [vote(0, "a"), vote(1, "b", first_is_a=False), vote(2, "b"), vote(3, "tie"), vote(4, "bad"), vote(5, "skip")]
    assert [outcome(v) for v in cast] == ["first", "first", "second", "tie", "bad", None]
    [match] = win_rates(cast)
    assert match["votes"] == {"first": 2, "second": 1, "tie": 1, "bad": 1, "skip": 1}
    assert match["win_rate"] == {"value": 3 / 5, "interval": wilson(3, 5), "prompts": 5}
    assert match["decided"] == {"value": 2 / 3, "interval": wilson(2, 3), "prompts": 3}


def test_ten_annotators_of_one_prompt_are_no_ten_prompts():
    cast = [vote(pair, "a" if pair else "b", annotator=str(n)) for pair in range(4) for n in range(10)]
    assert win_rates(cast)[0]["win_rate"] == {"value": 0.75, "interval": wilson(3, 4), "prompts": 4}


def test_a_match_of_skips_alone_has_no_win_rate():
    assert win_rates([vote(0, "skip")])[0]["win_rate"] is None
    assert ratings([vote(0, "skip")], ["x", "y"]) == {}


def test_two_models_are_rated_by_the_logarithm_of_their_odds():
    cast = [vote(n, "a" if n < 75 else "b") for n in range(100)]
    found = ratings(cast, ["x", "y"])
    assert list(found) == ["x", "y"]
    difference = found["x"]["rating"] - found["y"]["rating"]
    assert difference == pytest.approx(400 * math.log10(75.5 / 25.5), abs=1e-6)
    low, high = (end - 1000 for end in found["x"]["interval"])
    # The delta method: the log-odds of 75 of 100 have the standard error 1 / sqrt(100 * 0.75 * 0.25).
    half = 1.96 * 200 / math.log(10) / math.sqrt(100 * 0.75 * 0.25)
    assert (low, high) == pytest.approx((difference / 2 - half, difference / 2 + half), abs=8)


def test_ratings_of_three_models_are_the_most_likely_ones():
    wins = np.array([[[0, 30, 45], [12, 0, 28], [5, 14, 0]]], dtype=float)
    strength = (bradley_terry(wins)[0] - 1000) * math.log(10) / 400
    with_ties = wins[0] + 0.5 * (1 - np.eye(3))

    def likelihood(at):
        return sum(with_ties[i, j] * -math.log1p(math.exp(at[j] - at[i])) for i in range(3) for j in range(3) if i != j)

    best = likelihood(strength)
    for i in range(3):
        for nudge in (-1e-3, 1e-3):
            assert likelihood(strength + nudge * np.eye(3)[i]) < best
    assert strength.sum() == pytest.approx(0, abs=1e-9)


def test_a_model_that_always_wins_has_a_finite_rating():
    cast = [vote(n, "a") for n in range(200)]
    found = ratings(cast, ["x", "y"])
    assert found["x"]["rating"] - found["y"]["rating"] == pytest.approx(400 * math.log10(200.5 / 0.5), abs=1e-6)


def test_a_scripted_annotator_who_is_right_70_per_cent_of_the_time_is_recovered():
    inside, inside_rating = 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        cast = []
        for n in range(200):
            first_is_a, right = rng.random() < 0.5, rng.random() < 0.7
            cast.append(vote(n, "a" if first_is_a == right else "b", first_is_a=first_is_a))
        low, high = win_rates(cast)[0]["win_rate"]["interval"]
        inside += low <= 0.7 <= high
        low, high = ratings(cast, ["x", "y"])["x"]["interval"]
        inside_rating += low <= 1000 + 200 * math.log10(0.7 / 0.3) <= high
    assert 53 <= inside <= 60  # 95% of 60 are 57; fewer than 53 have a chance of 2%
    assert 53 <= inside_rating <= 60


def test_position_bias_is_the_share_of_the_left_answer():
    cast = [vote(n, "a" if n < 60 else "b", first_is_a=n % 2 == 0) for n in range(80)] + [vote(99, "tie")]
    assert position(cast) == {"votes": 80, "a": 0.75, "interval": wilson(60, 80)}
    assert position([vote(0, "tie")]) is None


def two_annotators(table: dict[tuple[str, str], int]) -> list:
    cast, pair = [], 0
    for (one, other), count in table.items():
        for _ in range(count):
            cast += [vote(pair, one, "Ada"), vote(pair, other, "Ben")]
            pair += 1
    return cast


def test_cohens_kappa_is_the_one_computed_by_hand():
    """50 pairs: they agree on 20 + 15; 0.7 observed, 0.5 by chance (25/50 and 30/50 for a): kappa 0.4."""
    found = agreement(two_annotators({("a", "a"): 20, ("a", "b"): 5, ("b", "a"): 10, ("b", "b"): 15}))
    [entry] = found["pairwise"]
    assert entry["annotators"] == ["Ada", "Ben"]
    assert (entry["pairs"], entry["agree"]) == (50, 0.7)
    assert entry["kappa"] == pytest.approx(0.4)
    low, high = entry["interval"]
    assert 0.05 < low < 0.25 and 0.55 < high < 0.72  # 0.4 +- 1.96 * 0.127, the usual standard error


def test_kappa_compares_models_not_sides():
    cast = [vote(n, "a", "Ada") for n in range(3)] + [vote(n, "b", "Ben", first_is_a=False) for n in range(3)]
    cast += [vote(3, "b", "Ada"), vote(3, "b", "Ben"), vote(4, "skip", "Ada"), vote(4, "a", "Ben")]
    assert agreement(cast)["pairwise"][0] == agreement(cast)["pairwise"][0] | {"pairs": 4, "agree": 1.0, "kappa": 1.0}


def test_fleiss_kappa_is_the_one_computed_by_hand():
    """4 pairs, 3 annotators: AAA, AAB, BBB, ABB. Observed (1 + 1/3 + 1 + 1/3) / 4 = 2/3; by chance 1/2; kappa 1/3."""
    said = ["aaa", "aab", "bbb", "abb"]
    cast = [vote(pair, choice, name) for pair, row in enumerate(said) for name, choice in zip("PQR", row, strict=True)]
    found = agreement(cast)
    assert found["all"]["kappa"] == pytest.approx(1 / 3)
    assert (found["all"]["pairs"], found["all"]["agree"]) == (4, 0.5)
    assert len(found["pairwise"]) == 3


def test_kappa_is_undefined_where_all_say_the_same_of_everything():
    found = agreement(two_annotators({("a", "a"): 5}))
    assert found["pairwise"][0]["kappa"] is None
    assert found["pairwise"][0]["agree"] == 1.0
    assert agreement([vote(0, "a")]) == {"pairwise": [], "all": None}


def test_scores_belong_to_the_model_on_that_side():
    cast = [vote(0, "a", score_a=5, score_b=2), vote(1, "a", first_is_a=False, score_a=1, score_b=4), vote(2, "tie")]
    found = mean_scores(cast, ["x", "y", "z"])
    assert (found["x"]["mean"], found["x"]["scores"]) == (4.5, 2)
    assert found["y"]["mean"] == 1.5
    assert found["x"]["interval"] == (4.0, 5.0)
    assert "z" not in found


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = bootstrap(400, lambda weights: weights @ values / weights.sum(1))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap(1, lambda weights: weights[:, 0]) is None


def test_most_annotators_decide_and_a_draw_decides_nothing():
    said = {0: "aab", 1: "ab", 2: "att", 3: "as", 4: "tt", 5: "ss", 6: "axt"}
    names = {"a": "a", "b": "b", "t": "tie", "s": "skip", "x": "bad"}
    cast = [vote(pair, names[c], str(n)) for pair, row in said.items() for n, c in enumerate(row)]
    assert verdicts(cast) == {0: "first", 1: None, 2: "tie", 3: "first", 4: "tie", 6: None}


def test_annotators_are_counted_one_by_one():
    cast = [vote(0, "a", seconds=2.0), vote(1, "skip", seconds=4.0), vote(0, "b", "Ben")]
    found = annotators(cast)
    assert found["Ada"]["votes"] == 2
    assert found["Ada"]["seconds"] == 3.0
    assert Counter(found["Ada"]["choices"]) == Counter({"a": 1, "skip": 1})
    assert found["Ben"]["seconds"] is None
