"""Rows of JSONL, JSON, CSV, Parquet, Arrow and SQLite files and of Hub data sets, as plain dictionaries.

A row that cannot be read is dropped and counted. Of a file that is damaged, the rows before the damage are kept and the
damage is counted as one more record lost. Memory: one line (`LINE_BYTES`), one element of a JSON array (as much) or one
batch of `BATCH_ROWS` rows, however large the file is or claims to be.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import sqlite3
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from hf_llm.core.errors import UserError
from hf_llm.data.files.read_errors import Faults

LINE_BYTES = 64 << 20  # a line or a JSON value longer than this is dropped rather than held in memory
ENDLESS_BYTES = 1 << 30  # after so much of one line the rest of the file is left unread: it is a bomb, not text
CHUNK_BYTES = 1 << 20
BATCH_ROWS = 256

DATABASES = {".sqlite", ".sqlite3", ".db"}
_FORMS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".gz": "json", ".zst": "json", ".csv": "csv"}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}

# What a broken compression or layout raises. Of OSErrors only those without an errno: the others are the disk's.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)

csv.field_size_limit(LINE_BYTES)


def file_rows(path: Path, faults: Faults, table: str | None = None) -> Iterator[tuple[int, dict]]:
    """The number (from 1; lines for JSONL and CSV) and the columns of every row of a file (of a database's `table`).

    Raises OSError where the file has vanished or may not be read, UserError where its form is not one of rows.
    """
    suffix = kind(path)
    if suffix in DATABASES:
        return _sqlite(path, faults, table)
    readers = {".json": _json, ".parquet": _parquet, ".arrow": _arrow, ".csv": _csv, ".tsv": _csv}
    return readers.get(suffix, _json_lines)(path, faults)


def kind(path: Path) -> str:
    """The suffix that says how a file is read, a compression's suffix left aside: `.jsonl` for `a.jsonl.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def hub_rows(
    hub: str,
    subset: str | None,
    split: str,
    streaming: bool,
    take: int | None,
    skip: int = 0,
    shard: tuple[int, int] | None = None,
) -> Iterator[tuple[int, dict]]:
    """The number (from 1) and the columns of the rows of a Hub data set.

    `hub` is its id, or its files by a pattern: `hf://datasets/owner/name/data/train-*.parquet`.
    `skip` and `take` cut a slice of the whole data set. `shard` (count, index) is one of `count` parts of its files, in
    their order: all of them together are the data set, and each is numbered from 1. Raises UserError.
    """
    assert shard is None or (take is None and skip == 0), "a slice is of the whole data set, not of a shard"
    with _hub_faults(hub, subset, split):
        rows = _load(hub, subset, split, streaming)
        if shard is not None:
            count, index = shard
            rows = rows.shard(num_shards=count, index=index)
        if skip:
            rows = rows.skip(skip)
        yield from enumerate(islice(rows, take), skip + 1)


def hub_shard_count(hub: str, subset: str | None, split: str, streaming: bool) -> int:
    """Into how many shards `hub_rows` can cut a Hub data set: its files where it is streamed, 1 where it is on disk."""
    with _hub_faults(hub, subset, split):
        return _load(hub, subset, split, streaming).num_shards if streaming else 1


def _load(hub: str, subset: str | None, split: str, streaming: bool) -> Any:
    import datasets

    form = _FORMS.get(Path(hub).suffix)
    if form:  # some files of a repository: hf://datasets/owner/name/data/train-*.parquet
        return datasets.load_dataset(form, data_files={split: hub}, split=split, streaming=streaming)
    return datasets.load_dataset(hub, subset, split=split, streaming=streaming)


@contextlib.contextmanager
def _hub_faults(hub: str, subset: str | None, split: str) -> Iterator[None]:
    import datasets
    import httpx

    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, httpx.HTTPError) as error:
        wanted = " ".join(filter(None, [hub, subset, split]))
        raise UserError(
            f"the Hub data set {wanted} cannot be read: {error}\n"
            "  Check the name, subset and split, the network and HF_HUB_OFFLINE (`hf auth login` for a gated one); of "
            f"one with a loading script name the files (`hub: hf://datasets/{hub}/data/*.parquet`); or use a `path`."
        ) from error


def column(row: dict, name: str, where: str) -> object:
    """The value of a column; UserError that names the columns there are where it is missing."""
    if name in row:
        return row[name]
    texts = [key for key, value in row.items() if isinstance(value, str)]
    remedy = f"write `text: {texts[0]}`" if texts else "name the column that holds the text with `text:`"
    raise UserError(f"{where} has no column {name!r}; it has {', '.join(map(str, row))}: {remedy}")


def opened(path: Path, suffix: str | None = None) -> IO[bytes]:
    """A file for reading bytes, through gzip, bzip2, xz or zstandard where its name ends so (or in `suffix`)."""
    suffix = suffix or path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".bz2":
        return bz2.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return open(path, "rb")


@contextlib.contextmanager
def damage_counted(path: Path, faults: Faults) -> Iterator[None]:
    """Ends the block where the file turns out to be damaged, and counts that. An error of the disk passes through."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        damaged(path, error, faults)


def damaged(path: Path, error: Exception, faults: Faults) -> None:
    """Count a file as damaged: what stood before the damage has been read, what follows it is lost."""
    faults.records += 1
    faults.drop("damaged file", str(path), str(error))


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that has vanished, may not be read or whose disk fails."""
    return UserError(f"{path} cannot be read: {error.strerror or error}; put it back or leave it out, then run again")


def decoded(line: bytes) -> str | None:
    """The line as text without a byte order mark; None where it is not UTF-8."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None


def _lines(path: Path, faults: Faults) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of every line that can be held; the others dropped and counted."""
    with damage_counted(path, faults), opened(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            if len(line) < LINE_BYTES or line.endswith(b"\n"):
                yield number, line
                continue
            faults.records += 1
            faults.drop(f"line longer than {LINE_BYTES >> 20} MiB", f"{path}, line {number}")
            if not _skipped(file):
                return damaged(path, ValueError(f"line {number} does not end within {ENDLESS_BYTES >> 20} MiB"), faults)


def _skipped(file: IO[bytes]) -> bool:
    """Read to the end of the line; False where that is too far."""
    size = 0
    while size < ENDLESS_BYTES:
        line = file.readline(CHUNK_BYTES)
        if not line or line.endswith(b"\n"):
            return True
        size += len(line)
    return False


def _json_lines(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    for number, line in _lines(path, faults):
        if not line.strip():
            continue
        faults.records += 1
        text = decoded(line)
        if text is None:
            faults.drop("not UTF-8", f"{path}, line {number}", line)
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            faults.drop("malformed JSON", f"{path}, line {number}", text)
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            faults.drop("no JSON object", f"{path}, line {number}", text)


def _json(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    """A JSON array of objects, or JSON lines under the name .json, as Hub data sets have it."""
    start = b""
    with damage_counted(path, faults), opened(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        first = start.splitlines()[0] if start else b""
        if first.rstrip() == b"{":
            raise UserError(f"{path} holds one JSON object; rows are an array of objects, or one object per line")
        yield from _json_lines(path, faults) if start else ()
        return
    try:
        with damage_counted(path, faults), opened(path) as file:
            for number, row in enumerate(_Array(file), 1):
                faults.records += 1
                if isinstance(row, dict):
                    yield number, row
                else:
                    faults.drop("no JSON object", f"{path}, row {number}", str(row))
    except (ValueError, RecursionError) as error:  # no UTF-8 is a ValueError too
        damaged(path, error, faults)


class _Array:
    """The elements of a JSON array, one in memory at a time. ValueError where it is none or does not end."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.scan = json.JSONDecoder().raw_decode
        self.text, self.at, self.ended = "", 0, False

    def __iter__(self) -> Iterator[object]:
        self._take("[")
        if self._next() == "]":
            return
        while True:
            yield self._value()
            if self._next() == "]":
                return
            self._take(",")

    def _value(self) -> object:
        self._next()
        size = CHUNK_BYTES
        while True:
            try:
                value, end = self.scan(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number at the end of the buffer may go on
                    self.at = end
                    return value
            except ValueError:
                if self.ended or len(self.text) - self.at > LINE_BYTES:
                    raise
            self._more(size)
            size *= 2

    def _take(self, mark: str) -> None:
        found = self._next()
        if found != mark:
            raise ValueError(f"{mark!r} expected, {self.text[self.at : self.at + 40]!r} found" if found else "cut off")
        self.at += 1

    def _next(self) -> str:
        """The next character that is no white space, not taken; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more(CHUNK_BYTES)

    def _more(self, size: int) -> None:
        chunk = self.file.read(size)
        self.ended = not chunk
        self.text = self.text[self.at :] + self.decode(chunk, self.ended)
        self.at = 0


def _csv(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    def texts() -> Iterator[tuple[int, str]]:
        for number, line in _lines(path, faults):
            text = decoded(line)
            if text is None:
                faults.records += 1
                faults.drop("not UTF-8", f"{path}, line {number}", line)
            else:
                yield number, text.replace("\0", "")

    columns: list[str] | None = None
    for number, line, values in _separated(texts(), "\t" if kind(path) == ".tsv" else ","):
        if columns is None:
            if values is None:
                return damaged(path, ValueError("the names of the columns have a quote without its end"), faults)
            columns = values
            continue
        faults.records += 1
        if values is not None and len(values) == len(columns):
            yield number, dict(zip(columns, values, strict=True))
        else:
            reason = "a quote without its end" if values is None else "wrong number of columns"
            faults.drop(reason, f"{path}, line {number}", line)


def _separated(lines: Iterator[tuple[int, str]], mark: str) -> Iterator[tuple[int, str, list[str] | None]]:
    """The number of the first line, that line, and the values of each row; None for a line whose quotes do not go
    together.

    A value between quotes may hold marks, quotes doubled and line ends. Where a quote is not closed as it should be,
    only the line it stands in is lost, and in a TSV not even that, where quotes are characters like others.
    """
    waiting: deque[tuple[int, str]] = deque()  # read ahead for a row that was none
    width = 0  # of the first row
    while True:
        taken: list[tuple[int, str]] = []

        def fed(taken: list[tuple[int, str]] = taken) -> Iterator[str]:
            size = 0
            while following := waiting.popleft() if waiting else next(lines, None):
                taken.append(following)
                size += len(following[1])
                if size > LINE_BYTES:
                    raise csv.Error("a row without an end")
                yield following[1]

        try:
            values = next(csv.reader(fed(), delimiter=mark, strict=True), None)
            if values and width and len(values) != width and len(taken) > 1:
                raise csv.Error("an end of a quote that is another's beginning")
        except csv.Error:
            values = next(csv.reader([taken[0][1]], delimiter=mark, quoting=csv.QUOTE_NONE)) if mark == "\t" else None
            waiting.extendleft(reversed(taken[1:]))
        if not taken:
            return
        if values != []:
            width = width or len(values or ())
            yield *taken[0], values


def _parquet(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    import pyarrow.parquet

    with _arrow_damage_counted(path, faults), pyarrow.parquet.ParquetFile(path) as file:
        yield from _batches(file.iter_batches(batch_size=BATCH_ROWS), faults)


def _arrow(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    """Arrow's stream format (what `datasets` keeps on disk) or its file format."""
    import pyarrow
    import pyarrow.ipc

    with _arrow_damage_counted(path, faults), pyarrow.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            batches = pyarrow.ipc.open_stream(source)
        yield from _batches(batches, faults)


@contextlib.contextmanager
def _arrow_damage_counted(path: Path, faults: Faults) -> Iterator[None]:
    import pyarrow

    with damage_counted(path, faults):
        try:
            yield
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            damaged(path, error, faults)


def _batches(batches: Iterator[Any], faults: Faults) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            faults.records += 1
            yield number, row


_NOT_UTF8 = object()


def _sqlite(path: Path, faults: Faults, table: str | None) -> Iterator[tuple[int, dict]]:
    """The rows of one table, in the order of the database; opened read-only. A blob stays bytes."""
    path.stat()  # SQLite's own error for a file that has vanished is that of a damaged one
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            database.text_factory = lambda raw: _NOT_UTF8 if (text := decoded(raw)) is None else text
            rows = database.execute('SELECT * FROM "{}"'.format(_table(database, path, table).replace('"', '""')))
            names = [column[0] for column in rows.description]
            for number, values in enumerate(rows, 1):
                faults.records += 1
                if _NOT_UTF8 in values:
                    faults.drop("not UTF-8", f"{path}, row {number}")
                else:
                    yield number, dict(zip(names, values, strict=True))
    except sqlite3.DatabaseError as error:
        damaged(path, error, faults)


def _table(database: sqlite3.Connection, path: Path, wanted: str | None) -> str:
    found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
    tables = [name for (name,) in found if not name.startswith("sqlite_")]
    if wanted is None and len(tables) == 1:
        return tables[0]
    if wanted in tables:
        return wanted
    what = f"no table {wanted!r}" if wanted else "several tables" if tables else "no table"
    raise UserError(f"{path} has {what}; write `table:` with one of {', '.join(tables) or '(none)'}")
