"""Steps whose loss or gradient norm stands out from those of the steps before."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

LEAST_DEVIATION = 0.01  # of the mean: a loss that hardly moves would make a spike of the smallest change


@dataclass
class Spikes:
    """Which updates to skip: those whose loss or gradient norm lies far above the mean of the steps before.

    Limit and window are those of OLMo-core's SkipStepOptimizer.
    """

    sigma: float | None = field(default=6.0, metadata={"help": "standard deviations above it; null to skip none"})
    window: int = field(default=128, metadata={"help": "steps looked back on; nothing is skipped in the first half"})

    def __post_init__(self) -> None:
        if self.window < 2 or (self.sigma is not None and self.sigma <= 0):
            raise ValueError("window is 2 steps or more, and sigma is above 0; sigma: null skips no update")


class RecentSteps:
    """Loss and gradient norm of the last `spikes.window` steps, and the judgement of the next one.

    A value that stands out is remembered as the limit it has broken: so one of them hides none of those that follow,
    and where the loss has a new level for good (other data), a few steps are skipped and then no more.
    """

    def __init__(self, spikes: Spikes):
        self.spikes = spikes
        self.clear()

    def clear(self) -> None:
        """Forget all steps."""
        self.recall({"loss": [], "gradient norm": []})

    def state(self) -> dict[str, list[float]]:
        """What `recall` takes."""
        return {name: list(values) for name, values in self._values.items()}

    def recall(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of an earlier training."""
        self._values = {name: deque(values, self.spikes.window) for name, values in state.items()}

    def judge(self, loss: float, norm: float) -> str:
        """Remember a step; say what stands out in it, or "". What is not finite is neither judged nor remembered."""
        if self.spikes.sigma is None or not (math.isfinite(loss) and math.isfinite(norm)):
            return ""
        found = ""
        for (name, values), value in zip(self._values.items(), (loss, norm), strict=True):
            limit = self._limit(values)
            if value > limit:
                found = found or f"{name} {value:.4g} is above {limit:.4g}, mean + {self.spikes.sigma:g} deviations"
            values.append(min(value, limit))
        return found

    def _limit(self, values: deque) -> float:
        if len(values) < self.spikes.window // 2:
            return math.inf
        mean = statistics.fmean(values)
        deviation = math.sqrt(statistics.fmean((value - mean) ** 2 for value in values))
        return mean + self.spikes.sigma * max(deviation, LEAST_DEVIATION * abs(mean))
