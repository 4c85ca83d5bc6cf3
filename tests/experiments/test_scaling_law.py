"""Planted scaling laws are recovered, and points that allow none are refused."""

import numpy as np
import pytest

from hf_llm.experiments.scaling_law import NoLaw, ScalingLaw

FLOPS = (1e12, 3e12, 1e13, 3e13)
GOAL = 2e14


def planted_law(floor, amplitude, exponent):
    return lambda flops: floor + amplitude * (np.asarray(flops) / 1e12) ** -exponent


@pytest.mark.parametrize(
    ("floor", "amplitude", "exponent"), [(0.6, 1.2, 0.15), (0.8, 1.0, 0.25), (0.45, 1.3, 0.1), (0.3, 1.5, 0.12)]
)
@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_a_planted_law_lies_within_the_interval(floor, amplitude, exponent, seed):
    truth = planted_law(floor, amplitude, exponent)
    losses = truth(FLOPS) * np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(FLOPS)))
    law = ScalingLaw(list(zip(FLOPS, losses, strict=True)))
    predicted = law.predict(GOAL)
    assert predicted.low < truth(GOAL) < predicted.high
    assert predicted.high - predicted.low < 0.2 * predicted.loss
    assert law(FLOPS) == pytest.approx(losses, rel=0.02)


def test_without_noise_predictions_are_close_and_nearer_ones_more_certain():
    truth = planted_law(0.6, 1.2, 0.15)
    law = ScalingLaw([(flops, float(truth(flops))) for flops in FLOPS])
    assert law.predict(GOAL).loss == pytest.approx(truth(GOAL), rel=0.01)
    predictions = [law.predict(flops) for flops in (4e13, 1e14, 3e14)]
    widths = [prediction.high - prediction.low for prediction in predictions]
    assert widths == sorted(widths)


def test_one_outlier_does_not_move_the_law_far():
    truth = planted_law(0.6, 1.2, 0.15)
    points = [(flops, float(truth(flops))) for flops in (1e12, 2e12, 4e12, 1e13, 3e13)]
    points[2] = (4e12, points[2][1] * 1.02)
    assert ScalingLaw(points).predict(GOAL).loss == pytest.approx(truth(GOAL), rel=0.015)


def test_noise_is_refused():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(20):
        try:
            ScalingLaw(list(zip(FLOPS, 1.5 + 0.3 * rng.random(len(FLOPS)), strict=True)))
        except NoLaw:
            refused += 1
    assert refused >= 19


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([(1e12, 1.9), (1e13, 1.7)], "too few"),
        ([(1e12, 1.9), (1e13, 1.7), (1e14, 1.71)], "does not fall"),
        ([(1e12, 1.9), (2e12, 1.85), (3e12, 1.8)], "at least"),
        ([(1e12, 1.9), (1e13, 1.89), (1e14, 1.2)], "off the best law"),
        ([(1e12, 0.1), (1e13, 0.09), (1e14, 0.08)], "below the known entropy"),
    ],
)
def test_points_that_allow_no_law_are_refused_with_the_reason(points, reason):
    with pytest.raises(NoLaw, match=reason):
        ScalingLaw(points)


def test_nothing_is_predicted_far_beyond_the_largest():
    law = ScalingLaw([(1e12, 1.9), (1e13, 1.6), (1e14, 1.38)])
    assert law.predict(9e14).loss < 1.38
    with pytest.raises(NoLaw, match="12 times those of the largest"):
        law.predict(1.2e15)
