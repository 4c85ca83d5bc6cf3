"""Drop documents whose lines are those of lists and menus (FineWeb's quality rules)."""

from dataclasses import dataclass

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict
from hf_llm.data.corpus.filters.gopher_repetition import count_duplicates
from hf_llm.data.corpus.filters.punctuation import TERMINAL_PUNCTUATION
from hf_llm.data.corpus.filters.word_tokenizer import has_words, split_words


@dataclass
class FineWeb(FilterSettings):
    """`fineweb` of the rules: section 3.6 of https://arxiv.org/abs/2406.17557."""

    min_punctuated_lines: float = 0.12
    """The smallest share of lines that end a sentence."""

    max_short_lines: float = 0.67
    """The largest share of lines of at most `short_line` characters."""

    short_line: int = 30
    """How many characters a short line has at most."""

    max_duplicate_characters: float = 0.01
    """The largest share of characters in repeated lines."""

    max_lines_per_word: float = 0.3
    """The largest number of line ends per word; a list has many."""

    def make_filter(self) -> "FineWebFilter":
        return FineWebFilter(self)


class FineWebFilter(Filter):
    """The decisions and reasons of datatrove's `FineWebQualityFilter`."""

    name = "fineweb"

    def filter(self, document: Document) -> Verdict:
        settings = self.settings
        text = document.text
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return Verdict("empty", "there is no text")

        punctuated = sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines)
        if punctuated < settings.min_punctuated_lines:
            return Verdict("line_punct_ratio", f"{punctuated:.0%} of the lines end a sentence")

        short = sum(len(line) <= settings.short_line for line in lines) / len(lines)
        if short > settings.max_short_lines:
            return Verdict(
                "short_line_ratio", f"{short:.0%} of the lines have at most {settings.short_line} characters"
            )

        line_ends = text.count("\n")
        _, repeated_characters = count_duplicates(lines)
        repeated = repeated_characters / (len(text) - line_ends)
        if repeated > settings.max_duplicate_characters:
            return Verdict("char_dup_ratio", f"{repeated:.1%} of the characters are in repeated lines")

        # A text has at least as many words as pieces between white space: mostly that settles it.
        pieces = len(text.split())
        if line_ends > settings.max_lines_per_word * pieces and has_words(text):
            word_count = len(split_words(text))
            if line_ends > settings.max_lines_per_word * word_count:
                return Verdict("list_ratio", f"{line_ends} line ends for {word_count} words")
        return KEPT
