"""Turn scores by seed into means with 95% intervals, and tell whether a variant differs from the baseline."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

LEVEL = 0.95
Interval = tuple[float, float]

# Verdicts on a variant, as results.json holds them.
BETTER = "better"
WORSE = "worse"
INCONCLUSIVE = "not told apart"
ONE_SEED = "one seed"

BISECTION_TOLERANCE = 1e-12  # radians


def student_t_quantile(degrees: int) -> float:
    """Return the half-width, in standard errors, of Student's t interval at LEVEL with so many degrees of freedom.

    By bisection of the distribution function's finite series (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    low = 0.0
    high = math.pi / 2
    while high - low > BISECTION_TOLERANCE:
        middle = (low + high) / 2
        if _probability_within(middle, degrees) < LEVEL:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def _probability_within(angle: float, degrees: int) -> float:
    """Return the probability that |t| is below sqrt(degrees) * tan(angle)."""
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    terms = []
    for n in range(1 + is_odd, degrees, 2):
        terms.append(term)
        term *= math.cos(angle) ** 2 * n / (n + 1)
    series = math.sin(angle) * sum(terms)
    if is_odd:
        return 2 / math.pi * (angle + series)
    return series


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's t interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    quantile = student_t_quantile(len(values) - 1)
    half_width = quantile * stdev(values) / math.sqrt(len(values))
    mean = fmean(values)
    return mean - half_width, mean + half_width


def compare_paired(
    variant: dict[int, float], baseline: dict[int, float]
) -> tuple[float | None, Interval | None, str | None]:
    """Return the mean difference of a score (variant minus baseline, less is better), its interval and the verdict.

    Scores are by seed, and differences are paired by it: the same seed means the same data in the same order. Seeds
    that only one of the two has are ignored; all three are None where no seed is left.
    """
    differences = [score - baseline[seed] for seed, score in sorted(variant.items()) if seed in baseline]
    if not differences:
        return None, None, None
    interval = mean_interval(differences)
    if interval is None:
        return differences[0], None, ONE_SEED

    low, high = interval
    if high < 0:
        verdict = BETTER
    elif low > 0:
        verdict = WORSE
    else:
        verdict = INCONCLUSIVE
    return fmean(differences), interval, verdict
