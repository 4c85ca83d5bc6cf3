"""What all filters have in common: settings that make a filter, and a filter that judges one document at a time.

A filter is one file of this folder, with its settings (a dataclass that inherits `FilterSettings`) and the filter (a
class that inherits `Filter`), and one field of `Rules` in `data/corpus/config.py`. It knows nothing of datatrove;
`data/corpus/filter_pipeline.py` makes a step of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Document(Protocol):
    """What a filter sees of a document, and may change: its text, and what is known of it."""

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
    """The settings of one filter, as they stand in a recipe."""

    def make_filter(self) -> Filter:
        """Build the filter that judges by these settings."""
        raise NotImplementedError
