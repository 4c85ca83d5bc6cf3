"""Find steps whose loss or gradient norm is an outlier among those of the steps before."""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

# The least deviation that is assumed: in a quiet run the measured one is so small that a healthy update lies many of
# them above the mean (a gradient norm of 1.15 above 0.94 +- 0.01). With the usual six deviations an update is dropped
# from 0.3 nats above the mean loss, or 2.2 times the mean gradient norm; spikes that do harm are far above both.
MIN_LOSS_DEVIATION = 0.05  # in nats
MIN_DEVIATION_SHARE = {"loss": 0.01, "gradient norm": 0.2}  # of the mean


@dataclass
class SpikeSection:
    """Which updates to skip: those whose loss or gradient norm lies far above the mean of the steps before.

    Limit and window are those of OLMo-core's SkipStepOptimizer. The deviation is taken to be at least 0.05 nats of the
    loss and a fifth of the gradient norm, so that a quiet run does not drop healthy updates.
    """

    sigma: float | None = 6.0
    """Standard deviations above the mean from which an update is skipped; null skips none."""
    window: int = 128
    """Number of recent steps to compare with; nothing is skipped in the first half of the first window."""

    def __post_init__(self) -> None:
        if self.window < 2 or (self.sigma is not None and self.sigma <= 0):
            raise ValueError("window must be at least 2 steps, and sigma above 0; sigma: null skips no update")


class RecentSteps:
    """Loss and gradient norm of the last `spikes.window` steps, and the outlier test of the next one.

    An outlier is remembered as the limit that it exceeded instead of its own value. So it does not hide the outliers
    after it, and where the loss rises to a new level and stays there (other data), only a few steps are skipped.
    """

    def __init__(self, spikes: SpikeSection):
        self.spikes = spikes
        self.forget_steps()

    def forget_steps(self) -> None:
        """Forget all steps."""
        self.load_state_dict({"loss": [], "gradient norm": []})

    def state_dict(self) -> dict[str, list[float]]:
        """Return what `load_state_dict` takes, as plain values."""
        return {name: list(values) for name, values in self._values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict` of an earlier training."""
        self._values = {name: deque(values, self.spikes.window) for name, values in state.items()}

    def find_outlier(self, loss: float, norm: float) -> str:
        """Remember a step and return what is an outlier in it, or "".

        A step that is not finite is neither tested nor remembered.
        """
        if self.spikes.sigma is None or not (math.isfinite(loss) and math.isfinite(norm)):
            return ""

        outlier = ""
        for (name, values), value in zip(self._values.items(), (loss, norm), strict=True):
            limit = self._outlier_limit(name, values)
            if value > limit and not outlier:
                outlier = f"{name} {value:.4g} is above {limit:.4g}, mean + {self.spikes.sigma:g} deviations"
            values.append(min(value, limit))
        return outlier

    def _outlier_limit(self, name: str, values: deque) -> float:
        """Return the value above which a `loss` or `gradient norm` is an outlier among `values`."""
        if len(values) < self.spikes.window // 2:
            return math.inf

        mean = statistics.fmean(values)
        deviation = math.sqrt(statistics.fmean((value - mean) ** 2 for value in values))
        least_deviation = MIN_DEVIATION_SHARE[name] * abs(mean)
        if name == "loss":
            least_deviation = max(least_deviation, MIN_LOSS_DEVIATION)
        return mean + self.spikes.sigma * max(deviation, least_deviation)
