"""Means over seeds with intervals, and whether a variant differs from the baseline. All intervals are 95%."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

LEVEL = 0.95
Interval = tuple[float, float]

BETTER, WORSE, NOT_APART, ONE_SEED = "better", "worse", "not told apart", "one seed"


def student_t(freedom: int) -> float:
    """The half-width, in standard errors, of Student's t interval with so many degrees of freedom.

    By bisection of the distribution function's finite series (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """The probability that |t| is below sqrt(freedom) * tan(angle)."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    terms = []
    for n in range(1 + odd, freedom, 2):
        terms.append(term)
        term *= math.cos(angle) ** 2 * n / (n + 1)
    total = math.sin(angle) * sum(terms)
    return 2 / math.pi * (angle + total) if odd else total


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    half = student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def paired(variant: dict[int, float], baseline: dict[int, float]) -> tuple[float | None, Interval | None, str | None]:
    """The mean difference of a score by seed (variant minus baseline, less is better), its interval and the verdict.

    Only seeds that both have count: the same seed means the same data in the same order. None without any.
    """
    differences = [value - baseline[seed] for seed, value in sorted(variant.items()) if seed in baseline]
    if not differences:
        return None, None, None
    interval = mean_interval(differences)
    if interval is None:
        return differences[0], None, ONE_SEED
    low, high = interval
    return fmean(differences), interval, BETTER if high < 0 else WORSE if low > 0 else NOT_APART
