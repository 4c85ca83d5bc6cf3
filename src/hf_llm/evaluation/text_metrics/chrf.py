"""chrF as sacrebleu measures it, from 0 to 100."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from hf_llm.evaluation.text_metrics.text_metric import TextMetric


class Chrf(TextMetric):
    """chrF of a corpus: the F score, recall counting twice, of its sequences of one to six characters.

    From 0 to 100. It needs no words, so it serves every language alike.
    """

    names = ("chrf",)
    number_format = ".1f"
    source = "Popović 2015, https://aclanthology.org/W15-3049"

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.scorer = CHRF()

    def measure(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Return the sequences in the prediction, in the closest reference and in both, for each length."""
        # sacrebleu gives the statistics of a document by no public name; its own bootstrap calls these methods.
        (statistics,) = self.scorer._extract_corpus_statistics([prediction], [[text] for text in references])
        return statistics

    def combine(self, total: np.ndarray, documents: int) -> list[float]:
        return [self.scorer._compute_f_score(total.tolist())]
