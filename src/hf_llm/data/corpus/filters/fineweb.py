"""Drop documents whose lines are those of lists and menus (FineWeb's quality rules)."""

from dataclasses import dataclass, field

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import TERMINAL_PUNCTUATION

from hf_llm.data.corpus.filters.gopher_repetition import duplicates
from hf_llm.data.corpus.word_tokenizer import has_words, words


@dataclass
class FineWeb:
    """`fineweb` of the rules: section 3.6 of https://arxiv.org/abs/2406.17557."""

    min_punctuated_lines: float = field(default=0.12, metadata={"help": "share of lines that end a sentence"})
    max_short_lines: float = field(default=0.67, metadata={"help": "share of lines of at most short_line characters"})
    short_line: int = 30
    max_duplicate_characters: float = field(default=0.01, metadata={"help": "share of characters in repeated lines"})
    max_lines_per_word: float = field(default=0.3, metadata={"help": "line ends per word; a list has many"})


class FineWebFilter(BaseFilter):
    """The decisions and reasons of datatrove's `FineWebQualityFilter`."""

    name = "fineweb"

    def __init__(self, settings: FineWeb):
        super().__init__()
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        fault = self._fault(doc.text)
        if fault is None:
            return True
        reason, doc.metadata["because"] = fault
        return False, reason

    def _fault(self, text: str) -> tuple[str, str] | None:
        limit = self.settings
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "empty", "there is no text"
        punctuated = sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines)
        if punctuated < limit.min_punctuated_lines:
            return "line_punct_ratio", f"{punctuated:.0%} of the lines end a sentence"
        short = sum(len(line) <= limit.short_line for line in lines) / len(lines)
        if short > limit.max_short_lines:
            return "short_line_ratio", f"{short:.0%} of the lines have at most {limit.short_line} characters"
        ends = text.count("\n")
        repeated = duplicates(lines)[1] / (len(text) - ends)
        if repeated > limit.max_duplicate_characters:
            return "char_dup_ratio", f"{repeated:.1%} of the characters are in repeated lines"
        # A text has at least as many words as pieces between white space: mostly that settles it.
        if ends > limit.max_lines_per_word * len(text.split()) and has_words(text):
            if ends > limit.max_lines_per_word * len(words(text)):
                return "list_ratio", f"{ends} line ends for {len(words(text))} words"
        return None
