"""Files that are there whole or not at all: a killed process, or a full disk, leaves none that looks finished."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 1000  # rows of a Parquet file that are read at a time


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block has ended well. Two processes may write the same file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(table: "pyarrow.Table", path: Path) -> None:
    """Write a Parquet file, whole."""
    with table_writer(path, table.schema) as write:
        write(table)


@contextmanager
def table_writer(path: Path, schema: "pyarrow.Schema") -> Iterator[Callable[["pyarrow.Table"], None]]:
    """A function that appends a table to what becomes the Parquet file `path` when the block has ended well."""
    import pyarrow.parquet

    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield partial(writer.write_table, row_group_size=ROW_GROUP)
