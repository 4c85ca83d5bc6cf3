"""Read the rows of JSONL, JSON, CSV, Parquet, Arrow and SQLite files and of Hub data sets as plain dictionaries.

A row that cannot be read is dropped and counted. In a damaged file, the rows before the damage are kept and the damage
counts as one dropped record. Memory holds one line or one element of a JSON array (at most `LINE_BYTES`) or one batch
of `BATCH_ROWS` rows, however large the file is.
"""

import codecs
import contextlib
import csv
import json
import re
import sqlite3
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hf_llm.core.errors import UserError
from hf_llm.data.files.compressed import (
    CHUNK_BYTES,
    DAMAGE,
    InputFile,
    content_suffix,
    count_damage,
    count_damaged_file,
    open_file,
)
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_encoding import (
    UNKNOWN_ENCODING,
    LineDecoder,
    detect_encoding,
    detect_wide_encoding,
    explain_undecodable,
    read_start,
    transcode,
)

LINE_BYTES = 64 << 20  # a line or a JSON value longer than this is dropped rather than held in memory
ENDLESS_BYTES = 1 << 30  # a file with a longer line is read no further: it is a decompression bomb, not text
BATCH_ROWS = 256
DIALECT_LINES = 50  # of a CSV file's start, which tell what separates its values
COLUMN_NAME_CHARS = 40  # a longer first line of a table does not name columns
MIN_SAME_WIDTH_SHARE = 0.8  # of those rows, which have as many values as there are columns

DATABASES = {".sqlite", ".sqlite3", ".db"}
_TURN_KEYS = {"role", "from", "speaker"}  # of an object that is a turn of a conversation
_ROW_SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", *DATABASES}
_ROW_SIGNATURES = (
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"),
    (b"\xff\xff\xff\xff", ".arrow"),
    (b"SQLite format 3\0", ".sqlite"),
)
_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r"sep=(.?)", re.IGNORECASE)

# The loader of `datasets` for Hub files that are given as a pattern, by their suffix.
_HUB_LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".gz": "json", ".zst": "json", ".csv": "csv"}

csv.field_size_limit(LINE_BYTES)


def read_rows(
    path: Path, errors: ReadErrors, table: str | None = None, column: str | None = None
) -> Iterator[tuple[int, dict]]:
    """Yield the number (from 1; the line number for JSONL and CSV) and the columns of every row of a file.

    `table` names the table of a database, `column` one that the rows have: it tells a JSON object that is a row from
    one that holds an array of rows. Raises OSError if the file is missing or cannot be opened, UserError if it
    does not hold rows.
    """
    suffix = content_suffix(path)
    if suffix not in _ROW_SUFFIXES:
        suffix = detect_row_suffix(read_start(path))
    if suffix in DATABASES:
        return _read_sqlite(path, errors, table)
    if suffix == ".json":
        return _read_json(path, errors, column)
    if suffix == ".parquet":
        return _read_parquet(path, errors)
    if suffix == ".arrow":
        return _read_arrow(path, errors)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, errors)
    return _read_json_lines(path, errors)


def detect_row_suffix(start: bytes) -> str:
    """Return the suffix that a file of rows which begins so would have; `.jsonl` if nothing tells."""
    for signature, suffix in _ROW_SIGNATURES:
        if start.startswith(signature):
            return suffix
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        return ".json"
    text = start.decode("utf-8", "replace")
    return ".csv" if is_table(text.splitlines()[:-1], 1) else ".jsonl"


def is_table(lines: list[str], min_lines: int) -> bool:
    """Whether these lines are those of a CSV or TSV file: as many values in each, under names of columns."""
    if len(lines) < min_lines:
        return False
    delimiter, has_separator_line = _detect_delimiter(lines[:DIALECT_LINES], ",")
    if has_separator_line:
        return True
    width = _measure_width(lines[:DIALECT_LINES], delimiter, min_share=1.0)
    names = [name.strip('"') for name in lines[0].strip("\r\n").split(delimiter)]
    are_short = all(0 < len(name) <= COLUMN_NAME_CHARS for name in names)
    are_spaced = any(name != name.strip() for name in names)  # as after a comma in prose
    return width > 1 and are_short and not are_spaced and len(set(names)) == len(names)


def read_hub_rows(
    hub: str,
    subset: str | None,
    split: str,
    streaming: bool,
    take: int | None,
    skip: int = 0,
    shard: tuple[int, int] | None = None,
) -> Iterator[tuple[int, dict]]:
    """Yield the number (from 1) and the columns of the rows of a Hub data set.

    `hub` is its id, or a pattern of its files: `hf://datasets/owner/name/data/train-*.parquet`. `skip` and `take`
    select a slice of the whole data set. `shard` is (count, index): only the files of part `index` of `count` parts are
    read, and their rows are numbered from 1. Raises UserError.
    """
    assert shard is None or (take is None and skip == 0), "a slice is of the whole data set, not of a shard"
    with _explain_hub_errors(hub, subset, split):
        rows = _load_hub_dataset(hub, subset, split, streaming)
        if shard is not None:
            count, index = shard
            rows = rows.shard(num_shards=count, index=index)
        if skip:
            rows = rows.skip(skip)
        yield from enumerate(islice(rows, take), skip + 1)


def count_hub_shards(hub: str, subset: str | None, split: str, streaming: bool) -> int:
    """Count the shards that `read_hub_rows` can divide a Hub data set into: its files if it is streamed, else 1."""
    with _explain_hub_errors(hub, subset, split):
        if streaming:
            return _load_hub_dataset(hub, subset, split, streaming).num_shards
        return 1


def _load_hub_dataset(hub: str, subset: str | None, split: str, streaming: bool) -> Any:
    import datasets

    loader = _HUB_LOADERS.get(Path(hub).suffix)
    if loader:  # some files of a repository: hf://datasets/owner/name/data/train-*.parquet
        return datasets.load_dataset(loader, data_files={split: hub}, split=split, streaming=streaming)
    return datasets.load_dataset(hub, subset, split=split, streaming=streaming)


@contextlib.contextmanager
def _explain_hub_errors(hub: str, subset: str | None, split: str) -> Iterator[None]:
    """Turn errors of the Hub that are raised in the block into a UserError with a remedy."""
    import httpx
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        name = " ".join(filter(None, [hub, subset, split]))
        raise UserError(
            f"the Hub data set {name} cannot be read: {error}\n"
            "  Check the name, subset and split, the network and HF_HUB_OFFLINE (`hf auth login` for a gated one); of "
            f"one with a loading script name the files (`hub: hf://datasets/{hub}/data/*.parquet`); or use a `path`."
        ) from error


def get_column(row: dict, name: str, where: str) -> object:
    """Return the value of a column. Raises UserError, which names the existing columns, if it is missing.

    `doc.text` is the column of that name, or else the member `text` of the column `doc`.
    """
    is_there, value = find_column(row, name)
    if is_there:
        return value
    raise missing_column_error(row, name, where)


def find_column(row: dict, name: str) -> tuple[bool, object]:
    """Return whether a row has a column, and its value. A name with dots may lead into nested columns."""
    if name in row:
        return True, row[name]
    outer, dot, inner = name.partition(".")
    while dot:
        value = row.get(outer)
        if isinstance(value, dict):
            is_there, inner_value = find_column(value, inner)
            if is_there:
                return True, inner_value
        if outer in row and value is None:
            return True, None  # an empty outer column has an empty inner one
        next_part, dot, inner = inner.partition(".")
        outer = f"{outer}.{next_part}"
    return False, None


def missing_column_error(row: dict, name: str, where: str) -> UserError:
    """Build the UserError for a column that is missing, which names those that are there and the likely one."""
    likely = [column for column, value in _list_nested_columns(row) if isinstance(value, str)]
    if likely:
        remedy = f"write `text: {likely[0]}`"
    else:
        remedy = "name the column that holds the text with `text:`"
    return UserError(f"{where} has no column {name!r}; it has {', '.join(map(str, row))}: {remedy}")


def _list_nested_columns(row: dict) -> list[tuple[str, object]]:
    """List the columns of a row and, after them, those within them by their dotted names."""
    columns = [(str(name), value) for name, value in row.items()]
    for name, value in list(columns):
        if isinstance(value, dict):
            columns += [(f"{name}.{inner}", inner_value) for inner, inner_value in _list_nested_columns(value)]
    return columns


def unreadable_file_error(path: Path, error: OSError) -> UserError:
    """Build the UserError for a file that is missing or cannot be read."""
    return UserError(f"{path} cannot be read: {error.strerror or error}; put it back or leave it out, then run again")


def _decode_lines(path: Path, errors: ReadErrors) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of every line; those in no known encoding are dropped and counted."""
    decoder = LineDecoder(path)
    for number, line in _read_lines(path, errors):
        text = decoder.decode(line)
        if text is None:
            errors.records += 1
            errors.drop_record(UNKNOWN_ENCODING, f"{path}, line {number}", line)
        else:
            yield number, text


def _read_lines(path: Path, errors: ReadErrors) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of every line; those longer than `LINE_BYTES` are dropped and counted.

    The lines of a file in UTF-16 or UTF-32 are given in UTF-8.
    """
    try:
        yield from _read_raw_lines(path, errors)
    except UnicodeDecodeError as error:
        count_damaged_file(path, error, errors)


def _read_raw_lines(path: Path, errors: ReadErrors) -> Iterator[tuple[int, bytes]]:
    wide_encoding = detect_wide_encoding(read_start(path))
    with count_damage(path, errors), open_file(path) as raw_file:
        file = transcode(raw_file, wide_encoding) if wide_encoding else raw_file
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            if len(line) < LINE_BYTES or line.endswith(b"\n"):
                yield number, line
                continue

            errors.records += 1
            errors.drop_record(f"line longer than {LINE_BYTES >> 20} MiB", f"{path}, line {number}")
            if not _skip_line(file):
                endless_line = ValueError(f"line {number} does not end within {ENDLESS_BYTES >> 20} MiB")
                count_damaged_file(path, endless_line, errors)
                return


def _skip_line(file: InputFile) -> bool:
    """Read to the end of the line; False if it is more than `ENDLESS_BYTES` away."""
    size = 0
    while size < ENDLESS_BYTES:
        line = file.readline(CHUNK_BYTES)
        if not line or line.endswith(b"\n"):
            return True
        size += len(line)
    return False


def _read_json_lines(path: Path, errors: ReadErrors) -> Iterator[tuple[int, dict]]:
    for number, text in _decode_lines(path, errors):
        if not text.strip():
            continue
        errors.records += 1
        where = f"{path}, line {number}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            errors.drop_record("malformed JSON", where, text)
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            errors.drop_record("no JSON object", where, text)


def _read_json(path: Path, errors: ReadErrors, column: str | None) -> Iterator[tuple[int, dict]]:
    """Read an array of objects, an object that holds one or that holds objects, objects one after another, JSON lines.

    An object with the member `column` is itself a row. Raises UserError if an object holds several arrays.
    """
    encoding = detect_encoding(lambda: open_file(path))
    if encoding is None:
        errors.records += 1
        errors.drop_record(explain_undecodable(read_start(path)), str(path))
        return
    layout = "lines"
    key = ""
    with count_damage(path, ReadErrors()), transcode(open_file(path), encoding) as file:  # counted when it is read
        layout, key = _inspect_json(_JsonStream(file), path, column)
    if layout == "lines":
        yield from _read_json_lines(path, errors)
        return

    try:
        with count_damage(path, errors), transcode(open_file(path), encoding) as file:
            stream = _JsonStream(file)
            if layout == "array":
                values = stream.read_array()
            elif layout == "member":
                values = stream.read_member(key)
            elif layout == "members":
                values = stream.read_members()
            else:
                values = stream.read_values()
            for number, row in enumerate(values, 1):
                errors.records += 1
                if isinstance(row, dict):
                    yield number, row
                else:
                    errors.drop_record("no JSON object", f"{path}, row {number}", str(row))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        count_damaged_file(path, error, errors)


def _inspect_json(stream: "_JsonStream", path: Path, column: str | None) -> tuple[str, str]:
    """Return how rows are laid out in a .json file: `lines`, `array`, `values`, `members`, or `member` and its name.

    Raises UserError if there are several arrays that may be meant.
    """
    first_character = stream.peek_character()
    if first_character == "[":
        return "array", ""
    if first_character != "{":
        return "lines", ""

    arrays: list[str] = []
    texts: list[str] = []
    objects: list[str] = []
    others: list[str] = []
    is_complete = True
    try:
        stream.list_members(arrays, texts, objects, others)
        has_more = bool(stream.peek_character())
    except (ValueError, RecursionError, *DAMAGE):
        is_complete = False
        has_more = True

    filled_lines = (line for _, line in _decode_lines(path, ReadErrors()) if line.strip())
    first_lines = list(islice(filled_lines, 2))
    if has_more:
        # JSON lines, which may be damaged, or objects written over several lines each.
        starts_object = [line.startswith("{") and line.strip() != "{" for line in first_lines]
        if starts_object == [True, True] or not (is_complete or arrays):
            return "lines", ""
        if is_complete:
            return "values", ""

    if column in (*arrays, *texts, *objects, *others):
        return "values", ""
    if len(objects) > 1 and not (arrays or texts or others):
        return "members", ""
    if not arrays:
        if not texts and len(first_lines) > 1:
            raise UserError(f"{path} holds one JSON object; rows are an array of objects, or one object per line")
        return "values", ""
    if len(arrays) > 1:
        raise UserError(
            f"{path} holds one object with several arrays of rows ({', '.join(arrays)}); write the one to read into a "
            f"file of its own, as by: jq .{arrays[0]} {path.name} > {arrays[0]}.json"
        )
    return "member", arrays[0]


class _JsonStream:
    """Reads the JSON values of a file in UTF-8, one in memory at a time.

    Its methods raise ValueError where the file holds something else, or ends.
    """

    def __init__(self, file: InputFile):
        self.file = file
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.parse = json.JSONDecoder().raw_decode
        self.text = ""  # the part of the file that is in memory
        self.position = 0  # in `text`: what is before it has been parsed
        self.at_end_of_file = False

    def read_array(self) -> Iterator[object]:
        """Yield the elements of the array that follows."""
        self._take_mark("[")
        if self.peek_character() == "]":
            self._take_mark("]")
            return
        while True:
            yield self._parse_value()
            if self.peek_character() == "]":
                self._take_mark("]")
                return
            self._take_mark(",")

    def read_values(self) -> Iterator[object]:
        """Yield the values that stand one after another up to the end."""
        while self.peek_character():
            yield self._parse_value()

    def read_member(self, wanted: str) -> Iterator[object]:
        """Yield the elements of the array that is a member of the object that follows."""
        for name in self._read_names():
            if name == wanted:
                yield from self.read_array()
                return
            self._parse_value()

    def read_members(self) -> Iterator[object]:
        """Yield the values of the members of the object that follows."""
        for _ in self._read_names():
            yield self._parse_value()

    def list_members(self, arrays: list[str], texts: list[str], objects: list[str], others: list[str]) -> None:
        """Read the object that follows. The names of its members are added to one of four lists.

        `arrays` are of rows, `objects` may be rows; `texts` make the object itself a row: strings, and the turns of a
        conversation.
        """
        for name in self._read_names():
            if self.peek_character() != "[":
                value = self._parse_value()
                if isinstance(value, str):
                    texts.append(name)
                elif isinstance(value, dict):
                    objects.append(name)
                else:
                    others.append(name)
                continue
            is_empty = True
            for value in self.read_array():
                if not is_empty:
                    continue
                is_empty = False
                if not isinstance(value, dict):
                    others.append(name)
                elif _TURN_KEYS.intersection(value):
                    texts.append(name)
                else:
                    arrays.append(name)
            if is_empty:
                others.append(name)

    def _read_names(self) -> Iterator[str]:
        """Yield the names of an object's members; after each, its value has to be read."""
        self._take_mark("{")
        if self.peek_character() == "}":
            self._take_mark("}")
            return
        while True:
            name = self._parse_value()
            if not isinstance(name, str):
                raise ValueError(f"the name of a member expected, {name!r} found")
            self._take_mark(":")
            yield name
            if self.peek_character() == "}":
                self._take_mark("}")
                return
            self._take_mark(",")

    def _parse_value(self) -> object:
        """Parse the next value, reading more of the file, in growing chunks, until it is complete."""
        self.peek_character()  # skips white space
        size = CHUNK_BYTES
        while True:
            try:
                value, end = self.parse(self.text, self.position)
                # At the end of `text`, a number may continue in the next chunk.
                if end < len(self.text) or self.at_end_of_file:
                    self.position = end
                    return value
            except ValueError:
                if self.at_end_of_file or len(self.text) - self.position > LINE_BYTES:
                    raise
            self._read_more(size)
            size *= 2

    def _take_mark(self, mark: str) -> None:
        """Take the next character, which has to be `mark`. Raises ValueError."""
        character = self.peek_character()
        if not character:
            raise ValueError("cut off")
        if character != mark:
            excerpt = self.text[self.position : self.position + 40]
            raise ValueError(f"{mark!r} expected, {excerpt!r} found")
        self.position += 1

    def peek_character(self) -> str:
        """Return the next character that is not white space, without taking it; empty at the end of the file."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in " \t\r\n":
                self.position += 1
            if self.position < len(self.text) or self.at_end_of_file:
                return self.text[self.position : self.position + 1]
            self._read_more(CHUNK_BYTES)

    def _read_more(self, size: int) -> None:
        chunk = self.file.read(size)
        self.at_end_of_file = not chunk
        self.text = self.text[self.position :] + self.decode(chunk, self.at_end_of_file)
        self.position = 0


def _read_csv(path: Path, errors: ReadErrors) -> Iterator[tuple[int, dict]]:
    first_lines = [line for _, line in islice(_decode_lines(path, ReadErrors()), DIALECT_LINES)]
    delimiter, has_separator_line = _detect_delimiter(first_lines, "\t" if content_suffix(path) == ".tsv" else ",")
    lines = ((number, line.replace("\0", "")) for number, line in _decode_lines(path, errors))
    if has_separator_line:
        next(lines, None)

    columns: list[str] | None = None
    for number, line, values in _parse_separated(lines, delimiter):
        if columns is None:
            if values is None:
                unclosed = ValueError("the names of the columns have a quote without its end")
                count_damaged_file(path, unclosed, errors)
                return
            columns = values
            continue

        errors.records += 1
        if values is None:
            errors.drop_record("a quote without its end", f"{path}, line {number}", line)
        elif len(values) != len(columns):
            errors.drop_record("wrong number of columns", f"{path}, line {number}", line)
        else:
            yield number, dict(zip(columns, values, strict=True))


def _detect_delimiter(lines: list[str], usual: str) -> tuple[str, bool]:
    """Return what separates the values of a file that begins with these lines, and whether its first line says so.

    Excel writes `sep=;` there. Else it is what divides the names of the columns and most rows, the usual one in doubt.
    """
    stated = _SEPARATOR_LINE.fullmatch(lines[0].strip()) if lines else None
    if stated:
        return stated[1] or "\t", True

    best = usual
    best_width = 1
    if _measure_width(lines, usual, 0) > 1:
        return usual, False
    for delimiter in _DELIMITERS:
        width = _measure_width(lines, delimiter, MIN_SAME_WIDTH_SHARE)
        if width > best_width:
            best = delimiter
            best_width = width
    return best, False


def _measure_width(lines: list[str], delimiter: str, min_share: float) -> int:
    """Count the columns that a delimiter gives the first row; 0 if fewer than this share of the rows have as many.

    A row that goes on after these lines, as far as they tell, does not count.
    """
    is_start_of_file = len(lines) >= DIALECT_LINES
    unread = deque(enumerate(lines))
    widths = []
    for _, _, values in _parse_separated(_pop_each(unread), delimiter):
        if is_start_of_file and not unread and widths:
            break
        widths.append(len(values or ()))
    if not widths or widths.count(widths[0]) < min_share * len(widths):
        return 0
    return widths[0]


def _pop_each(items: deque[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the items from the left, each removed first, so that `items` are those not yet taken."""
    while items:
        yield items.popleft()


def _parse_separated(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, str, list[str] | None]]:
    """Yield the number of the first line, that line, and the values of each row.

    The values are None for a line with an unclosed quote. A value in quotes may hold delimiters, doubled quotes and
    line ends. An unclosed quote costs only its own line: the lines after it, which were read as part of the value, are
    parsed again. In a TSV it costs nothing: the quotes of that line are read as ordinary characters.
    """
    to_reread: deque[tuple[int, str]] = deque()  # lines that were taken for a part of a row, but are not
    width = 0  # number of values in the first row
    while True:
        row_lines: list[tuple[int, str]] = []
        reader = csv.reader(_feed_lines(lines, to_reread, row_lines), delimiter=delimiter, strict=True)
        try:
            values = next(reader, None)
            # A row over several lines with another width: an unclosed quote was closed by one that opens another value.
            if values and width and len(values) != width and len(row_lines) > 1:
                raise csv.Error("an end of a quote that is another's beginning")
        except csv.Error:
            # Only the first line is lost; the others are read again.
            to_reread.extendleft(reversed(row_lines[1:]))
            if delimiter == "\t":
                _, first_line = row_lines[0]
                values = next(csv.reader([first_line], delimiter=delimiter, quoting=csv.QUOTE_NONE))
            else:
                values = None
        if not row_lines:
            return

        if values != []:
            width = width or len(values or ())
            number, line = row_lines[0]
            yield number, line, values


def _feed_lines(
    lines: Iterator[tuple[int, str]], to_reread: deque[tuple[int, str]], row_lines: list[tuple[int, str]]
) -> Iterator[str]:
    """Yield lines for the parser of one row, first those to read again, then new ones. Appends them to `row_lines`."""
    size = 0
    while True:
        numbered_line = to_reread.popleft() if to_reread else next(lines, None)
        if numbered_line is None:
            return
        row_lines.append(numbered_line)
        _, line = numbered_line
        size += len(line)
        if size > LINE_BYTES:
            raise csv.Error("a row without an end")
        yield line


def _read_parquet(path: Path, errors: ReadErrors) -> Iterator[tuple[int, dict]]:
    import pyarrow.parquet

    with _count_arrow_damage(path, errors), pyarrow.parquet.ParquetFile(path) as file:
        yield from _flatten_batches(file.iter_batches(batch_size=BATCH_ROWS), errors, path)


def _read_arrow(path: Path, errors: ReadErrors) -> Iterator[tuple[int, dict]]:
    """Read Arrow's stream format (what `datasets` keeps on disk) or its file format."""
    import pyarrow
    import pyarrow.ipc

    with _count_arrow_damage(path, errors), pyarrow.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            batches = pyarrow.ipc.open_stream(source)
        yield from _flatten_batches(batches, errors, path)


@contextlib.contextmanager
def _count_arrow_damage(path: Path, errors: ReadErrors) -> Iterator[None]:
    import pyarrow

    with count_damage(path, errors):
        try:
            yield
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            count_damaged_file(path, error, errors)


def _flatten_batches(batches: Iterator[Any], errors: ReadErrors, path: Path) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in batches:
        for row in _convert_batch(batch, errors, path, number):
            number += 1
            errors.records += 1
            if row is not None:
                yield number, row


def _convert_batch(batch: Any, errors: ReadErrors, path: Path, rows_before: int) -> Iterator[dict | None]:
    """Yield the rows of a batch; None, counted, for one whose value Python cannot hold, as of year 33,000."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass  # then row by row
    for i in range(batch.num_rows):
        try:
            (row,) = batch.slice(i, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            errors.drop_record("value out of range", f"{path}, row {rows_before + i + 1}", str(error))
            row = None
        yield row


_NOT_UTF8 = object()  # takes the place of a text in a database that is not UTF-8


def _read_sqlite(path: Path, errors: ReadErrors, table: str | None) -> Iterator[tuple[int, dict]]:
    """Read the rows of one table in the order of the database, which is opened read-only. Blobs are bytes."""
    path.stat()  # raises OSError for a missing file, for which SQLite raises the same error as for a damaged one
    address = f"file:{quote(str(path))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            database.text_factory = _decode_or_mark
            name = _choose_table(database, path, table).replace('"', '""')
            rows = database.execute(f'SELECT * FROM "{name}"')
            columns = [description[0] for description in rows.description]
            for number, values in enumerate(rows, 1):
                errors.records += 1
                if _NOT_UTF8 in values:
                    errors.drop_record("not UTF-8", f"{path}, row {number}")
                else:
                    yield number, dict(zip(columns, values, strict=True))
    except sqlite3.DatabaseError as error:
        count_damaged_file(path, error, errors)


def _decode_or_mark(raw: bytes) -> object:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return _NOT_UTF8


def _choose_table(database: sqlite3.Connection, path: Path, wanted: str | None) -> str:
    """Return the name of the wanted table, or of the only one. Raises UserError if there is no such table."""
    rows = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
    tables = [name for (name,) in rows if not name.startswith("sqlite_")]
    if wanted is None and len(tables) == 1:
        return tables[0]
    if wanted is not None and wanted in tables:
        return wanted

    if wanted:
        problem = f"no table {wanted!r}"
    elif tables:
        problem = "several tables"
    else:
        problem = "no table"
    raise UserError(f"{path} has {problem}; write `table:` with one of {', '.join(tables) or '(none)'}")
