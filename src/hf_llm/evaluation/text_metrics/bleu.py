"""BLEU as sacrebleu measures it, from 0 to 100: a paper's "0.3" is 30 here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER

from hf_llm.evaluation.text_metrics.text_metric import TextMetric

MIXED_REFERENCES = -1  # sacrebleu's number of references where documents have different ones


class Bleu(TextMetric):
    """BLEU of a corpus: how many of its words and of its sequences of two to four words are in the references.

    From 0 to 100. The score of a corpus is not the mean over its documents.
    """

    names = ("bleu",)
    number_format = ".1f"
    source = "Papineni et al. 2002, https://aclanthology.org/P02-1040; Post 2018, https://aclanthology.org/W18-6319"

    def __init__(self, tokenizer: str = "13a", **settings: Any):
        """`tokenizer` is sacrebleu's: `13a` for languages that separate words, `zh` or `char` for others, `none`."""
        super().__init__(**settings)
        self.tokenizer = tokenizer
        # A single document often has no sequence of four words; its own score counts those lengths that it has.
        self.document_scorer = BLEU(tokenize=tokenizer, effective_order=True)

    def measure(self, prediction: str, references: Sequence[str]) -> list[float]:
        """Return the lengths of the prediction and of the closest reference, in words, then the matches and the totals
        of one to four words."""
        score = self.document_scorer.sentence_score(prediction, list(references))
        return [score.sys_len, score.ref_len, *score.counts, *score.totals]

    def combine(self, total: np.ndarray, documents: int) -> list[float]:
        return [self._compute_bleu(total, effective_order=False)]

    def score_document(self, statistics: Sequence[float]) -> dict[str, float]:
        return {"bleu": self._compute_bleu(np.asarray(statistics, dtype=float), effective_order=True)}

    def format_signature(self, references: int) -> str:
        """Return sacrebleu's signature for so many references of each document, which two scores must share to be
        compared; `MIXED_REFERENCES` where the number differs."""
        scorer = BLEU(tokenize=self.tokenizer)
        scorer.num_refs = references
        return str(scorer.get_signature())

    def _compute_bleu(self, total: np.ndarray, effective_order: bool) -> float:
        counts = total[2 : 2 + MAX_NGRAM_ORDER].tolist()
        totals = total[2 + MAX_NGRAM_ORDER :].tolist()
        score = BLEU.compute_bleu(
            correct=counts,
            total=totals,
            sys_len=int(total[0]),
            ref_len=int(total[1]),
            smooth_method="exp",
            effective_order=effective_order,
        )
        return score.score
