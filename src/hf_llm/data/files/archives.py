"""Unpack the files of an archive one at a time into a temporary folder; each is deleted after use.

Formats: .zip, .tar, .tar.gz (.tgz), .tar.bz2 (.tbz2), .tar.xz (.txz), .tar.zst, and a single compressed file. Left out,
and counted: links, devices, names that lead out of the archive, files that macOS adds. An archive within an archive is
given as a file.

A member that claims, or turns out, to be larger than `MEMBER_BYTES`, or more than `MAX_RATIO` times its size in the
archive (from `SMALL_BYTES` on), is a bomb: it is refused and counted by name, and the members after it are read. A
compressed tar is read no further once more than `MAX_RATIO` times its size has been unpacked.
"""

import io
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from hf_llm.data.files.compressed import COMPRESSED_SUFFIXES, InputFile, count_damage, count_damaged_file, open_file
from hf_llm.data.files.read_errors import ReadErrors

MEMBER_BYTES = 8 << 30
MAX_RATIO = 200  # text compresses 3 to 10 times, a log of one repeated line up to 100 times
SMALL_BYTES = 64 << 20  # a smaller member is never taken for a bomb, however well it compresses
CHUNK_BYTES = 1 << 20
NAME_BYTES = 200  # a length of file names that every file system allows

_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", *(f".tar{suffix}" for suffix in COMPRESSED_SUFFIXES))
_FILE_TYPE_BITS = 0o170000  # of the Unix mode in a zip's external attributes
_REGULAR_FILE = 0o100000
_ENCRYPTED_FLAG = 1


class _ArchiveBomb(Exception):
    """More was unpacked from an archive than is allowed."""


def is_archive(path: Path) -> bool:
    """Whether the name of a file is that of an archive of files, which `extract_members` unpacks."""
    return path.name.lower().endswith((".zip", *_TAR_SUFFIXES))


def extract_members(
    path: Path, errors: ReadErrors, name: str = "", is_wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Path]]:
    """Yield the name of every file of an archive and the path it is unpacked to, in the order of the archive.

    `name` says what kind of archive it is, if not the path's own name. Only files whose names `is_wanted` accepts are
    unpacked; what the others are is not counted. Each file exists until the next one is asked for.

    Members that are encrypted, bombs, damaged or no files are counted in `errors`; those that are yielded are not,
    since their reader counts what is in them. Of a damaged archive, what stands before the damage is read. Raises
    OSError if the archive cannot be read or the disk is full.
    """
    name = (name or path.name).lower()
    if name.endswith(".zip"):
        extract = _extract_zip
    elif name.endswith(_TAR_SUFFIXES):
        extract = _extract_tar
    else:
        extract = _extract_single_file
    with TemporaryDirectory(prefix="hf_llm-") as folder:
        yield from extract(path, Path(folder), errors, is_wanted)


def _extract_zip(
    path: Path, folder: Path, errors: ReadErrors, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Path]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        count_damaged_file(path, error, errors)
        return

    with archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            file_type = (member.external_attr >> 16) & _FILE_TYPE_BITS
            is_file = file_type in (0, _REGULAR_FILE)
            name = _take_name(member.filename, is_file, path, errors)
            if name is None or not is_wanted(name):
                continue

            where = f"{path}, {name}"
            limit = _size_limit(member.compress_size)
            if member.flag_bits & _ENCRYPTED_FLAG:
                errors.records += 1
                errors.drop_record("encrypted", where)
            elif member.file_size > limit:
                errors.records += 1
                errors.drop_record("archive bomb", where, f"{member.file_size:,} bytes")
            else:
                with _count_member_damage(where, errors), archive.open(member) as source:
                    yield from _write_member(source, name, folder, limit)


def _extract_tar(
    path: Path, folder: Path, errors: ReadErrors, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Path]]:
    limit = _size_limit(path.stat().st_size)
    try:
        with (
            count_damage(path, errors),
            _open_tar_stream(path) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for member in archive:
                if member.isdir():
                    continue
                name = _take_name(member.name, member.isfile(), path, errors)
                if name is None or not is_wanted(name):
                    continue
                if member.size > limit:
                    errors.records += 1
                    errors.drop_record("archive bomb", f"{path}, {name}", f"{member.size:,} bytes")
                else:
                    source = archive.extractfile(member)
                    assert source is not None, "the member is a file"
                    yield from _write_member(source, name, folder, limit)

            # tarfile ends at a broken header as it does at the real end, after which there are only zeros.
            if archive.fileobj.read(CHUNK_BYTES).strip(b"\0"):
                broken_header = ValueError(f"no header of a file at byte {archive.offset:,}")
                count_damaged_file(path, broken_header, errors)
    except (tarfile.TarError, _ArchiveBomb) as error:
        count_damaged_file(path, error, errors)


def _extract_single_file(
    path: Path, folder: Path, errors: ReadErrors, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Path]]:
    if not is_wanted(path.stem):
        return
    limit = _size_limit(path.stat().st_size)
    try:
        with count_damage(path, errors), open_file(path) as source:
            yield from _write_member(source, path.stem, folder, limit)
    except _ArchiveBomb:
        errors.records += 1
        errors.drop_record("archive bomb", str(path))


@contextmanager
def _count_member_damage(where: str, errors: ReadErrors) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        errors.records += 1
        errors.drop_record("damaged file", where, str(error))
    except _ArchiveBomb:
        errors.records += 1
        errors.drop_record("archive bomb", where)


def _open_tar_stream(path: Path) -> io.BufferedReader:
    """Open the tar in a file, decompressed. Reading raises `_ArchiveBomb` if it unpacks to too many bytes."""
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return open(path, "rb")
    source = open_file(path)
    limit = max(MAX_RATIO * path.stat().st_size, MEMBER_BYTES)
    return io.BufferedReader(_LimitedReader(source, limit))


class _LimitedReader(io.RawIOBase):
    """A stream that raises `_ArchiveBomb` after `limit` bytes."""

    def __init__(self, source: InputFile, limit: int):
        self.source = source
        self.remaining = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        chunk = self.source.read(len(buffer))
        self.remaining -= len(chunk)
        if self.remaining < 0:
            raise _ArchiveBomb("more has been unpacked than any archive of this size holds")
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self.source.close()
        super().close()


def _size_limit(compressed_bytes: int) -> int:
    """Return how many bytes a member of `compressed_bytes` may unpack to."""
    return min(max(MAX_RATIO * compressed_bytes, SMALL_BYTES), MEMBER_BYTES)


def _write_member(source: IO[bytes] | InputFile, name: str, folder: Path, limit: int) -> Iterator[tuple[str, Path]]:
    """Write one member to a folder under the last part of its name, yield it, and delete it afterwards."""
    member_folder = folder / "member"
    member_folder.mkdir()
    try:
        target = member_folder / _shorten_name(PurePosixPath(name).name)
        with open(target, "wb") as out:
            size = 0
            while chunk := source.read(CHUNK_BYTES):
                size += len(chunk)
                if size > limit:
                    raise _ArchiveBomb
                out.write(chunk)
        yield name, target
    finally:
        shutil.rmtree(member_folder)


def _shorten_name(name: str) -> str:
    """Return the end of a name, with its suffix, that is short enough for every file system."""
    return os.fsencode(name)[-NAME_BYTES:].decode("utf-8", "ignore")


def _take_name(given_name: str, is_file: bool, path: Path, errors: ReadErrors) -> str | None:
    """Return the name of a member with plain slashes; None if it is not taken out of the archive, which is counted.

    Those are links and devices, files that macOS adds, and names that lead out of the archive or are not a file's.
    """
    name = given_name.replace("\\", "/")
    parts = [part for part in name.split("/") if part != "."]
    leads_out = name.startswith("/") or ".." in parts or ":" in name.split("/")[0] or "\0" in name
    if not is_file:
        reason = "link or device"
    elif leads_out or not parts or not parts[-1]:
        reason = "name that leads out of the archive"
    elif parts[0] == "__MACOSX" or parts[-1].startswith("._"):
        reason = "hidden"
    else:
        return "/".join(parts)

    errors.records += 1
    errors.leave_out(reason, f"{path}, {given_name}")
    return None
