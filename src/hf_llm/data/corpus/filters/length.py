"""Drop documents that are too short to teach anything or too long to be one text."""

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, Verdict


class LengthFilter(Filter):
    """Keep documents of `min_chars` to `max_chars` characters."""

    name = "length"

    def __init__(self, min_chars: int, max_chars: int):
        self.min_chars = min_chars
        self.max_chars = max_chars

    def filter(self, document: Document) -> Verdict:
        if len(document.text) < self.min_chars:
            return Verdict("too_short")
        if len(document.text) > self.max_chars:
            return Verdict("too_long")
        return KEPT
