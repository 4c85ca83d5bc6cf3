"""Turn `corpus.sources` of a recipe into read tasks, the units of reading: an interrupted one is done again.

The tasks depend on the recipe and on the files on the disk, not on the number of workers.
"""

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from hf_llm.core.atomic_io import user_cache_folder
from hf_llm.core.errors import UserError
from hf_llm.data.corpus import python_docs, small_world
from hf_llm.data.corpus.config import Source
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.download import list_segments
from hf_llm.data.files.file_formats import (
    check_is_read,
    describe_unknown_kind,
    detect_format,
    find_files,
    list_suffixes,
)
from hf_llm.data.files.git_repos import (
    clone_repository,
    explain_code_exclusion,
    explain_content_exclusion,
    list_repository_files,
)
from hf_llm.data.files.read_errors import ReadErrors, describe_counts
from hf_llm.data.files.tabular import count_hub_shards

PART_BYTES = 16 << 20  # of input that a task reads, where a source has many files
STYLE_SHEETS = (".css", ".scss")  # are read as code, but do not make a folder of web pages a program
# Of the bytes of code and prose in a folder or repository: from so much code on, its prose is a program's
# documentation, and no filter of prose judges it. A folder of texts with a script beside them has far less: there the
# filters leave code alone.
MIN_CODE_SHARE = 0.25


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
    """Which part of the installed documentation to read (`python_docs.ITEMS`), or of a synthetic text to write."""

    is_repository: bool = False
    """Whether there are programs among the files: then the licence nearest to a file is that of its prose too."""

    is_code: bool = False
    """Whether the filters of prose leave all of it alone (`Corpus.select_rules`)."""

    listing: ReadErrors = field(default_factory=ReadErrors)
    """What was there beside the files of this task and is not read; that of a whole source is in its first task."""


@dataclass
class SourceFiles:
    """The files to read of a `path` or `git` source, each with its name, and what kind of folder they come from."""

    files: list[tuple[Path, str]]
    is_repository: bool
    is_code: bool


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


def _list_tasks_of_source(source: Source, position: int, listing: ReadErrors | None = None) -> Iterator[ReadTask]:
    """Yield the read tasks of one source. What is there beside their files is counted in `listing`."""
    listing = listing or ReadErrors()
    if source.hub:
        yield from _list_hub_tasks(source, position)
    elif source.crawl:
        label = source.name or "common_crawl"
        for url in list_segments(source.crawl):
            name = url.rpartition("/")[2]
            yield ReadTask(source, position, label, ((url, name),), 0, url)
    elif source.installed:
        for item in source.installed:
            label = source.name or item
            for files in python_docs.group_files(item, PART_BYTES, listing):
                yield _make_file_task(source, position, label, files, item=item, listing=listing)
                listing = ReadErrors()
    elif source.synthetic:
        for part in range(small_world.PARTS):
            label = source.name or source.synthetic
            yield ReadTask(source, position, label, (), 0, f"{small_world.VERSION} {part}", item=str(part))
    else:
        if source.path:
            selected = select_source_files(source.path, source.format, listing)
        else:
            assert source.git is not None
            selected = _select_git_files(source.git, listing)
        label = _label_files(source)
        kind = {"is_repository": selected.is_repository, "is_code": selected.is_code}
        for group in _group_files(selected.files):
            yield _make_file_task(source, position, label, group, **kind, listing=listing)
            listing = ReadErrors()


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
    source: Source, position: int, label: str, files: list[tuple[Path, str]], **settings: Any
) -> ReadTask:
    """Make the task that reads these files; `settings` are further fields of it."""
    statuses = [(str(file), name, file.stat()) for file, name in files]
    state = json.dumps([(path, name, status.st_size, status.st_mtime_ns) for path, name, status in statuses])
    return ReadTask(
        source=source,
        position=position,
        label=label,
        files=tuple((path, name) for path, name, _ in statuses),
        bytes=sum(status.st_size for _, _, status in statuses),
        state=xxhash.xxh3_128_hexdigest(state.encode()),
        **settings,
    )


def _select_git_files(address: str, errors: ReadErrors) -> SourceFiles:
    root = Path(address).expanduser()
    if not root.is_dir():
        root = clone_repository(address, download_folder() / "git" / xxhash.xxh3_64_hexdigest(address.encode()))
    files = []
    for file, name in list_repository_files(root, errors):
        if detect_format(file) in ("code", "text"):
            files.append((file, name))
        else:
            errors.records += 1
            errors.leave_out(describe_unknown_kind(name), name)
    if not files:
        left_out = describe_counts(errors.left_out) or "no files"
        raise UserError(f"{address} holds no source file that is read; left out are {left_out}")
    return SourceFiles(files, is_repository=True, is_code=_is_mostly_code(files))


def download_folder() -> Path:
    """Return the folder of downloads: `hf_llm` in the user's cache folder (XDG_CACHE_HOME)."""
    return user_cache_folder()


def list_source_files(path: str, format: str | None = None) -> list[tuple[Path, str]]:
    """List the files of a `path` source, sorted, each with its name relative to that path (`select_source_files`)."""
    return select_source_files(path, format, ReadErrors()).files


def select_source_files(path: str, format: str | None, errors: ReadErrors) -> SourceFiles:
    """Select the files of a `path` source, sorted, each with its name relative to that path.

    If `format` is given, the files of that format; else every file that has a reader. If a folder has both code and
    data (rows, pages, papers), only the kind that it has more of, and its prose; how many are skipped is printed. What
    is there and not selected is counted in `errors`.
    """
    files = find_files(path, list_suffixes(format), archives=True, errors=errors)
    if format:
        return SourceFiles(files, is_repository=format == "code", is_code=format == "code")

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

    programs = {file for file in code if _is_program(file)}
    is_code_folder = bool(programs) and _measure_files(programs) >= _measure_files(data)
    if not is_code_folder:
        files = _leave_out_skipped(path, files, code if data else set(), False, errors)
        return SourceFiles(files, is_repository=False, is_code=False)

    files = _leave_out_skipped(path, files, data, True, errors)
    is_named_outright = Path(path).expanduser().is_file()
    if not is_named_outright:
        files = _leave_out_beside_code(path, files, errors)

    return SourceFiles(files, is_repository=True, is_code=_is_mostly_code(files))


def _is_mostly_code(files: list[tuple[Path, str]]) -> bool:
    """Whether `MIN_CODE_SHARE` of the bytes of these files of code and prose are programs."""
    programs = {file for file, _ in files if _is_program(file)}
    _, program_bytes = _measure_files(programs)
    _, all_bytes = _measure_files({file for file, _ in files})
    return program_bytes >= MIN_CODE_SHARE * all_bytes


def _is_program(file: Path) -> bool:
    return detect_format(file) == "code" and content_suffix(file) not in STYLE_SHEETS


def _leave_out_beside_code(path: str, files: list[tuple[Path, str]], errors: ReadErrors) -> list[tuple[Path, str]]:
    """Return the files of a folder of code that people wrote, and its prose; the others are counted.

    Raises UserError where none is left.
    """
    kept = []
    for file, name in files:
        reason = _explain_exclusion_beside_code(file, name, detect_format(file))
        if reason is None:
            kept.append((file, name))
        else:
            errors.records += 1
            errors.leave_out(reason, name)
    if not kept:
        raise UserError(f"{path} holds no file to read; left out are {describe_counts(errors.left_out)}")
    return kept


def _explain_exclusion_beside_code(file: Path, name: str, format: str | None) -> str | None:
    """Return why a file of a folder of code is left out, as of a `git` source; None if it is not."""
    if format is None:
        return describe_unknown_kind(name)
    if format != "code":
        return None
    return explain_code_exclusion(name) or explain_content_exclusion(file)


def _measure_files(files: set[Path]) -> tuple[int, int]:
    """Return the number of files and their total bytes, by which two kinds of files are compared."""
    return len(files), sum(file.stat().st_size for file in files)


def _leave_out_skipped(
    path: str, files: list[tuple[Path, str]], skipped: set[Path], is_code_folder: bool, errors: ReadErrors
) -> list[tuple[Path, str]]:
    """Return the files without the skipped ones, which are counted and told: data beside code, or code beside data."""
    if not skipped:
        return files

    reason = "data beside code" if is_code_folder else "code beside data"
    for file, name in files:
        if file in skipped:
            errors.records += 1
            errors.leave_out(reason, name)
    kept = [(file, name) for file, name in files if file not in skipped]

    suffixes = ", ".join(sorted({file.suffix for file in skipped})[:6])
    kept_kind = "code" if is_code_folder else "data"
    remedy = "a source with their `format`" if is_code_folder else "a source with `format: code`"
    print(
        f"{path}: {len(skipped):,} files ({suffixes}) are left out beside "
        f"{len(kept):,} of {kept_kind} and prose; {remedy} reads them",
        flush=True,
    )
    return kept


def name_file_in_sources(path: str, sources: list[Source]) -> list[tuple[str, str]]:
    """Return the label of every source of files that the file at `path` lies in, and the file's name there.

    `path` may go on within an archive: `texts.zip/chapter 1.txt`.
    """
    file = Path(os.path.abspath(Path(path).expanduser()))
    names = []
    for source in sources:
        address = source.path or source.git
        if address is None:
            continue
        root = Path(os.path.abspath(Path(address).expanduser()))
        if root.is_dir():
            tops = [(root, "")]
        elif root.is_file():
            tops = [(root, root.name)]
        else:
            matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
            tops = [(match, match.name) for match in matches if match.is_file()]

        for top, top_name in tops:
            if file.is_relative_to(top):
                inner_name = file.relative_to(top).as_posix()
                parts = [part for part in (top_name, inner_name) if part not in ("", ".")]
                names.append((_label_files(source), "/".join(parts)))
    return names


class _LeftOutNames(ReadErrors):
    """Remembers the reason for every file that is left out, not only for a few."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}

    def leave_out(self, reason: str, where: str, count: int = 1) -> None:
        super().leave_out(reason, where, count)
        self.reasons[where] = reason


def explain_left_out_file(path: str, sources: list[Source]) -> list[str]:
    """Return lines that say why the file at `path` is not read from any source; none where it is read, or in none."""
    lines = []
    for source in sources:
        names = name_file_in_sources(path, [source])
        if not names or not Path(path).expanduser().is_file():
            continue
        [(label, name), *_] = names
        left_out = _LeftOutNames()
        try:
            for _ in _list_tasks_of_source(source, 0, left_out):
                pass
        except UserError as error:
            lines.append(f"{name}: source {label} has nothing to read: {error}")
            continue
        if name not in left_out.reasons:
            return []
        lines.append(f"{name}  left out of source {label}: {left_out.reasons[name]}")
    return lines
