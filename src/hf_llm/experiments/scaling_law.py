"""Fit a scaling law L = E + A / C^alpha to a few small trainings and predict the loss of a larger one.

C is the number of FLOPs of a training whose tokens grow with its parameters by the scaling rules of docs/sizing.md, so
that the law is that of compute-optimal models (Chinchilla, https://arxiv.org/abs/2203.15556). L is the validation loss
in bits per byte. Three to five points cannot separate E from alpha, so the fit is Bayesian, with these priors:

    E       about 0.6 bits per byte (Chinchilla's 1.69 nats at about 4 bytes a token), within a factor of e
    alpha   about 0.15 (Chinchilla's 0.34 x 0.28 / (0.34 + 0.28)), within a factor of e; both at two deviations
    noise   about 0.5% of the loss: seeds, and sizes that are not equally well tuned

Residuals are those of log L, under Huber's loss as in Chinchilla. Instead of one best law, every law on a grid gets a
weight: its posterior, with the noise integrated out (a t distribution). A prediction is the median of the predictions
of these laws, and its interval the middle 95%.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Priors: medians of E and alpha, and the standard deviation of the logarithm of each.
PRIOR_FLOOR = 0.6
PRIOR_EXPONENT = 0.15
PRIOR_LOG_DEVIATION = 0.5
# Prior of the noise of log L: its standard deviation, and how many points this knowledge is worth.
PRIOR_NOISE = 0.005
PRIOR_NOISE_POINTS = 4.0
HUBER_THRESHOLD = 2.0  # residuals beyond so many deviations of the noise count linearly

# The grid of laws: E and alpha within three prior deviations, and for each the offsets that the points allow.
PRIOR_GRID_SIZE = 61
PRIOR_GRID_DEVIATIONS = 3
OFFSET_GRID_SIZE = 81
OFFSET_SLACK = 4  # the grid of offsets exceeds those that the points ask for by so many deviations of the noise
MIN_OFFSET = 1e-6
MIN_AMPLITUDE = 1e-9

SAMPLED_LAWS = 20_000

MIN_POINTS = 3
MIN_FLOPS_RATIO = 4.0  # the largest training must have at least so many times the FLOPs of the smallest
MAX_EXTRAPOLATION = 10.0  # predictions reach to so many times the FLOPs of the largest training
MAX_RESIDUAL = 0.02  # the largest root mean square error of a law, in log L


class NoLaw(Exception):
    """The reason why the points allow no law, or the law no prediction."""


@dataclass(frozen=True)
class Prediction:
    """A predicted loss in bits per byte with the 95% interval for one more training."""

    flops: float
    loss: float
    low: float
    high: float


class ScalingLaw:
    """The law through `points`, (FLOPs, bits per byte) each. Raises NoLaw where they allow none.

    `floor`, `amplitude`, `exponent` are E, A and alpha of the median law; `residual` is its root mean square error in
    log L.
    """

    def __init__(self, points: list[tuple[float, float]]):
        self.points = sorted(points)
        check_points(self.points)
        flops, losses = np.array(self.points).T
        self._centre = math.exp(np.log(flops).mean())  # geometric mean of the FLOPs

        # Each law of the grid is a row: E, alpha, and the offset, which is L - E at the centre of the FLOPs.
        self._laws, cell_sizes = self._build_grid(flops, losses)
        squared_errors = self._sum_squared_errors(flops, losses)
        self._weights = self._compute_weights(squared_errors, cell_sizes)
        self._sampled_laws, self._sampled_noise = self._sample_laws(squared_errors)

        floors, exponents, offsets = self._laws.T
        self.exponent = float(np.exp(self._weighted_median(np.log(exponents))))
        self.floor = float(np.exp(self._weighted_median(np.log(floors))))
        # The points determine the loss at the centre better than A, so A is computed from it.
        loss_at_centre = self._weighted_median(floors + offsets)
        self.amplitude = max(loss_at_centre - self.floor, MIN_AMPLITUDE) * self._centre**self.exponent

        log_errors = np.log(self(flops)) - np.log(losses)
        self.residual = float(np.sqrt(np.mean(log_errors**2)))
        if self.residual > MAX_RESIDUAL:
            raise NoLaw(
                f"the losses lie {self.residual:.1%} off the best law through them, more than {MAX_RESIDUAL:.0%}: "
                "they are noise, or the models were not trained alike"
            )

    def __call__(self, flops: np.ndarray | float) -> np.ndarray:
        """Return the median law's loss."""
        return self.floor + self.amplitude * np.asarray(flops, float) ** -self.exponent

    def __str__(self) -> str:
        return f"L = {self.floor:.3g} + {self.amplitude:.3g} / C^{self.exponent:.3g}"

    def predict(self, flops: float) -> Prediction:
        """Predict the loss of a training of `flops`. Raises NoLaw beyond ten times those of the largest training."""
        check_extrapolation([point_flops for point_flops, _ in self.points], flops)
        floors, exponents, offsets = self._sampled_laws.T
        losses = (floors + offsets * (flops / self._centre) ** -exponents) * np.exp(self._sampled_noise)
        low, median, high = np.quantile(losses, [0.025, 0.5, 0.975])
        return Prediction(flops, float(median), float(low), float(high))

    def _build_grid(self, flops: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Build the laws to be weighted, (laws, 3), and the size of each one's grid cell, (laws,)."""
        log_grid = np.linspace(-PRIOR_GRID_DEVIATIONS, PRIOR_GRID_DEVIATIONS, PRIOR_GRID_SIZE)
        factors = np.exp(PRIOR_LOG_DEVIATION * log_grid)
        floors = PRIOR_FLOOR * factors
        exponents = PRIOR_EXPONENT * factors
        floors = floors[floors < losses.min()]
        if not len(floors):
            raise NoLaw(f"losses of {losses.min():.3g} bits per byte are below the known entropy of such text")

        # With E and alpha given, each point asks for one offset. The grid spans what they ask for, with some slack.
        decays = (flops / self._centre) ** -exponents[:, None]  # (exponents, points)
        slack = OFFSET_SLACK * PRIOR_NOISE * losses.max()
        blocks = []
        for floor in floors:
            asked = (losses - floor) / decays  # (exponents, points)
            lowest = asked.min(1) - slack
            highest = asked.max(1) + slack
            for exponent, low, high in zip(exponents, lowest, highest, strict=True):
                offsets = np.linspace(max(low, MIN_OFFSET), high, OFFSET_GRID_SIZE)
                columns = [np.full(OFFSET_GRID_SIZE, floor), np.full(OFFSET_GRID_SIZE, exponent), offsets]
                blocks.append(np.stack(columns, 1))

        # Only the spacing of the offsets differs between cells; finer cells count for less.
        spacings = [block[1, 2] - block[0, 2] for block in blocks]
        return np.concatenate(blocks), np.repeat(spacings, OFFSET_GRID_SIZE)

    def _sum_squared_errors(self, flops: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Sum the squared errors of each law in log L, (laws,), the prior of the noise counted as further points."""
        floors, exponents, offsets = np.split(self._laws, 3, axis=1)  # (laws, 1) each
        predicted = floors + offsets * (flops / self._centre) ** -exponents  # (laws, points)
        errors = np.abs(np.log(losses) - np.log(predicted)) / PRIOR_NOISE

        linear = 2 * HUBER_THRESHOLD * errors - HUBER_THRESHOLD**2
        huber = np.where(errors < HUBER_THRESHOLD, errors**2, linear)
        return PRIOR_NOISE**2 * (PRIOR_NOISE_POINTS + huber.sum(1))

    def _compute_weights(self, squared_errors: np.ndarray, cell_sizes: np.ndarray) -> np.ndarray:
        """Return the posterior probability of each law, (laws,): likelihood, size of its cell, and priors."""
        log_weights = -self._degrees_of_freedom / 2 * np.log(squared_errors) + np.log(cell_sizes)
        for column, prior_median in ((0, PRIOR_FLOOR), (1, PRIOR_EXPONENT)):
            deviations = np.log(self._laws[:, column] / prior_median) / PRIOR_LOG_DEVIATION
            log_weights -= deviations**2 / 2

        weights = np.exp(log_weights - log_weights.max())
        return weights / weights.sum()

    def _sample_laws(self, squared_errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample laws (SAMPLED_LAWS, 3) by weight, each with the noise (SAMPLED_LAWS,) of log L of one more training.

        The noise follows the t distribution that remains when its deviation is integrated out.
        """
        rng = np.random.default_rng(0)
        sampled = rng.choice(len(self._laws), SAMPLED_LAWS, p=self._weights)
        scale = np.sqrt(squared_errors[sampled] / self._degrees_of_freedom)
        noise = scale * rng.standard_t(self._degrees_of_freedom, SAMPLED_LAWS)
        return self._laws[sampled], noise

    @property
    def _degrees_of_freedom(self) -> float:
        return PRIOR_NOISE_POINTS + len(self.points)

    def _weighted_median(self, values: np.ndarray) -> float:
        order = np.argsort(values)
        cumulative = np.cumsum(self._weights[order])
        return float(values[order][np.searchsorted(cumulative, 0.5)])


def check_points(points: list[tuple[float, float]]) -> None:
    """Raise NoLaw where the points, by increasing FLOPs, are too few or too close together, or do not decrease."""
    check_sizes([flops for flops, _ in points])
    for (smaller, loss), (larger, next_loss) in pairwise(points):
        if next_loss >= loss:
            raise NoLaw(
                f"the loss does not fall with every size: {loss:.4g} at {smaller:.2g} FLOPs, "
                f"{next_loss:.4g} at {larger:.2g}"
            )


def check_sizes(flops: list[float]) -> None:
    """Raise NoLaw where trainings of so many FLOPs would allow no law."""
    if len(flops) < MIN_POINTS:
        raise NoLaw(f"{len(flops)} points are too few for a law of three parameters; train at least {MIN_POINTS} sizes")
    ratio = max(flops) / min(flops)
    if ratio < MIN_FLOPS_RATIO:
        raise NoLaw(
            f"the largest training has {ratio:.2g} times the FLOPs of the smallest; it needs at least "
            f"{MIN_FLOPS_RATIO:g} times"
        )


def check_extrapolation(flops: list[float], predicted_flops: float) -> None:
    """Raise NoLaw for a prediction too far beyond the largest training."""
    ratio = predicted_flops / max(flops)
    if ratio > MAX_EXTRAPOLATION:
        raise NoLaw(
            f"{predicted_flops:.2g} FLOPs are {ratio:.3g} times those of the largest training; a law from so few small "
            f"trainings is not reliable beyond {MAX_EXTRAPOLATION:g} times. Add larger sizes"
        )
