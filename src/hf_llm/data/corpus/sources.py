"""`corpus.sources` of a recipe, turned into parts: the units of reading, each done whole or done again.

The parts depend on the recipe and on what lies on the disk, never on the number of workers. A new kind of file is a
line of `FORMATS` and a module in `readers/`.
"""

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import xxhash

from hf_llm.core.errors import UserError
from hf_llm.data.corpus import python_docs
from hf_llm.data.corpus.filter_pipeline import Rules
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.download import Crawl, segments
from hf_llm.data.files.git_repos import FOREIGN_FOLDERS, INSTALLED_FOLDERS, clone, repository_files
from hf_llm.data.files.tabular import hub_shard_count, kind

PART_BYTES = 16 << 20  # input of a part, where it is many files
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # datasets' own

Format = Literal["text", "books", "rows", "code", "html", "warc", "mediawiki", "latex", "pdf", "discussions"]

# The reader of a file, by the suffix that is left when a compression's is taken off. What no suffix tells
# (books, discussions) is named by the source's `format`.
FORMATS: dict[str, set[str]] = {
    "text": {".txt", ".text", ".md", ".markdown", ".rst"},
    "rows": {
        ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".sqlite", ".sqlite3", ".db",
    },
    "code": {
        ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".cuh", ".java", ".kt", ".scala", ".js",
        ".jsx", ".mjs", ".ts", ".tsx", ".go", ".rs", ".rb", ".php", ".swift", ".cs", ".lua", ".pl", ".r", ".jl",
        ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".sh", ".bash", ".sql", ".css", ".scss", ".proto", ".f90", ".m",
        ".mm", ".zig", ".dart", ".vue", ".svelte", ".ipynb",
    },
    "html": {".html", ".htm", ".xhtml"},
    "warc": {".warc", ".wet"},
    "mediawiki": {".xml"},
    "latex": {".tex"},
    "pdf": {".pdf"},
}  # fmt: skip


@dataclass
class Source:
    """One entry of `corpus.sources`: one of `path`, `hub`, `git`, `crawl` and `installed`, and a licence."""

    license: str = field(metadata={"help": "SPDX identifier of the text's licence; `unknown` if you do not know"})
    name: str | None = field(default=None, metadata={"help": "in the ledger and in shares; sources may have one name"})
    path: str | None = field(default=None, metadata={"help": "a file, a folder (read to its depth) or a glob pattern"})
    hub: str | None = field(default=None, metadata={"help": "id of a data set on the Hub"})
    git: str | None = field(default=None, metadata={"help": "a repository: folder or clone URL"})
    crawl: Crawl | None = field(default=None, metadata={"help": "segments of Common Crawl"})
    installed: list[str] | None = field(default=None, metadata={"help": f"any of {', '.join(python_docs.ITEMS)}"})
    format: Format | None = field(default=None, metadata={"help": "where the files' names do not tell"})
    rules: Rules | None = field(default=None, metadata={"help": "that judge this source, instead of corpus.rules"})
    subset: str | None = field(default=None, metadata={"help": "of the Hub data set"})
    split: str = field(default="train", metadata={"help": "of the Hub data set"})
    skip: int = field(default=0, metadata={"help": "rows of the Hub data set to pass over first"})
    take: int | None = field(default=None, metadata={"help": "rows of the Hub data set to read; all if left out"})
    streaming: bool = field(default=True, metadata={"help": "read from the Hub as it comes, without a copy on disk"})
    text: str = field(default="text", metadata={"help": "the column that holds the text"})
    table: str | None = field(default=None, metadata={"help": "of an SQLite database with several"})

    def __post_init__(self) -> None:
        kinds = ("path", "hub", "git", "crawl", "installed")
        if sum(getattr(self, name) is not None for name in kinds) != 1:
            raise ValueError("a source has exactly one of `path`, `hub`, `git`, `crawl` and `installed`")
        if not self.license.strip():
            raise ValueError("license is empty; name the text's licence, or write `unknown`")
        unknown = [item for item in self.installed or () if item not in python_docs.ITEMS]
        if unknown or self.installed == []:
            raise ValueError(f"installed: {unknown} is none of {', '.join(python_docs.ITEMS)}")
        if not self.hub and (self.subset, self.split, self.skip, self.take, self.streaming) != (
            None, "train", 0, None, True
        ):  # fmt: skip
            raise ValueError("`subset`, `split`, `skip`, `take` and `streaming` belong to `hub`")
        if self.format and not self.path:
            raise ValueError("`format` belongs to `path`")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out to read all rows")
        if self.skip < 0:
            raise ValueError(f"skip is {self.skip}; it cannot be negative")


@dataclass(frozen=True)
class Part:
    """What one task reads: some files or rows of a source, or some of the installed documentation."""

    source: Source
    position: int  # of the source in the recipe: of equal documents, the one from the earliest source is kept
    label: str
    files: tuple[tuple[str, str], ...]  # path on this machine (or URL), and the name it goes by in the corpus
    bytes: int
    state: str  # names, sizes and modification times of the files, digested
    shard: tuple[int, int] | None = None  # of a Hub data set: how many there are, which this is
    item: str = ""  # of the installed documentation


def parts_of(sources: list[Source]) -> list[Part]:
    """Every part of every source, in the recipe's order. Raises UserError where a source has nothing to read."""
    parts = []
    for position, source in enumerate(sources):
        try:
            parts += _parts(source, position)
        except UserError as error:
            raise UserError(f"corpus.sources[{position}]: {error}") from None
    return parts


def _parts(source: Source, position: int) -> Iterator[Part]:
    if source.hub:
        yield from _hub_parts(source, position)
    elif source.crawl:
        label = source.name or "common_crawl"
        for url in segments(source.crawl):
            yield Part(source, position, label, ((url, url.rpartition("/")[2]),), 0, url)
    elif source.installed:
        for item in source.installed:
            for group in python_docs.file_groups(item, PART_BYTES):
                yield _part(source, position, source.name or item, group, item)
    else:
        label = source.name or Path(source.path or source.git.rstrip("/")).name.split("*")[0] or "files"
        files = corpus_files(source.path, source.format) if source.path else _git_files(source.git)
        for group in _grouped(files):
            yield _part(source, position, label, group)


def _hub_parts(source: Source, position: int) -> Iterator[Part]:
    """One part per file of a streamed data set, so that an interruption costs one; a slice of rows is one part."""
    label = source.name or source.hub
    count = 1
    if source.take is None and not source.skip:
        count = hub_shard_count(source.hub, source.subset, source.split, source.streaming)
    for index in range(count):
        yield Part(source, position, label, (), 0, "", (count, index) if count > 1 else None)


def _git_files(address: str) -> list[tuple[Path, str]]:
    root = Path(address).expanduser()
    if not root.is_dir():
        root = clone(address, cache() / "git" / xxhash.xxh3_64_hexdigest(address.encode()))
    found = [(file, name) for file, name in repository_files(root) if format_of(file) in ("code", "text")]
    if not found:
        raise UserError(f"{address} holds no source file that is read")
    return found


def cache() -> Path:
    """Where downloads are kept: `hf_llm` in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_llm"


def corpus_files(path: str, format: str | None = None) -> list[tuple[Path, str]]:
    """The files of a `path` source, sorted, each with its name relative to that path.

    Those of `format` where it is given (any text file or archive for books, any row file for discussions). Of a folder
    with code and with data (rows, pages, papers) in it only what there is more of is read, and its prose; what is left
    out is said.
    """
    kinds = set().union(*FORMATS.values())
    if format:
        like = {"books": "text", "discussions": "rows"}.get(format, format)
        kinds = FORMATS[like] | {"discussions": {".xml"}, "latex": {".gz"}}.get(format, set())
    found = files_under(path, kinds, archives=True)
    if format:
        return found
    formats = {file: format_of(file) for file, _ in found}
    code = [file for file, name in formats.items() if name == "code"]
    data = [file for file, name in formats.items() if name not in ("code", "text", None) or is_archive(file)]
    programs = [file for file in code if kind(file) not in (".css", ".scss")]
    is_code = bool(programs) and _amount(programs) >= _amount(data)
    left_out = set(data if is_code else code) if code and data else set()
    if left_out:
        seen = sorted({file.suffix for file in left_out})
        remedy = "a source with their `format`" if is_code else "a source with `format: code`"
        print(
            f"{path}: {len(left_out):,} files ({', '.join(seen[:6])}) are left out beside "
            f"{len(found) - len(left_out):,} of {'code' if is_code else 'data'} and prose; {remedy} reads them",
            flush=True,
        )
    if is_code:
        return [pair for pair in found if formats[pair[0]] in ("code", "text") and not is_foreign(pair[1])]
    return [pair for pair in found if pair[0] not in left_out]


def _amount(files: list[Path]) -> tuple[int, int]:
    return len(files), sum(file.stat().st_size for file in files)


def files_under(path: str, kinds: set[str], archives: bool = False) -> list[tuple[Path, str]]:
    """Files of these kinds (and archives, if asked for) at a path: below a folder, or matched by a glob pattern.

    Sorted by name. A file that is named outright is taken whatever its kind. Raises UserError where there is none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [(root, root.name)]
    if root.is_dir():
        inside = [(file, file.relative_to(root).as_posix()) for file in _below(root) if file.is_file()]
        found = [
            (file, name)
            for file, name in inside
            if is_ours(name) and ({kind(file), file.suffix.lower()} & kinds or (archives and is_archive(file)))
        ]
        if not found:
            seen = sorted({Path(name).suffix or name for _, name in inside})
            raise UserError(
                f"{path} holds no file to read (it holds {', '.join(seen[:10]) or 'nothing'}); "
                f"these kinds are read: {' '.join(sorted(kinds - FORMATS['code'] or kinds))}"
            )
    else:
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        found = [(file, file.name) for file in matches if file.is_file()]
        if not found:
            raise UserError(f"{path} does not exist (seen from {Path.cwd()}); correct `path`")
    return sorted(found, key=lambda pair: (pair[1], str(pair[0])))


def _below(root: Path) -> Iterator[Path]:
    """All that lies below a folder, links to folders followed, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        yield from (Path(folder, name) for name in files)


def format_of(path: Path) -> str | None:
    """The reader of a file by its name; None where no reader is known for it."""
    return next((name for name, kinds in FORMATS.items() if kind(path) in kinds), None)


def is_ours(name: str) -> bool:
    """Whether a file of this relative name is neither hidden, nor installed, nor a description of other files, nor code
    that is vendored or minified."""
    *folders, file = name.split("/")
    hidden = any(part.startswith(".") for part in (*folders, file)) or file in DESCRIPTIONS
    installed = INSTALLED_FOLDERS.intersection(folders)
    return not hidden and not installed and not (format_of(Path(name)) == "code" and is_foreign(name))


def is_foreign(name: str) -> bool:
    """Whether a file of a code folder is vendored, built or minified, by its relative name."""
    *folders, file = name.split("/")
    return bool(FOREIGN_FOLDERS.intersection(folders)) or ".min." in file


def _grouped(files: list[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    group, size = [], 0
    for file, name in files:
        group.append((file, name))
        size += file.stat().st_size
        if size >= PART_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _part(source: Source, position: int, label: str, files: list[tuple[Path, str]], item: str = "") -> Part:
    stats = [(str(file), name, file.stat()) for file, name in files]
    state = json.dumps([(path, name, stat.st_size, stat.st_mtime_ns) for path, name, stat in stats])
    return Part(
        source=source,
        position=position,
        label=label,
        files=tuple((str(file), name) for file, name in files),
        bytes=sum(stat.st_size for *_, stat in stats),
        state=xxhash.xxh3_128_hexdigest(state.encode()),
        item=item,
    )
