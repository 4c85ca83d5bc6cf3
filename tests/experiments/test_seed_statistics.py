"""Intervals and verdicts, against tables and values worked out by hand."""

import pytest

from hf_llm.experiments.seed_statistics import (
    BETTER,
    INCONCLUSIVE,
    ONE_SEED,
    WORSE,
    compare_paired,
    mean_interval,
    student_t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_students_t_is_that_of_the_tables(degrees, quantile):
    assert student_t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_the_interval_of_a_mean_is_that_worked_out_by_hand():
    # 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3) = 0.57735; times 4.30265 that is 2.48414.
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)


def test_one_value_has_no_interval():
    assert mean_interval([1.0]) is None
    assert compare_paired({1: 1.5}, {1: 1.0}) == (0.5, None, ONE_SEED)


def test_differences_are_paired_by_seed():
    # Seeds differ by far more than the variants; seed by seed the difference is -0.1, -0.2, -0.3.
    baseline = {1: 10.0, 2: 20.0, 3: 30.0}
    variant = {1: 9.9, 2: 19.8, 3: 29.7}
    difference, (low, high), verdict = compare_paired(variant, baseline)
    assert difference == pytest.approx(-0.2)
    assert (low, high) == pytest.approx((-0.2 - 0.248414, -0.2 + 0.248414), abs=1e-5)
    assert verdict == INCONCLUSIVE
    assert compare_paired({1: 9.9, 2: 19.89, 3: 29.91}, baseline)[2] == BETTER
    assert compare_paired({1: 10.1, 2: 20.09, 3: 30.11}, baseline)[2] == WORSE


def test_only_seeds_that_both_have_count():
    assert compare_paired({2: 1.0, 3: 5.0}, {1: 0.0, 2: 2.0})[0] == -1.0
    assert compare_paired({2: 1.0}, {1: 0.0}) == (None, None, None)
