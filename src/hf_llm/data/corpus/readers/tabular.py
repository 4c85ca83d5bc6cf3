"""JSONL, JSON, CSV, Parquet, Arrow and SQLite files: one row, one document."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import column, file_rows

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """A document for every row whose text column holds text. Raises UserError where there is no such column."""
    first = True
    for number, row in file_rows(path, faults, source.table):
        found = row_document(row, source, f"{path}, line {number}", faults, first)
        first = False
        if found:
            found.about = {"line": number}
            yield found


def row_document(row: dict, source: "Source", where: str, faults: Faults, first: bool) -> Found | None:
    """The document of a row, with its `url` and `license` columns where it has them.

    Without the text column the `first` row of a file is an error, which tells the columns there are; a later one is
    left out and counted.
    """
    if source.text not in row and not first:
        faults.drop(f"no column {source.text}", where, str(row))
        return None
    text = column(row, source.text, where)
    if not isinstance(text, str):
        faults.drop(f"{source.text} is no text", where, str(text))
        return None
    url, license = row.get("url"), row.get("license")
    return Found(
        text,
        url=url if isinstance(url, str) else "",
        license=license if isinstance(license, str) and license.strip() else None,
    )
