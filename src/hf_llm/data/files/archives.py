"""An archive turned into its files, one at a time in a temporary folder, each deleted after use.

Read: .zip, .tar, .tar.gz (.tgz), .tar.bz2 (.tbz2), .tar.xz (.txz), .tar.zst, and one file that is only compressed.
Left out: folders, links, devices, and names that lead out of the archive. An archive within an archive is handed on as
the file it is.

A member that claims, or turns out, to be larger than `MEMBER_BYTES`, or more than `RATIO` times what it takes up in the
archive (from `SMALL_BYTES` on), is a bomb: refused and counted by name, and the members after it are read. A compressed
tar of which more than `RATIO` times its size has been unpacked without an end is left there.
"""

import io
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import COMPRESSED, damage_counted, damaged, opened

MEMBER_BYTES = 8 << 30
RATIO = 200  # text compresses 3 to 10 times, a log of one repeated line up to 100 times
SMALL_BYTES = 64 << 20  # no member below this is a bomb, however well it compresses

_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", *(f".tar{suffix}" for suffix in COMPRESSED))
_SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}


class _Bomb(Exception):
    """More came out of an archive than may."""


def is_archive(path: Path) -> bool:
    """Whether `members` finds several files in this one, by its name."""
    return path.name.lower().endswith((".zip", *_TAR_SUFFIXES))


def members(path: Path, faults: Faults, name: str = "") -> Iterator[tuple[str, Path]]:
    """The name of every file of an archive and where it lies now, in the order of the archive (known by `name`).

    The file is there until the next one is asked for. Members that are encrypted, bombs or damaged are counted in
    `faults`; of an archive that is damaged, what stood before the damage is read. Raises OSError where the archive
    cannot be read or the disk is full.
    """
    name = (name or path.name).lower()
    found = _zip if name.endswith(".zip") else _tar if name.endswith(_TAR_SUFFIXES) else _single
    with TemporaryDirectory(prefix="hf_llm-") as folder:
        yield from found(path, Path(folder), faults)


def _zip(path: Path, folder: Path, faults: Faults) -> Iterator[tuple[str, Path]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        return damaged(path, error, faults)
    with archive:
        for member in archive.infolist():
            name = _safe_name(member.filename)
            linked = (member.external_attr >> 16) & 0o170000 not in (0, 0o100000)
            if member.is_dir() or linked or name is None:
                continue
            where = f"{path}, {name}"
            faults.records += 1
            limit = _limit(member.compress_size)
            if member.flag_bits & 1:
                faults.drop("encrypted", where)
            elif member.file_size > limit:
                faults.drop("archive bomb", where, f"{member.file_size:,} bytes")
            else:
                with _member_faults(where, faults), archive.open(member) as source:
                    yield from _unpacked(source, name, folder, limit)


def _tar(path: Path, folder: Path, faults: Faults) -> Iterator[tuple[str, Path]]:
    limit = _limit(path.stat().st_size)
    try:
        with damage_counted(path, faults), _stream(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = _safe_name(member.name)
                if not member.isfile() or name is None:
                    continue
                faults.records += 1
                if member.size > limit:
                    faults.drop("archive bomb", f"{path}, {name}", f"{member.size:,} bytes")
                else:
                    yield from _unpacked(archive.extractfile(member), name, folder, limit)
            if archive.fileobj.read(1 << 20).strip(b"\0"):  # tarfile ends at a broken header as at the real end
                damaged(path, ValueError(f"no header of a file at byte {archive.offset:,}"), faults)
    except (tarfile.TarError, _Bomb) as error:
        damaged(path, error, faults)


def _single(path: Path, folder: Path, faults: Faults) -> Iterator[tuple[str, Path]]:
    faults.records += 1
    try:
        with damage_counted(path, faults), opened(path) as source:
            yield from _unpacked(source, path.stem, folder, _limit(path.stat().st_size))
    except _Bomb:
        faults.drop("archive bomb", str(path))


@contextmanager
def _member_faults(where: str, faults: Faults) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        faults.drop("damaged file", where, str(error))
    except _Bomb:
        faults.drop("archive bomb", where)


def _stream(path: Path) -> IO[bytes]:
    """The tar inside a file, whatever compresses it, which ends in an error where it grows beyond all measure."""
    short = _SHORT.get(path.suffix.lower())
    if path.suffix.lower() == ".tar":
        return open(path, "rb")
    source = opened(path, short) if short else opened(path)
    return io.BufferedReader(_Bounded(source, max(RATIO * path.stat().st_size, MEMBER_BYTES)))


class _Bounded(io.RawIOBase):
    def __init__(self, source: IO[bytes], limit: int):
        self.source, self.left = source, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        chunk = self.source.read(len(buffer))
        self.left -= len(chunk)
        if self.left < 0:
            raise _Bomb("more has been unpacked than any archive of this size holds")
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self.source.close()
        super().close()


def _limit(compressed: int) -> int:
    return min(max(RATIO * compressed, SMALL_BYTES), MEMBER_BYTES)


def _unpacked(source: IO[bytes], name: str, folder: Path, limit: int) -> Iterator[tuple[str, Path]]:
    """Write one member under its own last name into the folder, hand it on, delete it."""
    place = folder / "member"
    place.mkdir()
    try:
        target = place / _short(PurePosixPath(name).name)
        with open(target, "wb") as out:
            size = 0
            while chunk := source.read(1 << 20):
                size += len(chunk)
                if size > limit:
                    raise _Bomb
                out.write(chunk)
        yield name, target
    finally:
        shutil.rmtree(place)


def _short(name: str) -> str:
    """The name's last part, as long as a system takes it: 200 bytes."""
    return os.fsencode(name)[-200:].decode("utf-8", "ignore")


def _safe_name(name: str) -> str | None:
    """The name with plain slashes; None where it leads out of the archive, or is no file's or macOS's own."""
    name = name.replace("\\", "/")
    parts = name.split("/")
    if ".." in parts or name.startswith("/") or ":" in parts[0] or "\0" in name or not parts[-1]:
        return None
    if parts[0] == "__MACOSX" or parts[-1].startswith("._"):
        return None
    return "/".join(part for part in parts if part != ".") or None
