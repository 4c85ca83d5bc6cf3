"""What every reader yields: one document as it stands in its source."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class RawDocument:
    """One document as a reader yields it, before any cleaning.

    `license` and `language` are empty if the file itself does not state them: then the source's apply. `about` holds
    what else the file says of the document (title, author, date, record): plain JSON values, small.
    """

    text: str
    url: str = ""
    license: str | None = None
    language: str = ""
    about: dict = field(default_factory=dict)
    records: int = 1
    """How many of the records that were there are in it: 0 in all pieces but the first of a record that is cut."""
    is_code: bool = False
    """Whether it is code, or belongs to a program: the filters of prose leave it alone."""
