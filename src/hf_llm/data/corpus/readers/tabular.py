"""Read JSONL, JSON, CSV, Parquet, Arrow and SQLite files: one row is one document."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.tabular import get_column, read_rows

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield a document for every row whose text column holds text. Raises UserError if there is no such column."""
    is_first = True
    for number, row in read_rows(path, errors, source.table):
        document = make_row_document(row, source, f"{path}, line {number}", errors, is_first)
        is_first = False
        if document:
            document.about = {"line": number}
            yield document


def make_row_document(
    row: dict, source: "Source", where: str, errors: ReadErrors, is_first: bool
) -> RawDocument | None:
    """Make the document of a row, with its `url` and `license` columns if it has them.

    If the text column is missing in the first row of a file, that is an error, which names the existing columns; a
    later row without it is dropped and counted. A row without text (null, or blank) is left out: it is not damaged.
    """
    if source.text not in row and not is_first:
        errors.drop_record(f"no column {source.text}", where, str(row))
        return None
    text = get_column(row, source.text, where)
    if is_without_text(text):
        errors.leave_out(NO_TEXT, where)
        return None
    if not isinstance(text, str):
        errors.drop_record(f"{source.text} is no text", where, str(text))
        return None

    url = row.get("url")
    license = row.get("license")
    has_license = isinstance(license, str) and license.strip()
    return RawDocument(
        text,
        url=url if isinstance(url, str) else "",
        license=license if has_license else None,
    )


def is_without_text(value: object) -> bool:
    """Whether a column holds no text: null, the NaN that tables write for it, or white space."""
    is_nan = isinstance(value, float) and math.isnan(value)
    is_blank = isinstance(value, str) and not value.strip()
    return value is None or is_nan or is_blank
