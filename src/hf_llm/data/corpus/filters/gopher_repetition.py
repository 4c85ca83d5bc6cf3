"""Drop documents that say the same thing over and over (Gopher's repetition rules)."""

import re
from dataclasses import dataclass, field
from itertools import accumulate

import numpy
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.data.corpus.word_tokenizer import has_words, words

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)  # odd, so that no information is lost in multiplying


@dataclass
class GopherRepetition:
    """`gopher_repetition` of the rules: table A1 of https://arxiv.org/abs/2112.11446. A limit of 0 does not judge."""

    duplicate_lines: float = field(default=0.3, metadata={"help": "largest share of lines that occurred before"})
    duplicate_paragraphs: float = 0.3
    duplicate_line_characters: float = field(default=0.2, metadata={"help": "largest share of characters in them"})
    duplicate_paragraph_characters: float = 0.2
    top_ngrams: dict[int, float] = field(
        default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16},
        metadata={
            "help": "n: largest share of characters in the most frequent n words; leave an n out to switch it off"
        },
    )
    duplicate_ngrams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        metadata={"help": "n: largest share of characters in n words that occurred before"},
    )

    def __post_init__(self) -> None:
        if any(n < 1 for n in (*self.top_ngrams, *self.duplicate_ngrams)):
            raise ValueError("top_ngrams and duplicate_ngrams are shares by n, and n starts at 1: {2: 0.2}")


class GopherRepetitionFilter(BaseFilter):
    """The decisions and reasons of datatrove's filter of this name.

    Its exact count over n-grams runs only where a bound that is cheap to find does not settle the matter.
    """

    name = "gopher_repetition"

    def __init__(self, settings: GopherRepetition):
        super().__init__()
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        text = doc.text
        if not text:
            doc.metadata["because"] = "there is no text"
            return False, "empty"
        fault = self._repeated_lines(text) or (self._repeated_words(text) if has_words(text) else None)
        if fault is None:
            return True
        reason, share, limit = fault
        doc.metadata["because"] = f"{share:.1%} is repeated, at most {limit:.0%} may be"
        return False, reason

    def _repeated_lines(self, text: str) -> tuple[str, float, float] | None:
        limit = self.settings
        paragraphs = _PARAGRAPHS.split(text.strip())
        lines = _LINES.split(text)
        for name, parts, by_count, by_characters in (
            ("dup_para", paragraphs, limit.duplicate_paragraphs, limit.duplicate_paragraph_characters),
            ("dup_line", lines, limit.duplicate_lines, limit.duplicate_line_characters),
        ):
            count, characters = duplicates(parts)
            if by_count and count / len(parts) > by_count:
                return f"{name}_frac", count / len(parts), by_count
            if by_characters and characters / len(text) > by_characters:
                return f"{name}_char_frac", characters / len(text), by_characters
        return None

    def _repeated_words(self, text: str) -> tuple[str, float, float] | None:
        found = words(text)
        if not found:
            return None
        numbers = {word: number for number, word in enumerate(dict.fromkeys(found))}
        ids = numpy.fromiter(map(numbers.__getitem__, found), numpy.uint64, len(found))
        ends = numpy.fromiter(accumulate(map(len, found), initial=0), numpy.int64, len(found) + 1)
        return self._top(ids, ends, len(text)) or self._duplicate(ids, ends, len(text))

    def _top(self, ids: numpy.ndarray, ends: numpy.ndarray, size: int) -> tuple[str, float, float] | None:
        for n, limit in sorted(self.settings.top_ngrams.items()):
            if len(ids) < n:
                continue
            keys = ngram_keys(ids, n)
            lengths = ends[n:] - ends[:-n] + n - 1  # joined by spaces
            most = _longest_run(numpy.sort(keys))
            if most * int(lengths.max()) <= limit * size:
                continue
            _, first, counts = numpy.unique(keys, return_index=True, return_counts=True)
            characters = int(lengths[first[counts == most].min()]) * most
            if characters / size > limit:
                return f"top_{n}_gram", characters / size, limit
        return None

    def _duplicate(self, ids: numpy.ndarray, ends: numpy.ndarray, size: int) -> tuple[str, float, float] | None:
        limits = sorted(self.settings.duplicate_ngrams.items())
        lowest = min(self.settings.duplicate_ngrams.values(), default=0.0)
        for n, limit in limits:
            if len(ids) < n:
                continue
            keys = ngram_keys(ids, n)
            bound = _repeated_characters_bound(keys, ends, n)
            if bound <= lowest * size:
                return None  # where a longer n-gram is repeated, its shorter ones are
            if bound <= limit * size:
                continue
            characters = _repeated_characters(keys.tolist(), ends.tolist(), n)
            if characters / size > limit:
                return f"duplicated_{n}_n_grams", characters / size, limit
        return None


def duplicates(parts: list[str]) -> tuple[int, int]:
    """How many of the parts occurred before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen, count, characters = set(), 0, 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count, characters


def ngram_keys(ids: numpy.ndarray, n: int) -> numpy.ndarray:
    """A 64-bit key per n-gram: uint64 (words,) in, uint64 (words - n + 1,) out."""
    count = len(ids) - n + 1
    keys = numpy.zeros(count, numpy.uint64)
    for offset in range(n):
        keys = (keys ^ (keys >> numpy.uint64(29))) * _MULTIPLIER + ids[offset : offset + count]
    return keys


def _longest_run(ordered: numpy.ndarray) -> int:
    """How often the most frequent value of a sorted array occurs."""
    starts = numpy.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return int(numpy.diff(starts, prepend=0, append=len(ordered)).max())


def _repeated_characters_bound(keys: numpy.ndarray, ends: numpy.ndarray, n: int) -> int:
    """The characters of all words within an n-gram that occurred before: at least `_repeated_characters`."""
    ordered = numpy.sort(keys)
    if (ordered[1:] != ordered[:-1]).all():
        return 0
    _, first = numpy.unique(keys, return_index=True)
    again = numpy.ones(len(keys), bool)
    again[first] = False
    covered = numpy.convolve(again, numpy.ones(n, bool)) > 0
    return int(numpy.diff(ends)[covered].sum())


def _repeated_characters(keys: list[int], ends: list[int], n: int) -> int:
    """The characters of n-grams that occurred before, each word counted once at most."""
    seen, total, position = set(), 0, 0
    while position < len(keys):
        if keys[position] in seen:
            total += ends[position + n] - ends[position]
            position += n
        else:
            seen.add(keys[position])
            position += 1
    return total
