"""Read JSONL, JSON, CSV, Parquet, Arrow and SQLite files: one row is one document."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.tabular import find_column, missing_column_error, read_rows

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

MAX_ROWS_WITHOUT_COLUMN = 1_000  # at the start of a file or data set


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield a document for every row whose text column holds text. Raises UserError if no row has such a column."""
    outer_column = source.text.partition(".")[0]
    converter = RowConverter(source, errors)
    for number, row in read_rows(path, errors, source.table, outer_column):
        document = converter.convert(row, f"{path}, line {number}")
        if document:
            document.about = {"line": number}
            yield document
    converter.check_column()


class RowConverter:
    """Makes documents of the rows of one file or data set, with their `url` and `license` columns if they have them.

    A row without the text column is dropped and counted. That no row has it is an error, which names the columns there
    are; it is raised after `MAX_ROWS_WITHOUT_COLUMN` rows, not at the end of a large file. A row without text (null, or
    blank) is left out: it is not damaged.
    """

    def __init__(self, source: "Source", errors: ReadErrors):
        self.source = source
        self.errors = errors
        self.has_column = False
        self.rows_without_column = 0
        self.first_row: dict = {}
        self.first_where = ""

    def convert(self, row: dict, where: str) -> RawDocument | None:
        """Make the document of a row; None, counted, if it has no text."""
        name = self.source.text
        has_column, text = find_column(row, name)
        if not has_column:
            self.errors.drop_record(f"no column {name}", where, str(row))
            self._note_missing(row, where)
            return None
        self.has_column = True
        if is_without_text(text):
            self.errors.leave_out(NO_TEXT, where)
            return None
        if not isinstance(text, str):
            self.errors.drop_record(f"{name} is no text", where, str(text))
            return None

        url = row.get("url")
        license = row.get("license")
        has_license = isinstance(license, str) and license.strip()
        return RawDocument(
            text,
            url=url if isinstance(url, str) else "",
            license=license if has_license else None,
        )

    def _note_missing(self, row: dict, where: str) -> None:
        if not self.rows_without_column:
            self.first_row = row
            self.first_where = where
        self.rows_without_column += 1
        if self.rows_without_column >= MAX_ROWS_WITHOUT_COLUMN:
            self.check_column()

    def check_column(self) -> None:
        """Raise UserError if there were rows and none had the text column."""
        if self.rows_without_column and not self.has_column:
            raise missing_column_error(self.first_row, self.source.text, self.first_where)


def is_without_text(value: object) -> bool:
    """Whether a column holds no text: null, the NaN that tables write for it, or white space."""
    is_nan = isinstance(value, float) and math.isnan(value)
    is_blank = isinstance(value, str) and not value.strip()
    return value is None or is_nan or is_blank
