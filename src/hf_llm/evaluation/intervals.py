"""95% intervals of shares and of statistics over groups."""

from collections.abc import Callable

import numpy as np

Z_95 = 1.959964  # quantile 0.975 of the normal distribution
RESAMPLES = 2000
SAME = 1e-9  # relative difference below which two values are the same but for rounding
MIN_GROUPS = 10  # resampling fewer says nothing of how much another sample would differ

Interval = tuple[float, float]


def wilson_interval(successes: float, trials: int) -> Interval:
    """The Wilson score interval of a share (Wilson 1927).

    For values between 0 and 1 instead of yes and no it is wider than need be and never narrower, since no such values
    vary more than yes and no do.
    """
    assert 0 <= successes <= trials and trials > 0
    share = successes / trials
    centre = (share + Z_95**2 / (2 * trials)) / (1 + Z_95**2 / trials)
    half = Z_95 / (1 + Z_95**2 / trials) * np.sqrt(share * (1 - share) / trials + Z_95**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap_interval(groups: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Interval | None:
    """The percentile interval (Efron 1979) of a statistic over resampled groups.

    None for fewer than `MIN_GROUPS` groups, and where every resample has the same value: then the groups do not vary,
    and the interval would have no width.

    `statistic` takes how often each group was drawn, (RESAMPLES, groups), and returns (RESAMPLES,) values; those that
    are not finite are left out.
    """
    if groups < MIN_GROUPS:
        return None
    return percentile_interval(statistic(draw_resamples(groups, seed)))


def draw_resamples(groups: int, seed: int = 0) -> np.ndarray:
    """How often each group is drawn, (RESAMPLES, groups)."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return draws.astype(float)


def percentile_interval(values: np.ndarray) -> Interval | None:
    """The middle 95% of the values (RESAMPLES,) that are finite; None where none are, or all are the same."""
    values = values[np.isfinite(values)]
    if not values.size or np.ptp(values) <= SAME * max(1.0, float(np.abs(values).max())):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
