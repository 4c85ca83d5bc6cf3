"""Read JSONL, JSON, CSV, Parquet, Arrow and SQLite files: one row is one document."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import column, file_rows

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source


def read(path: Path, errors: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """Yield a document for every row whose text column holds text. Raises UserError if there is no such column."""
    is_first = True
    for number, row in file_rows(path, errors, source.table):
        document = row_document(row, source, f"{path}, line {number}", errors, is_first)
        is_first = False
        if document:
            document.about = {"line": number}
            yield document


def row_document(row: dict, source: "Source", where: str, errors: Faults, is_first: bool) -> Found | None:
    """Make the document of a row, with its `url` and `license` columns if it has them.

    If the text column is missing in the first row of a file, that is an error, which names the existing columns; a
    later row without it is dropped and counted.
    """
    if source.text not in row and not is_first:
        errors.drop(f"no column {source.text}", where, str(row))
        return None
    text = column(row, source.text, where)
    if not isinstance(text, str):
        errors.drop(f"{source.text} is no text", where, str(text))
        return None

    url = row.get("url")
    license = row.get("license")
    has_license = isinstance(license, str) and license.strip()
    return Found(
        text,
        url=url if isinstance(url, str) else "",
        license=license if has_license else None,
    )
