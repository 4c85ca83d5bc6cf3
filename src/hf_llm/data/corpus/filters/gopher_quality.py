"""Drop documents whose words, symbols or lines are not those of prose (Gopher's quality rules)."""

from collections import Counter
from dataclasses import dataclass, field

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import PUNCTUATION_SET

from hf_llm.data.corpus.word_tokenizer import has_words, words

_PUNCTUATION = "".join(sorted(PUNCTUATION_SET))
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


@dataclass
class GopherQuality:
    """`gopher_quality` of the rules: table A1 of https://arxiv.org/abs/2112.11446. A limit of 0 does not judge."""

    min_words: int = field(default=50, metadata={"help": "words that are not all punctuation"})
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbols_per_word: float = field(default=0.1, metadata={"help": "of # and, apart from them, of ellipses"})
    max_bullet_lines: float = field(default=0.9, metadata={"help": "share of lines that start with a bullet"})
    max_ellipsis_lines: float = field(default=0.3, metadata={"help": "share of lines that end with an ellipsis"})
    min_alphabetic_words: float = field(default=0.8, metadata={"help": "share of words with a letter in them"})
    min_stop_words: int = field(default=2, metadata={"help": "different ones of stop_words a text has to have"})
    stop_words: list[str] = field(
        default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"],
        metadata={"help": "English by default; for other languages name theirs, or set min_stop_words to 0"},
    )

    def __post_init__(self) -> None:
        if self.max_words and self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) has to be at most max_words ({self.max_words})")
        if self.min_stop_words > len(self.stop_words):
            raise ValueError(f"min_stop_words is {self.min_stop_words}, stop_words has {len(self.stop_words)}")


class GopherQualityFilter(BaseFilter):
    """The decisions and reasons of datatrove's filter of this name, from words that are split once."""

    name = "gopher_quality"

    def __init__(self, settings: GopherQuality):
        super().__init__()
        self.settings = settings
        self.stop_words = frozenset(settings.stop_words)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        text = doc.text
        found = words(text) if has_words(text) else None
        marks = Counter(word for word in found or () if not word.isalpha())  # and figures, and words like "n't"
        fault = (
            (found is not None and (self._length(found, marks) or self._symbols(text, len(found))))
            or self._lines(text.splitlines())
            or (found and (self._letters(marks, len(found)) or self._stop_words(found)))
        )
        if not fault:
            return True
        reason, doc.metadata["because"] = fault
        return False, reason

    def _length(self, found: list[str], marks: Counter) -> tuple[str, str] | None:
        limit = self.settings
        symbols = {word: count for word, count in marks.items() if not word.strip(_PUNCTUATION)}
        real = len(found) - sum(symbols.values())
        if limit.min_words and real < limit.min_words:
            return "gopher_short_doc", f"{real} words, at least {limit.min_words} are asked for"
        if limit.max_words and real > limit.max_words:
            return "gopher_long_doc", f"{real} words, at most {limit.max_words} are allowed"
        letters = sum(map(len, found)) - sum(len(word) * count for word, count in symbols.items())
        mean = letters / real if real else 0.0
        if limit.min_mean_word_length and mean < limit.min_mean_word_length:
            return "gopher_below_avg_threshold", f"words of {mean:.2f} letters, at least {limit.min_mean_word_length}"
        if limit.max_mean_word_length and mean > limit.max_mean_word_length:
            return "gopher_above_avg_threshold", f"words of {mean:.2f} letters, at most {limit.max_mean_word_length}"
        return None

    def _symbols(self, text: str, count: int) -> tuple[str, str] | None:
        limit = self.settings.max_symbols_per_word
        for reason, symbols in (("gopher_too_many_hashes", ("#",)), ("gopher_too_many_ellipsis", _ELLIPSES)):
            found = sum(map(text.count, symbols))
            if limit and found > limit * count:
                return reason, f"{found} {symbols[0]} in {count} words, at most {limit} per word"
        return None

    def _lines(self, lines: list[str]) -> tuple[str, str] | None:
        limit = self.settings
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines)
        if limit.max_bullet_lines and bullets > limit.max_bullet_lines * len(lines):
            return "gopher_too_many_bullets", f"{bullets} of {len(lines)} lines start with a bullet"
        ends = sum(line.rstrip().endswith(_ELLIPSES) for line in lines)
        if limit.max_ellipsis_lines and ends > limit.max_ellipsis_lines * len(lines):
            return "gopher_too_many_end_ellipsis", f"{ends} of {len(lines)} lines end with an ellipsis"
        return None

    def _letters(self, marks: Counter, count: int) -> tuple[str, str] | None:
        limit = self.settings.min_alphabetic_words
        share = 1 - sum(times for word, times in marks.items() if not any(map(str.isalpha, word))) / count
        if limit and share < limit:
            return "gopher_below_alpha_threshold", f"{share:.0%} of the words have a letter, at least {limit:.0%}"
        return None

    def _stop_words(self, found: list[str]) -> tuple[str, str] | None:
        limit, have = self.settings.min_stop_words, len(self.stop_words.intersection(found))
        if have < limit:
            return "gopher_enough_stop_words", f"{have} different stop words, at least {limit} are asked for"
        return None
