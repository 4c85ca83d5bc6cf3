"""A metric of texts against their references: a class of the `evaluate` library that needs neither Hub nor cache.

`evaluate.load` downloads the program of a metric and writes what it is given to a cache folder. The classes here come
with the package and keep their texts in memory. Each gives the sufficient statistics of one document, and the scores of
a corpus from the sum of them, so that a bootstrap resamples numbers and never reads a text again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from hf_llm.evaluation.benchmark import Score
from hf_llm.evaluation.intervals import bootstrap_interval


class TextMetric(evaluate.Metric, ABC):
    """One or more scores of a corpus of predictions, each against one reference or several.

    `compute(predictions=[...], references=[...])` works as for every metric of `evaluate`.
    """

    names: tuple[str, ...]
    """The scores, in the order of `combine`."""
    number_format: str
    """How a score is shown (`hf_llm.core.format.format_value`)."""
    source: str
    """The paper that defines it."""

    def __init__(self, **settings: Any):
        """Take the settings of `evaluate.Metric`. Raises ValueError for more than one process: each one's texts stay
        in its memory."""
        super().__init__(**{**settings, "keep_in_memory": True})

    @abstractmethod
    def measure(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Return the sufficient statistics of one document, K numbers, which are summed over a corpus."""

    @abstractmethod
    def combine(self, total: np.ndarray, documents: int) -> list[float]:
        """Return the scores of a corpus, one for each of `names`, from the sum of its statistics, (K,)."""

    def score_document(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return the scores of a document alone, by name."""
        return dict(zip(self.names, self.combine(np.asarray(statistics, dtype=float), 1), strict=True))

    def score_corpus(self, statistics: Sequence[Sequence[float]]) -> list[Score]:
        """Return the scores of a corpus from the statistics of its documents, with bootstrap intervals over them."""
        table = np.asarray(statistics, dtype=float)  # documents K
        documents = len(table)
        values = self.combine(table.sum(axis=0), documents)

        def combine_resamples(draws: np.ndarray) -> np.ndarray:
            return np.array([self.combine(total, documents) for total in draws @ table])  # resamples names

        scores = []
        for place, (name, value) in enumerate(zip(self.names, values, strict=True)):
            interval = bootstrap_interval(documents, lambda draws, place=place: combine_resamples(draws)[:, place])
            low, high = interval or (None, None)
            scores.append(
                Score(
                    metric=name,
                    value=value,
                    documents=documents,
                    low=low,
                    high=high,
                    number_format=self.number_format,
                )
            )
        return scores

    def _build_data_dir(self) -> str:
        return ""  # the library's own makes a folder in the cache, which nothing is written to

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        several = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        one = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=self.source,
            inputs_description="predictions: texts. references: for each a text, or a list of texts.",
            features=[several, one],
        )

    def _compute(self, predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, Any]:
        statistics = []
        for prediction, reference in zip(predictions, references, strict=True):
            statistics.append(self.measure(prediction, [reference] if isinstance(reference, str) else reference))
        total = np.asarray(statistics, dtype=float).sum(axis=0)
        return dict(zip(self.names, self.combine(total, len(statistics)), strict=True))
