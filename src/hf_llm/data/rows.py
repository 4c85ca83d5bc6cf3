"""Rows of JSONL, JSON, CSV, Parquet, Arrow and SQLite files and of Hub data sets, as plain dictionaries.

A row that cannot be read is dropped and counted; a file that cannot be read is an error.
"""

import contextlib
import csv
import gzip
import json
import sqlite3
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from hf_llm.data.faults import Faults
from hf_llm.errors import UserError

LINE_BYTES = 64 << 20  # a JSON line longer than this is dropped rather than held in memory

DATABASES = {".sqlite", ".sqlite3", ".db"}

csv.field_size_limit(LINE_BYTES)


def file_rows(path: Path, faults: Faults, table: str | None = None) -> Iterator[tuple[int, dict]]:
    """The number (from 1; lines for JSONL and CSV) and the columns of every row of a file (of a database's `table`)."""
    kind = Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if kind in DATABASES:
        return _sqlite(path, faults, table)
    readers = {".json": _json, ".parquet": _parquet, ".arrow": _arrow, ".csv": _csv, ".tsv": _csv}
    return readers.get(kind, _json_lines)(path, faults)


def hub_rows(hub: str, subset: str | None, split: str, streaming: bool, take: int | None) -> Iterator[tuple[int, dict]]:
    """The number (from 1) and the columns of the rows of a Hub data set."""
    import datasets

    try:
        rows = datasets.load_dataset(hub, subset, split=split, streaming=streaming)
        yield from enumerate(islice(rows, take), 1)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        wanted = " ".join(filter(None, [hub, subset, split]))
        raise UserError(
            f"the Hub data set {wanted} cannot be read: {error}\n"
            "  Check the name, subset and split, the network and HF_HUB_OFFLINE (`hf auth login` for a gated one), "
            "or use a `path` on this disk."
        ) from error


def column(row: dict, name: str, where: str) -> object:
    """The value of a column; UserError that names the columns there are where it is missing."""
    if name in row:
        return row[name]
    texts = [key for key, value in row.items() if isinstance(value, str)]
    remedy = f"write `text: {texts[0]}`" if texts else "name the column that holds the text with `text:`"
    raise UserError(f"{where} has no column {name!r}; it has {', '.join(map(str, row))}: {remedy}")


def opened(path: Path) -> IO[bytes]:
    """A file for reading bytes, through gzip where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a file whose compression or layout is broken."""
    return UserError(f"{path} is damaged: {error}; get it again or leave it out")


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that has vanished, may not be read or whose disk fails."""
    return UserError(f"{path} cannot be read: {error.strerror or error}; put it back or leave it out, then run again")


def decoded(line: bytes) -> str | None:
    """The line as text without a byte order mark; None where it is not UTF-8."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None


def _json_lines(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    for number, line in _lines(path, faults):
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


def _lines(path: Path, faults: Faults) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with opened(path) as file:
            while line := file.readline(LINE_BYTES):
                number += 1
                if not line.strip():
                    continue
                faults.records += 1
                if len(line) < LINE_BYTES:
                    yield number, line
                    continue
                faults.drop(f"line longer than {LINE_BYTES >> 20} MiB", f"{path}, line {number}")
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, error) from None


def _json(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    """A JSON array of objects, or JSON lines under the name .json, as Hub data sets have it."""
    with opened(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        first = start.splitlines()[0] if start else b""
        if first.rstrip() == b"{":
            raise UserError(f"{path} holds one JSON object; rows are an array of objects, or one object per line")
        yield from _json_lines(path, faults)
        return
    try:
        with opened(path) as file:
            rows = json.loads(file.read().removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise damaged(path, error) from None
    for number, row in enumerate(rows, 1):
        faults.records += 1
        if isinstance(row, dict):
            yield number, row
        else:
            faults.drop("no JSON object", f"{path}, row {number}", str(row))


def _csv(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    def texts() -> Iterator[str]:
        for number, line in enumerate(file, 1):
            text = decoded(line)
            if text is None:
                faults.records += 1
                faults.drop("not UTF-8", f"{path}, line {number}", line)
            else:
                yield text.replace("\0", "")

    with opened(path) as file:
        reader = csv.DictReader(texts(), delimiter="\t" if ".tsv" in path.suffixes else ",")
        try:
            for row in reader:
                faults.records += 1
                if None in row or None in row.values():
                    faults.drop("wrong number of columns", f"{path}, line {reader.line_num}", str(row))
                else:
                    yield reader.line_num, row
        except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, error) from None


def _parquet(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _batches(file.iter_batches(batch_size=1024), faults)
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from None


def _arrow(path: Path, faults: Faults) -> Iterator[tuple[int, dict]]:
    """Arrow's stream format (what `datasets` keeps on disk) or its file format."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = pyarrow.ipc.open_stream(source)
            yield from _batches(batches, faults)
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from None


def _batches(batches: Iterator[Any], faults: Faults) -> Iterator[tuple[int, dict]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            faults.records += 1
            yield number, row


def _sqlite(path: Path, faults: Faults, table: str | None) -> Iterator[tuple[int, dict]]:
    """The rows of one table, in the order of the database; opened read-only."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            database.text_factory = bytes
            found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
            tables = [name.decode() for (name,) in found if not name.startswith(b"sqlite_")]
            if table is None and len(tables) == 1:
                table = tables[0]
            if table not in tables:
                wanted = f"no table {table!r}" if table else "several tables"
                raise UserError(f"{path} has {wanted}; write `table:` with one of {', '.join(tables) or '(none)'}")
            rows = database.execute('SELECT * FROM "{}"'.format(table.replace('"', '""')))
            names = [column[0] for column in rows.description]
            for number, values in enumerate(rows, 1):
                faults.records += 1
                try:
                    texts = [value.decode("utf-8") if isinstance(value, bytes) else value for value in values]
                except UnicodeDecodeError:
                    faults.drop("not UTF-8", f"{path}, row {number}")
                    continue
                yield number, dict(zip(names, texts, strict=True))
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from None
