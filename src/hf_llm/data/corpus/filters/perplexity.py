"""Drop texts that read unlike the user's own good ones: a model of bytes trained on those finds them improbable.

The model predicts each byte from the four before it. Counts of 1- to 5-grams of bytes, hashed into tables, are
interpolated: an order's estimate falls back on the order below it with the weight of `BACKOFF` occurrences (Dirichlet
prior; MacKay and Peto 1995). A text's measure is its bits per byte, the logarithm of its perplexity.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, Verdict
from hf_llm.data.corpus.filters.trained_filter import (
    MIN_HELD_OUT_TEXTS,
    TrainedFilterSettings,
    is_held_out,
    write_model,
)

ORDER = 5  # bytes of the longest n-gram
TABLE_BITS = 20
BACKOFF = 4.0
MAX_TRAIN_CHARS = 32 << 20  # of the good texts; more changes little
BLOCK_CHARS = 1 << 20  # counted at a time
SAMPLE_BYTES = 8 << 10  # of a text that is judged
SAMPLE_PIECES = 8  # from all of a longer text
_MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)


@dataclass
class Perplexity(TrainedFilterSettings):
    """`perplexity` of the rules."""

    good: str
    """A file, a folder or a glob pattern: texts of the kind that is wanted."""

    keep: float = 0.95
    """The share of held-out good texts that the limit keeps."""

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep is {self.keep}; it is a share between 0 and 1, such as 0.95")

    def example_paths(self) -> list[str]:
        return [self.good]

    def train_model(self, examples: list[Iterable[str]], model: Path) -> dict:
        [good] = examples
        return train_perplexity(self, good, model)

    def make_filter(self, model: Path) -> "PerplexityFilter":
        return PerplexityFilter(self, model)


class PerplexityFilter(Filter):
    """Drop documents with more bits per byte than `keep` of the held-out good texts have."""

    name = "perplexity"

    def __init__(self, settings: Perplexity, model: Path):
        super().__init__(settings)
        report = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
        self.limit = report["limit"]
        self.counts = numpy.load(model, mmap_mode="r")  # the workers of a host share its pages

    def filter(self, document: Document) -> Verdict:
        bits = bits_per_byte(self.counts, document.text)
        if bits <= self.limit:
            return KEPT
        return Verdict("improbable", f"{bits:.2f} bits per byte, the limit from the good texts is {self.limit:.2f}")


def train_perplexity(settings: Perplexity, good: Iterable[str], model: Path) -> dict:
    """Train on the good texts and write the model. Returns and writes what was measured on those held out.

    Raises UserError where there are too few of them.
    """
    train = []
    held_out = []
    size = 0
    for text in good:
        side = held_out if is_held_out(text) else train
        side.append(text)
        size += len(text)
        if size >= MAX_TRAIN_CHARS:
            break
    if len(held_out) < MIN_HELD_OUT_TEXTS or not train:
        raise UserError(
            f"rules.perplexity.good: {settings.good} gives {len(held_out)} texts to measure by; at least "
            f"{MIN_HELD_OUT_TEXTS}, a fifth of all, are needed. Add text, or leave the rule out"
        )

    counts = _count_ngrams(train)
    scores = numpy.array([bits_per_byte(counts, text) for text in held_out])
    report = {
        "learnt_from": len(train),
        "held_out": len(held_out),
        "limit": float(numpy.quantile(scores, settings.keep)),
        "median": float(numpy.median(scores)),
    }
    write_model(model, counts, report)
    return report


def bits_per_byte(counts: numpy.ndarray, text: str) -> float:
    """Return the mean of -log2 p over a text's bytes; 0 for an empty one.

    `counts`: uint32 (orders + 1, table), the count of all bytes in its first place.
    """
    data = _sample_bytes(text)
    if not len(data):
        return 0.0

    probability = numpy.full(len(data), 1 / 256, numpy.float32)
    context_counts = numpy.full(len(data), counts[0, 0], numpy.float32)
    for order, slots in enumerate(_hash_ngrams(data), start=1):
        ngram_counts = counts[order][slots].astype(numpy.float32)
        probability = (ngram_counts + BACKOFF * probability) / (context_counts + BACKOFF)
        # The context of the next order is this order's n-gram, one byte earlier.
        context_counts[1:] = ngram_counts[:-1]
        context_counts[0] = 0

    # Where hashed counts collide, a context may be counted less often than what follows it.
    probability = numpy.minimum(probability, 1)
    mean_log = numpy.log2(probability).mean(dtype=numpy.float64)
    return float(-mean_log)


def _count_ngrams(texts: list[str]) -> numpy.ndarray:
    """Count the n-grams of bytes, in blocks: uint32 (orders + 1, table)."""
    counts = numpy.zeros((ORDER + 1, 1 << TABLE_BITS), numpy.uint32)
    joined = "\n".join(texts)
    for start in range(0, len(joined), BLOCK_CHARS):
        data = numpy.frombuffer(joined[start : start + BLOCK_CHARS].encode("utf-8"), numpy.uint8)
        counts[0, 0] += len(data)
        for order, slots in enumerate(_hash_ngrams(data), start=1):
            counts[order] += numpy.bincount(slots, minlength=1 << TABLE_BITS).astype(numpy.uint32)
    return counts


def _hash_ngrams(data: numpy.ndarray) -> Iterator[numpy.ndarray]:
    """Yield where the n-gram that ends at each byte is counted, for n from 1 to `ORDER`: int64 (bytes,) each.

    Before the first byte stand zeros.
    """
    keys = numpy.zeros(len(data), numpy.uint64)
    for order in range(ORDER):
        shifted = numpy.zeros(len(data), numpy.uint64)
        shifted[order:] = data[: max(0, len(data) - order)]
        keys = keys | (shifted + numpy.uint64(1)) << numpy.uint64(9 * order)  # 9 bits: a byte, or nothing
        yield ((keys * _MULTIPLIER) >> numpy.uint64(64 - TABLE_BITS)).astype(numpy.int64)


def _sample_bytes(text: str) -> numpy.ndarray:
    """Return a text, or eight pieces of a long one, as bytes: uint8 (bytes,)."""
    if len(text) > SAMPLE_BYTES:
        step = len(text) // SAMPLE_PIECES
        piece_chars = SAMPLE_BYTES // SAMPLE_PIECES
        starts = range(0, SAMPLE_PIECES * step, step)
        text = "\n".join(text[start : start + piece_chars] for start in starts)
    return numpy.frombuffer(text.encode("utf-8"), numpy.uint8)
