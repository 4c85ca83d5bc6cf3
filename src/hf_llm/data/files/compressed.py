"""Open files that may be compressed (gzip, bzip2, xz, zstandard), and count those whose compression is damaged.

What a file begins with tells its compression: a gzip file needs no `.gz`. The suffix decides only for files that do not
begin as any compressed file does: then they are damaged.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from hf_llm.data.files.read_errors import ReadErrors

CHUNK_BYTES = 1 << 20
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}

_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
_SKIPPABLE_ZSTD_FRAME = b"\x2a\x4d\x18"  # the second to fourth byte of a frame that holds no content

# The exceptions for broken compression or a broken file format. An OSError counts only without an errno; one with an
# errno is an error of the disk.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)

InputFile = io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile  # what `open_file` opens


def content_suffix(path: Path) -> str:
    """Return the suffix that says how a file is read, without that of its compression: `.jsonl` for `a.jsonl.gz`."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED_SUFFIXES:
        return Path(path.stem).suffix.lower()
    return suffix


def detect_compression(path: Path) -> str:
    """Return the suffix of a file's compression, by its first bytes; empty if it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, suffix in _MAGIC.items():
        if start.startswith(magic):
            return suffix
    if start[1:4] == _SKIPPABLE_ZSTD_FRAME and 0x50 <= start[0] <= 0x5F:
        return ".zst"
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED_SUFFIXES else ""


def open_file(path: Path) -> InputFile:
    """Open a file to read bytes, decompressed."""
    suffix = detect_compression(path)
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
def count_damage(path: Path, errors: ReadErrors) -> Iterator[None]:
    """Suppress an error of the block that shows a damaged file, and count it. Errors of the disk are not caught."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        count_damaged_file(path, error, errors)


def count_damaged_file(path: Path, error: Exception, errors: ReadErrors) -> None:
    """Count a file as damaged. What is before the damage has been read, what follows is lost."""
    errors.records += 1
    errors.drop_record("damaged file", str(path), str(error))
