"""Drop documents whose words, symbols or lines are not those of prose (Gopher's quality rules)."""

from collections import Counter
from dataclasses import dataclass, field

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict
from hf_llm.data.corpus.filters.punctuation import PUNCTUATION
from hf_llm.data.corpus.filters.word_tokenizer import has_words, split_words

_PUNCTUATION = "".join(sorted(PUNCTUATION))
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


@dataclass
class GopherQuality(FilterSettings):
    """`gopher_quality` of the rules: table A1 of https://arxiv.org/abs/2112.11446. A limit of 0 is not applied."""

    min_words: int = 50
    """The fewest words, those that are all punctuation not counted."""

    max_words: int = 100_000
    """The most words, counted in the same way."""

    min_mean_word_length: float = 3.0
    """The smallest mean length of these words, in characters."""

    max_mean_word_length: float = 10.0
    """The largest mean length of these words, in characters."""

    max_symbols_per_word: float = 0.1
    """The most # per word and, counted apart, the most ellipses."""

    max_bullet_lines: float = 0.9
    """The largest share of lines that start with a bullet."""

    max_ellipsis_lines: float = 0.3
    """The largest share of lines that end with an ellipsis."""

    min_alphabetic_words: float = 0.8
    """The smallest share of words with a letter in them."""

    min_stop_words: int = 2
    """How many different words of `stop_words` a text has at least."""

    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    """English by default; for other languages name theirs, or set min_stop_words to 0."""

    def __post_init__(self) -> None:
        if self.max_words and self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) has to be at most max_words ({self.max_words})")
        if self.min_stop_words > len(self.stop_words):
            raise ValueError(f"min_stop_words is {self.min_stop_words}, stop_words has {len(self.stop_words)}")

    def make_filter(self) -> "GopherQualityFilter":
        return GopherQualityFilter(self)


class GopherQualityFilter(Filter):
    """Makes the same decisions, with the same reasons, as datatrove's GopherQualityFilter, but faster.

    For a text in a script that does not separate words (Chinese, Thai ...) only the lines are checked.
    """

    name = "gopher_quality"

    def __init__(self, settings: GopherQuality):
        super().__init__(settings)
        self.stop_words = frozenset(settings.stop_words)

    def filter(self, document: Document) -> Verdict:
        text = document.text
        lines = text.splitlines()
        if not has_words(text):
            return self._check_lines(lines) or KEPT

        words = split_words(text)
        word_count = len(words)
        # Punctuation, numbers, and words like "n't". Few of them differ, so the checks below look at each only once.
        other_words = Counter(word for word in words if not word.isalpha())
        verdict = (
            self._check_length(words, other_words) or self._check_symbols(text, word_count) or self._check_lines(lines)
        )
        if verdict is None and word_count:
            verdict = self._check_letters(other_words, word_count) or self._check_stop_words(words)
        return verdict or KEPT

    def _check_length(self, words: list[str], other_words: Counter) -> Verdict | None:
        """Check the number of words and their mean length, not counting words of punctuation only."""
        word_count = len(words)
        characters = sum(map(len, words))
        for word, count in other_words.items():
            is_symbol = not word.strip(_PUNCTUATION)
            if is_symbol:
                word_count -= count
                characters -= count * len(word)

        min_words = self.settings.min_words
        max_words = self.settings.max_words
        if min_words and word_count < min_words:
            return Verdict("gopher_short_doc", f"{word_count} words, at least {min_words} are asked for")
        if max_words and word_count > max_words:
            return Verdict("gopher_long_doc", f"{word_count} words, at most {max_words} are allowed")

        mean_length = characters / word_count if word_count else 0.0
        min_length = self.settings.min_mean_word_length
        max_length = self.settings.max_mean_word_length
        if min_length and mean_length < min_length:
            detail = f"words of {mean_length:.2f} letters, at least {min_length}"
            return Verdict("gopher_below_avg_threshold", detail)
        if max_length and mean_length > max_length:
            detail = f"words of {mean_length:.2f} letters, at most {max_length}"
            return Verdict("gopher_above_avg_threshold", detail)
        return None

    def _check_symbols(self, text: str, word_count: int) -> Verdict | None:
        max_per_word = self.settings.max_symbols_per_word
        for reason, symbols in (("gopher_too_many_hashes", ("#",)), ("gopher_too_many_ellipsis", _ELLIPSES)):
            symbol_count = sum(map(text.count, symbols))
            if max_per_word and symbol_count > max_per_word * word_count:
                detail = f"{symbol_count} {symbols[0]} in {word_count} words, at most {max_per_word} per word"
                return Verdict(reason, detail)
        return None

    def _check_lines(self, lines: list[str]) -> Verdict | None:
        settings = self.settings
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines)
        if settings.max_bullet_lines and bullets > settings.max_bullet_lines * len(lines):
            return Verdict("gopher_too_many_bullets", f"{bullets} of {len(lines)} lines start with a bullet")

        ellipses = sum(line.rstrip().endswith(_ELLIPSES) for line in lines)
        if settings.max_ellipsis_lines and ellipses > settings.max_ellipsis_lines * len(lines):
            return Verdict("gopher_too_many_end_ellipsis", f"{ellipses} of {len(lines)} lines end with an ellipsis")
        return None

    def _check_letters(self, other_words: Counter, word_count: int) -> Verdict | None:
        min_share = self.settings.min_alphabetic_words
        without_letters = sum(count for word, count in other_words.items() if not any(map(str.isalpha, word)))
        share = 1 - without_letters / word_count
        if min_share and share < min_share:
            detail = f"{share:.0%} of the words have a letter, at least {min_share:.0%}"
            return Verdict("gopher_below_alpha_threshold", detail)
        return None

    def _check_stop_words(self, words: list[str]) -> Verdict | None:
        min_count = self.settings.min_stop_words
        count = len(self.stop_words.intersection(words))
        if count < min_count:
            detail = f"{count} different stop words, at least {min_count} are asked for"
            return Verdict("gopher_enough_stop_words", detail)
        return None
