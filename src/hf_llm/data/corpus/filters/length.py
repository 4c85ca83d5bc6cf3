"""Drop documents that are too short to teach anything or too long to be one text."""

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter


class LengthFilter(BaseFilter):
    """Keep documents of `min_chars` to `max_chars` characters."""

    name = "length"

    def __init__(self, min_chars: int, max_chars: int):
        super().__init__()
        self.min_chars = min_chars
        self.max_chars = max_chars

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if len(doc.text) < self.min_chars:
            return False, "too_short"
        if len(doc.text) > self.max_chars:
            return False, "too_long"
        return True
