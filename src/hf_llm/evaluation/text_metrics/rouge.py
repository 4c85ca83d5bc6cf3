"""ROUGE as rouge_score measures it, from 0 to 1: the mean of the documents' F scores."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from hf_llm.evaluation.text_metrics.metric_names import ROUGE_NAMES
from hf_llm.evaluation.text_metrics.text_metric import TextMetric

_LETTER_BEYOND_ASCII = re.compile(r"(?![\0-\x7f])[^\W\d_]")


class Rouge(TextMetric):
    """ROUGE of a corpus: words (`rouge1`), pairs of words (`rouge2`) and the longest common subsequence (`rougeL`; of
    lines, `rougeLsum`) that a text shares with its reference.

    From 0 to 1, the mean of the F scores; of several references the best one counts. rouge_score knows the letters a to
    z and digits only: all others separate words (`has_other_letters`).
    """

    names = ROUGE_NAMES
    number_format = ".3f"
    source = "Lin 2004, https://aclanthology.org/W04-1013"

    def __init__(self, variants: Sequence[str] = ROUGE_NAMES, use_stemmer: bool = False, **settings: Any):
        """`variants` are those to measure; `use_stemmer` compares words without their endings, in English."""
        self.names = tuple(variants)
        super().__init__(**settings)
        self.scorer = RougeScorer(list(variants), use_stemmer=use_stemmer)

    def measure(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Return the F score of each variant."""
        scores = self.scorer.score_multi(list(references), prediction)
        return [float(scores[name].fmeasure) for name in self.names]

    def combine(self, total: np.ndarray, documents: int) -> list[float]:
        return (total / documents).tolist()


def has_other_letters(text: str) -> bool:
    """Whether a text has letters beyond a to z, at which rouge_score cuts its words."""
    return bool(_LETTER_BEYOND_ASCII.search(text))
