"""Turn `corpus.sources` of a recipe into read tasks, the units of reading: an interrupted one is done again.

The tasks depend on the recipe and on the files on the disk, not on the number of workers.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from hf_llm.core.errors import UserError
from hf_llm.data.corpus import python_docs
from hf_llm.data.corpus.config import Source
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.download import list_segments
from hf_llm.data.files.file_formats import (
    FORMATS,
    NAMED_FORMATS,
    check_is_read,
    detect_format,
    find_files,
    is_vendored,
)
from hf_llm.data.files.git_repos import clone_repository, list_repository_files
from hf_llm.data.files.tabular import count_hub_shards

PART_BYTES = 16 << 20  # of input that a task reads, where a source has many files
STYLE_SHEETS = (".css", ".scss")  # are read as code, but do not make a folder of web pages a program


@dataclass(frozen=True)
class ReadTask:
    """What one task reads: some files or rows of a source, or some of the installed documentation."""

    source: Source
    position: int
    """The position of the source in the recipe: of equal documents, the one from the earliest source is kept."""

    label: str
    """What the source is called in the ledger."""

    files: tuple[tuple[str, str], ...]
    """The path on this host (or the URL) of each file, and its name in the corpus."""

    bytes: int
    """The size of all files together; 0 if it is not known."""

    state: str
    """A digest of the files' names, sizes and modification times."""

    shard: tuple[int, int] | None = None
    """For a Hub data set that is read in shards: how many there are, and the number of this one."""

    item: str = ""
    """Which part of the installed documentation to read (`python_docs.ITEMS`)."""


def list_read_tasks(sources: list[Source]) -> list[ReadTask]:
    """List the read tasks of every source, in the recipe's order.

    Raises UserError where a source has nothing to read.
    """
    tasks = []
    for position, source in enumerate(sources):
        try:
            tasks += _list_tasks_of_source(source, position)
        except UserError as error:
            raise UserError(f"corpus.sources[{position}]: {error}") from None
    return tasks


def _list_tasks_of_source(source: Source, position: int) -> Iterator[ReadTask]:
    if source.hub:
        yield from _list_hub_tasks(source, position)
    elif source.crawl:
        label = source.name or "common_crawl"
        for url in list_segments(source.crawl):
            name = url.rpartition("/")[2]
            yield ReadTask(source, position, label, ((url, name),), 0, url)
    elif source.installed:
        for item in source.installed:
            for files in python_docs.group_files(item, PART_BYTES):
                yield _make_file_task(source, position, source.name or item, files, item)
    else:
        if source.path:
            files = list_source_files(source.path, source.format)
        else:
            assert source.git is not None
            files = _list_git_files(source.git)
        for group in _group_files(files):
            yield _make_file_task(source, position, _label_files(source), group)


def _list_hub_tasks(source: Source, position: int) -> Iterator[ReadTask]:
    """Yield one task per file of a streamed data set, so that an interruption costs one; a slice is one task."""
    assert source.hub is not None
    label = source.name or source.hub
    is_slice = source.take is not None or source.skip
    if is_slice:
        count = 1
    else:
        count = count_hub_shards(source.hub, source.subset, source.split, source.streaming)
    for index in range(count):
        shard = (count, index) if count > 1 else None
        yield ReadTask(source, position, label, (), 0, "", shard)


def _label_files(source: Source) -> str:
    """Return the name of a source of files: the recipe's, else the last part of its path or URL, up to a wildcard."""
    address = source.path or source.git
    assert address is not None
    return source.name or Path(address).name.split("*")[0] or "files"


def _group_files(files: list[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    """Group files in their order, each group ending with the file that fills PART_BYTES."""
    group = []
    size = 0
    for file, name in files:
        group.append((file, name))
        size += file.stat().st_size
        if size >= PART_BYTES:
            yield group
            group = []
            size = 0
    if group:
        yield group


def _make_file_task(
    source: Source, position: int, label: str, files: list[tuple[Path, str]], item: str = ""
) -> ReadTask:
    statuses = [(str(file), name, file.stat()) for file, name in files]
    state = json.dumps([(path, name, status.st_size, status.st_mtime_ns) for path, name, status in statuses])
    return ReadTask(
        source=source,
        position=position,
        label=label,
        files=tuple((path, name) for path, name, _ in statuses),
        bytes=sum(status.st_size for _, _, status in statuses),
        state=xxhash.xxh3_128_hexdigest(state.encode()),
        item=item,
    )


def _list_git_files(address: str) -> list[tuple[Path, str]]:
    root = Path(address).expanduser()
    if not root.is_dir():
        root = clone_repository(address, download_folder() / "git" / xxhash.xxh3_64_hexdigest(address.encode()))
    files = [(file, name) for file, name in list_repository_files(root) if detect_format(file) in ("code", "text")]
    if not files:
        raise UserError(f"{address} holds no source file that is read")
    return files


def download_folder() -> Path:
    """Return the folder of downloads: `hf_llm` in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_llm"


def list_source_files(path: str, format: str | None = None) -> list[tuple[Path, str]]:
    """List the files of a `path` source, sorted, each with its name relative to that path.

    If `format` is given, the files of that format; else every file that has a reader. If a folder has both code and
    data (rows, pages, papers), only the kind that it has more of, and its prose; how many are skipped is printed.
    """
    if format:
        suffixes = NAMED_FORMATS.get(format) or FORMATS[format]
        return find_files(path, suffixes, archives=True)

    all_suffixes = set().union(*FORMATS.values())
    files = find_files(path, all_suffixes, archives=True)
    formats = {file: detect_format(file) for file, _ in files}
    if Path(path).expanduser().is_file():
        check_is_read(Path(path).expanduser(), path)

    code = set()
    data = set()
    for file, file_format in formats.items():
        if file_format == "code":
            code.add(file)
        if file_format not in ("code", "text", None) or is_archive(file):
            data.add(file)

    programs = {file for file in code if content_suffix(file) not in STYLE_SHEETS}
    is_code_folder = bool(programs) and _measure_files(programs) >= _measure_files(data)

    skipped = set()
    if code and data:
        skipped = data if is_code_folder else code
        _print_skipped(path, skipped, len(files) - len(skipped), is_code_folder)

    if not is_code_folder:
        return [(file, name) for file, name in files if file not in skipped]
    return [(file, name) for file, name in files if formats[file] in ("code", "text") and not is_vendored(name)]


def _measure_files(files: set[Path]) -> tuple[int, int]:
    """Return the number of files and their total bytes, by which two kinds of files are compared."""
    return len(files), sum(file.stat().st_size for file in files)


def _print_skipped(path: str, skipped: set[Path], kept_count: int, is_code_folder: bool) -> None:
    suffixes = ", ".join(sorted({file.suffix for file in skipped})[:6])
    kept_kind = "code" if is_code_folder else "data"
    remedy = "a source with their `format`" if is_code_folder else "a source with `format: code`"
    print(
        f"{path}: {len(skipped):,} files ({suffixes}) are left out beside "
        f"{kept_count:,} of {kept_kind} and prose; {remedy} reads them",
        flush=True,
    )
