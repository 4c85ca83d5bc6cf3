"""Drop texts that read unlike the user's own good ones: a model of letters learnt from those finds them improbable.

The model predicts each byte from the four before it. Counts of 1- to 5-grams of bytes, hashed into tables, are
interpolated: an order's estimate falls back on the order below it with the weight of `BACKOFF` occurrences (Dirichlet
prior; MacKay and Peto 1995). A text's measure is its bits per byte, the logarithm of its perplexity.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.filters.trained_filter import FEWEST, Learnt, held_out

ORDER = 5
TABLE_BITS = 20
BACKOFF = 4.0
TRAIN_CHARS = 32 << 20  # of the good text; more changes little
BLOCK_CHARS = 1 << 20  # counted at a time
SCORED_BYTES = 8 << 10  # of a text, in pieces from all of it
_MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)


@dataclass
class Perplexity:
    """`perplexity` of the rules."""

    good: str = field(metadata={"help": "a file, a folder or a glob pattern: texts of the kind that is wanted"})
    keep: float = field(default=0.95, metadata={"help": "share of unseen good texts that the limit lets through"})

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep is {self.keep}; it is a share between 0 and 1, such as 0.95")


class PerplexityFilter(BaseFilter):
    """Drop documents with more bits per byte than `keep` of the good texts that were held out."""

    name = "perplexity"

    def __init__(self, model: Path):
        super().__init__()
        self.limit = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))["limit"]
        self.counts = numpy.load(model, mmap_mode="r")  # the workers of a machine share its pages

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        bits = bits_per_byte(self.counts, doc.text)
        if bits <= self.limit:
            return True
        doc.metadata["because"] = f"{bits:.2f} bits per byte, the limit from the good texts is {self.limit:.2f}"
        return False, "improbable"


def train_perplexity(settings: Perplexity, good: Iterable[str], model: Path) -> dict:
    """Learn from the good texts and write the model. Returns and writes what was measured on those held out.

    Raises UserError where there are too few of them.
    """
    learn, unseen, size = [], [], 0
    for text in good:
        (unseen if held_out(text) else learn).append(text)
        size += len(text)
        if size >= TRAIN_CHARS:
            break
    if len(unseen) < FEWEST or not learn:
        raise UserError(
            f"rules.perplexity.good: {settings.good} gives {len(unseen)} texts to measure by; at least {FEWEST}, a "
            f"fifth of all, are needed. Add text, or leave the rule out"
        )
    counts = _count(learn)
    scores = numpy.array([bits_per_byte(counts, text) for text in unseen])
    report = {
        "learnt_from": len(learn),
        "held_out": len(unseen),
        "limit": float(numpy.quantile(scores, settings.keep)),
        "median": float(numpy.median(scores)),
    }
    Learnt(counts, report).write(model)
    return report


def bits_per_byte(counts: numpy.ndarray, text: str) -> float:
    """Mean of -log2 p over a text's bytes; 0 for an empty one.

    `counts`: uint32 (orders + 1, table), the count of all bytes in its first place.
    """
    data = _sample(text)
    if not len(data):
        return 0.0
    probability = numpy.full(len(data), 1 / 256, numpy.float32)
    total = numpy.full(len(data), counts[0, 0], numpy.float32)
    for order, slots in enumerate(_slots(data), start=1):
        found = counts[order][slots].astype(numpy.float32)
        probability = (found + BACKOFF * probability) / (total + BACKOFF)
        total[1:] = found[:-1]  # the context of the next order ends one byte earlier
        total[0] = 0
    # Where hashed counts collide, a context may be counted less often than what follows it.
    return float(-numpy.log2(numpy.minimum(probability, 1)).mean(dtype=numpy.float64))


def _count(texts: list[str]) -> numpy.ndarray:
    """uint32 (orders + 1, table)."""
    counts = numpy.zeros((ORDER + 1, 1 << TABLE_BITS), numpy.uint32)
    whole = "\n".join(texts)
    for start in range(0, len(whole), BLOCK_CHARS):
        data = numpy.frombuffer(whole[start : start + BLOCK_CHARS].encode("utf-8"), numpy.uint8)
        counts[0, 0] += len(data)
        for order, slots in enumerate(_slots(data), start=1):
            counts[order] += numpy.bincount(slots, minlength=1 << TABLE_BITS).astype(numpy.uint32)
    return counts


def _slots(data: numpy.ndarray) -> Iterable[numpy.ndarray]:
    """Where the n-gram that ends at each byte is counted, for n from 1 to `ORDER`: int64 (bytes,) each.

    Before the first byte stand zeros.
    """
    keys = numpy.zeros(len(data), numpy.uint64)
    for order in range(ORDER):
        shifted = numpy.zeros(len(data), numpy.uint64)
        shifted[order:] = data[: max(0, len(data) - order)]
        keys = keys | (shifted + numpy.uint64(1)) << numpy.uint64(9 * order)
        yield ((keys * _MULTIPLIER) >> numpy.uint64(64 - TABLE_BITS)).astype(numpy.int64)


def _sample(text: str) -> numpy.ndarray:
    """uint8 (bytes,): the text, or eight pieces of a long one."""
    if len(text) > SCORED_BYTES:
        step, size = len(text) // 8, SCORED_BYTES // 8
        text = "\n".join(text[start : start + size] for start in range(0, 8 * step, step))
    return numpy.frombuffer(text.encode("utf-8"), numpy.uint8)
