"""Base classes of all filters: settings, which build a filter, and a filter, which judges one document at a time.

To add a filter, write a file in this folder with its settings (a dataclass that inherits `FilterSettings`) and the
filter (a class that inherits `Filter`), and add a field to `Rules` in `data/corpus/config.py`. A filter does not depend
on datatrove; `data/corpus/filter_pipeline.py` turns it into a step of datatrove.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Document(Protocol):
    """The part of a document that a filter sees and may change."""

    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter decides about one document."""

    reason: str = ""
    """Why the document is dropped: a key of the ledger. Empty for a document that is kept."""

    detail: str = ""
    """The numbers behind the reason, in a phrase that `--explain` prints."""

    changes: Mapping[str, int] = field(default_factory=dict)
    """How much of the text was cut out or replaced, by kind (`lines_<why>`): added up in the ledger."""

    @property
    def is_kept(self) -> bool:
        return not self.reason


KEPT = Verdict()


class Filter:
    """Judges documents by its settings."""

    name: str  # in recipes and in the ledger

    def __init__(self, settings: Any):
        self.settings = settings

    def filter(self, document: Document) -> Verdict:
        """Judge a document. A filter that keeps it may change its text or add to its metadata."""
        raise NotImplementedError


class FilterSettings:
    """The settings of one filter, as a recipe writes them."""

    def make_filter(self) -> Filter:
        """Build the filter that judges by these settings."""
        raise NotImplementedError
