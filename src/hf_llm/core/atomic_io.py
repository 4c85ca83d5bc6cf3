"""Write files atomically: a killed process or a full disk never leaves a partial file under the final name."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 1000  # rows in a row group of a Parquet file, the unit that is read at a time


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` if the block ends without an error.

    The temporary name holds the process id, so two processes may write the same file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(table: "pyarrow.Table", path: Path) -> None:
    """Write a table to a Parquet file, atomically."""
    with table_writer(path, table.schema) as write:
        write(table)


@contextmanager
def table_writer(path: Path, schema: "pyarrow.Schema") -> Iterator[Callable[["pyarrow.Table"], None]]:
    """Yield a function that appends a table to a Parquet file, renamed to `path` if the block raises no error."""
    import pyarrow.parquet

    with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield partial(writer.write_table, row_group_size=ROW_GROUP)


def user_cache_folder() -> Path:
    """Return the folder in which this user's downloads and measurements are kept between runs: `hf_llm` in the user's
    cache folder (XDG_CACHE_HOME, else ~/.cache). It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_llm"
