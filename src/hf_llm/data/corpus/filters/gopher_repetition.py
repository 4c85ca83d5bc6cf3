"""Drop documents that say the same thing over and over (Gopher's repetition rules)."""

import re
from dataclasses import dataclass, field
from itertools import accumulate

import numpy

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict
from hf_llm.data.corpus.filters.word_tokenizer import has_words, split_words

_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")
_MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)  # odd, so that no information is lost in multiplying


@dataclass
class GopherRepetition(FilterSettings):
    """`gopher_repetition` of the rules: table A1 of https://arxiv.org/abs/2112.11446. A limit of 0 is not applied."""

    duplicate_lines: float = 0.3
    """The largest share of lines that occurred before."""

    duplicate_paragraphs: float = 0.3
    """The largest share of paragraphs that occurred before."""

    duplicate_line_characters: float = 0.2
    """The largest share of characters in such lines."""

    duplicate_paragraph_characters: float = 0.2
    """The largest share of characters in such paragraphs."""

    top_ngrams: dict[int, float] = field(default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16})
    """For each n, the largest share of characters in the most frequent n words; leave an n out to switch it off."""

    duplicate_ngrams: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
    )
    """For each n, the largest share of characters in runs of n words that occurred before."""

    def __post_init__(self) -> None:
        if any(n < 1 for n in (*self.top_ngrams, *self.duplicate_ngrams)):
            raise ValueError("top_ngrams and duplicate_ngrams are shares by n, and n starts at 1: {2: 0.2}")

    def make_filter(self) -> "GopherRepetitionFilter":
        return GopherRepetitionFilter(self)


class GopherRepetitionFilter(Filter):
    """The decisions and reasons of datatrove's filter of this name.

    Its exact count over n-grams runs only where a bound that is cheap to compute does not settle the matter.
    """

    name = "gopher_repetition"

    def filter(self, document: Document) -> Verdict:
        text = document.text
        if not text:
            return Verdict("empty", "there is no text")

        verdict = self._check_lines(text)
        if verdict is None and has_words(text):
            verdict = self._check_words(text)
        return verdict or KEPT

    def _check_lines(self, text: str) -> Verdict | None:
        """Judge the share of paragraphs, then of lines, that occurred before; by number and by characters."""
        settings = self.settings
        paragraphs = _PARAGRAPH_END.split(text.strip())
        lines = _LINE_END.split(text)
        for name, parts, max_share, max_character_share in (
            ("dup_para", paragraphs, settings.duplicate_paragraphs, settings.duplicate_paragraph_characters),
            ("dup_line", lines, settings.duplicate_lines, settings.duplicate_line_characters),
        ):
            count, characters = count_duplicates(parts)
            share = count / len(parts)
            if max_share and share > max_share:
                return _make_verdict(f"{name}_frac", share, max_share)
            character_share = characters / len(text)
            if max_character_share and character_share > max_character_share:
                return _make_verdict(f"{name}_char_frac", character_share, max_character_share)
        return None

    def _check_words(self, text: str) -> Verdict | None:
        words = split_words(text)
        if not words:
            return None

        numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
        ids = numpy.fromiter(map(numbers.__getitem__, words), numpy.uint64, len(words))
        # ends[i]: how many characters the first i words have
        ends = numpy.fromiter(accumulate(map(len, words), initial=0), numpy.int64, len(words) + 1)
        return self._check_top_ngrams(ids, ends, len(text)) or self._check_duplicate_ngrams(ids, ends, len(text))

    def _check_top_ngrams(self, ids: numpy.ndarray, ends: numpy.ndarray, text_chars: int) -> Verdict | None:
        """Judge the characters of the most frequent n-gram.

        `ids`: uint64 (words,), `ends`: int64 (words + 1,).
        """
        for n, max_share in sorted(self.settings.top_ngrams.items()):
            if len(ids) < n:
                continue
            keys = hash_ngrams(ids, n)
            lengths = ends[n:] - ends[:-n] + n - 1  # joined by spaces

            # The most frequent n-gram takes at most the characters of the longest one.
            most = _longest_run(numpy.sort(keys))
            if most * int(lengths.max()) <= max_share * text_chars:
                continue

            _, first, counts = numpy.unique(keys, return_index=True, return_counts=True)
            earliest = first[counts == most].min()
            characters = int(lengths[earliest]) * most
            share = characters / text_chars
            if share > max_share:
                return _make_verdict(f"top_{n}_gram", share, max_share)
        return None

    def _check_duplicate_ngrams(self, ids: numpy.ndarray, ends: numpy.ndarray, text_chars: int) -> Verdict | None:
        """Judge the characters of n-grams that occurred before; `ids` and `ends` as in `_check_top_ngrams`."""
        lowest_share = min(self.settings.duplicate_ngrams.values(), default=0.0)
        for n, max_share in sorted(self.settings.duplicate_ngrams.items()):
            if len(ids) < n:
                continue
            keys = hash_ngrams(ids, n)
            bound = _bound_repeated_characters(keys, ends, n)
            if bound <= lowest_share * text_chars:
                return None  # where a longer n-gram is repeated, its shorter ones are
            if bound <= max_share * text_chars:
                continue

            characters = _count_repeated_characters(keys.tolist(), ends.tolist(), n)
            share = characters / text_chars
            if share > max_share:
                return _make_verdict(f"duplicated_{n}_n_grams", share, max_share)
        return None


def _make_verdict(reason: str, share: float, max_share: float) -> Verdict:
    return Verdict(reason, f"{share:.1%} is repeated, at most {max_share:.0%} may be")


def count_duplicates(parts: list[str]) -> tuple[int, int]:
    """Return how many of the parts occurred before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0

    seen = set()
    count = 0
    characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count, characters


def hash_ngrams(ids: numpy.ndarray, n: int) -> numpy.ndarray:
    """Return a 64-bit key per n-gram: uint64 (words,) in, uint64 (words - n + 1,) out."""
    count = len(ids) - n + 1
    keys = numpy.zeros(count, numpy.uint64)
    for offset in range(n):
        keys = (keys ^ (keys >> numpy.uint64(29))) * _MULTIPLIER + ids[offset : offset + count]
    return keys


def _longest_run(ordered: numpy.ndarray) -> int:
    """Return how often the most frequent value of a sorted array occurs."""
    starts = numpy.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return int(numpy.diff(starts, prepend=0, append=len(ordered)).max())


def _bound_repeated_characters(keys: numpy.ndarray, ends: numpy.ndarray, n: int) -> int:
    """Return the characters of all words within an n-gram that occurred before.

    At least as many as `_count_repeated_characters` counts. `keys`: uint64 (n-grams,), `ends`: int64 (words + 1,).
    """
    ordered = numpy.sort(keys)
    if (ordered[1:] != ordered[:-1]).all():
        return 0

    _, first = numpy.unique(keys, return_index=True)
    is_repeated = numpy.ones(len(keys), bool)
    is_repeated[first] = False
    is_covered = numpy.convolve(is_repeated, numpy.ones(n, bool)) > 0  # of each word
    return int(numpy.diff(ends)[is_covered].sum())


def _count_repeated_characters(keys: list[int], ends: list[int], n: int) -> int:
    """Count the characters of n-grams that occurred before, each word once at most."""
    seen = set()
    total = 0
    position = 0
    while position < len(keys):
        if keys[position] in seen:
            total += ends[position + n] - ends[position]
            position += n
        else:
            seen.add(keys[position])
            position += 1
    return total
