"""A scaling law L = E + A / C^alpha through a few small trainings, and what it predicts for a larger one.

C is the arithmetic of a training in FLOPs, its tokens grown with its parameters as the dial grows them, so that the law
runs along the line of the best models for C (Chinchilla, https://arxiv.org/abs/2203.15556); L is held-out loss in bits
per byte. Three to five points cannot tell E from alpha by themselves, so the fit states what was known before:

    E       about 0.6 bits per byte (Chinchilla's 1.69 nats at about 4 bytes for each token), within a factor of e
    alpha   about 0.15 (Chinchilla's 0.34 x 0.28 / (0.34 + 0.28)), within a factor of e; both at two deviations
    noise   about 0.5% of the loss: seeds, and sizes that are not equally well tuned

Residuals are those of log L, under Huber's loss as in Chinchilla. Every law on a grid gets a weight, its posterior with
the noise integrated out (a t distribution), instead of an optimizer's one answer: the median is the prediction, and the
middle 95% of what the laws would draw is its interval.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FLOOR, EXPONENT, SPREAD = 0.6, 0.15, 0.5  # prior medians of E and alpha, deviation of their logarithms
NOISE, NOISE_WEIGHT = 0.005, 4.0  # of log L; as if known from so many points
HUBER = 2.0  # noises from which on a residual counts linearly
DRAWS = 20_000
LEAST_POINTS, LEAST_SPAN, FURTHEST = 3, 4.0, 10.0
LARGEST_RESIDUAL = 0.02  # of log L, root mean square


class NoLaw(Exception):
    """Why the points allow no law, or the law no prediction."""


@dataclass(frozen=True)
class Prediction:
    """Loss in bits per byte with its 95% interval, in which one more training should fall."""

    flops: float
    loss: float
    low: float
    high: float


class Law:
    """The law through `points`, (FLOPs, bits per byte) each. Raises NoLaw where they allow none.

    `floor`, `amplitude`, `exponent` are E, A and alpha of the median law; `residual` the root mean square of log L.
    """

    def __init__(self, points: list[tuple[float, float]]):
        self.points = sorted(points)
        check(self.points)
        flops, losses = np.array(self.points).T
        self._centre = math.exp(np.log(flops).mean())
        self._laws, self._weights, self._squares = self._posterior(flops, losses)
        self._drawn, self._noise = self._draw()
        self.exponent, self.floor = (float(np.exp(self._median(np.log(self._laws[:, i])))) for i in (1, 0))
        # The loss at the middle is what the points tell best: A follows from it.
        middle = self._median(self._laws[:, 0] + self._laws[:, 2])
        self.amplitude = max(middle - self.floor, 1e-9) * self._centre**self.exponent
        self.residual = float(np.sqrt(np.mean((np.log(self(flops)) - np.log(losses)) ** 2)))
        if self.residual > LARGEST_RESIDUAL:
            raise NoLaw(
                f"the losses lie {self.residual:.1%} off the best law through them, more than {LARGEST_RESIDUAL:.0%}: "
                "they are noise, or not trained alike"
            )

    def __call__(self, flops: np.ndarray | float) -> np.ndarray:
        """The median law's loss."""
        return self.floor + self.amplitude * np.asarray(flops, float) ** -self.exponent

    def __str__(self) -> str:
        return f"L = {self.floor:.3g} + {self.amplitude:.3g} / C^{self.exponent:.3g}"

    def predict(self, flops: float) -> Prediction:
        """The loss of a training of so many FLOPs. Raises NoLaw for more than ten times the largest."""
        check_reach([point[0] for point in self.points], flops)
        floor, exponent, rest = self._drawn.T
        values = (floor + rest * (flops / self._centre) ** -exponent) * np.exp(self._noise)
        low, loss, high = np.quantile(values, [0.025, 0.5, 0.975])
        return Prediction(flops, float(loss), float(low), float(high))

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Laws (DRAWS, 3) by their weights, each with noise (DRAWS,) of log L for one more training: the t distribution
        that the points leave of it."""
        random = np.random.default_rng(0)
        drawn = random.choice(len(self._laws), DRAWS, p=self._weights)
        freedom = NOISE_WEIGHT + len(self.points)
        scale = np.sqrt(self._squares[drawn] / freedom)
        return self._laws[drawn], scale * random.standard_t(freedom, DRAWS)

    def _posterior(self, flops: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Laws (n, 3) as E, alpha and the loss above E at the middle of the points, their weights (n,) and the sums of
        squares (n,) that the noise is judged by."""
        wide = np.exp(SPREAD * np.linspace(-3, 3, 61))
        floors, exponents = FLOOR * wide, EXPONENT * wide
        floors = floors[floors < losses.min()]
        if not len(floors):
            raise NoLaw(f"losses of {losses.min():.3g} bits per byte are below what text like this is known to allow")
        relative = (flops / self._centre) ** -exponents[:, None]  # (exponents, points)
        grid = []
        for floor in floors:
            above = losses - floor
            least, most = (above / relative).min(1), (above / relative).max(1)
            slack = 4 * NOISE * losses.max()
            for exponent, low, high in zip(exponents, least - slack, most + slack, strict=True):
                rests = np.linspace(max(low, 1e-6), high, 81)
                grid.append(np.stack([np.full(81, floor), np.full(81, exponent), rests], 1))
        laws = np.concatenate(grid)
        cell = np.repeat([piece[1, 2] - piece[0, 2] for piece in grid], 81)  # the grid is finer where it is narrower
        told = np.log(laws[:, :1] + laws[:, 2:] * (flops / self._centre) ** -laws[:, 1:2])  # (laws, points)
        far = np.abs(np.log(losses) - told) / NOISE
        huber = np.where(far < HUBER, far**2, 2 * HUBER * far - HUBER**2)
        squares = NOISE**2 * (NOISE_WEIGHT + huber.sum(1))
        weight = -(NOISE_WEIGHT + len(flops)) / 2 * np.log(squares) + np.log(cell)
        for column, known in ((0, FLOOR), (1, EXPONENT)):
            weight -= (np.log(laws[:, column] / known) / SPREAD) ** 2 / 2
        weight = np.exp(weight - weight.max())
        return laws, weight / weight.sum(), squares

    def _median(self, values: np.ndarray) -> float:
        order = np.argsort(values)
        return float(values[order][np.searchsorted(np.cumsum(self._weights[order]), 0.5)])


def check(points: list[tuple[float, float]]) -> None:
    """Raise NoLaw where the points, by rising FLOPs, are too few, too near each other or do not fall."""
    check_sizes([flops for flops, _ in points])
    for (less, before), (more, after) in pairwise(points):
        if after >= before:
            raise NoLaw(
                f"the loss does not fall with every step: {before:.4g} at {less:.2g} FLOPs, {after:.4g} at {more:.2g}"
            )


def check_sizes(flops: list[float]) -> None:
    """Raise NoLaw where trainings of so many FLOPs would allow no law."""
    if len(flops) < LEAST_POINTS:
        raise NoLaw(f"{len(flops)} points are too few for a law of three numbers; train at least {LEAST_POINTS} sizes")
    span = max(flops) / min(flops)
    if span < LEAST_SPAN:
        raise NoLaw(f"the largest training has {span:.2g} times the FLOPs of the smallest; {LEAST_SPAN:g} at least")


def check_reach(flops: list[float], wanted: float) -> None:
    """Raise NoLaw for a prediction too far beyond the largest training."""
    reach = wanted / max(flops)
    if reach > FURTHEST:
        raise NoLaw(
            f"{wanted:.2g} FLOPs are {reach:.3g} times those of the largest training; a law from so few small ones is "
            f"not to be trusted beyond {FURTHEST:g} times. Add larger sizes"
        )
