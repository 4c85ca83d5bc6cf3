"""`corpus.sources` of a recipe, turned into parts: the units of reading, each done whole or done again.

The parts depend on the recipe and on what lies on the disk, never on the number of workers.
"""

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from hf_llm.data import installed
from hf_llm.errors import UserError

PART_BYTES = 16 << 20  # input of a part, where it is many files

TEXT = {".txt", ".text", ".md", ".markdown", ".rst"}
ROWS = {".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".sqlite", ".sqlite3", ".db"}
CODE = {
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".cuh", ".java", ".kt", ".scala", ".js", ".jsx",
    ".mjs", ".ts", ".tsx", ".go", ".rs", ".rb", ".php", ".swift", ".cs", ".lua", ".pl", ".r", ".jl", ".hs", ".ml",
    ".ex", ".exs", ".erl", ".clj", ".sh", ".bash", ".sql", ".css", ".scss", ".proto", ".f90", ".m", ".mm", ".zig",
    ".dart", ".vue", ".svelte",
}  # fmt: skip
# Folders of a repository that hold what others wrote or a program made.
NOT_OURS = {
    "node_modules", "vendor", "third_party", "third-party", "site-packages", "dist-packages", "venv", "env",
    "__pycache__", "dist", "build", "target", "_vendor", "bower_components",
}  # fmt: skip


@dataclass
class Source:
    """One entry of `corpus.sources`: exactly one of `path`, `hub` and `installed`, and a licence."""

    license: str = field(metadata={"help": "SPDX identifier of the text's licence; `unknown` if you do not know"})
    path: str | None = field(default=None, metadata={"help": "a file, a folder (read to its depth) or a glob pattern"})
    hub: str | None = field(default=None, metadata={"help": "id of a data set on the Hub"})
    installed: list[str] | None = field(default=None, metadata={"help": f"any of {', '.join(installed.ITEMS)}"})
    subset: str | None = field(default=None, metadata={"help": "of the Hub data set"})
    split: str = field(default="train", metadata={"help": "of the Hub data set"})
    take: int | None = field(default=None, metadata={"help": "the first rows of the Hub data set; all if left out"})
    streaming: bool = field(default=True, metadata={"help": "read from the Hub as it comes, without a copy on disk"})
    text: str = field(default="text", metadata={"help": "the column that holds the text"})
    table: str | None = field(default=None, metadata={"help": "of an SQLite database with several"})

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.path, self.hub, self.installed)) != 1:
            raise ValueError("a source has exactly one of `path`, `hub` and `installed`")
        if not self.license.strip():
            raise ValueError("license is empty; name the text's licence, or write `unknown`")
        unknown = [item for item in self.installed or () if item not in installed.ITEMS]
        if unknown or self.installed == []:
            raise ValueError(f"installed: {unknown} is none of {', '.join(installed.ITEMS)}")
        if not self.hub and (self.subset, self.split, self.take, self.streaming) != (None, "train", None, True):
            raise ValueError("`subset`, `split`, `take` and `streaming` belong to `hub`")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out to read all rows")


@dataclass(frozen=True)
class Part:
    """What one task reads: some files of a source, a whole Hub data set, or some of the installed documentation."""

    source: Source
    position: int  # of the source in the recipe: of equal documents, the one from the earliest source is kept
    label: str
    files: tuple[tuple[str, str], ...]  # path on this machine, and the name it goes by in the corpus
    bytes: int
    state: str  # names, sizes and modification times of the files, digested


def parts_of(sources: list[Source]) -> list[Part]:
    """Every part of every source, in the recipe's order. Raises UserError where a source has nothing to read."""
    parts = []
    for position, source in enumerate(sources):
        try:
            if source.hub:
                parts.append(Part(source, position, source.hub, (), 0, ""))
            elif source.installed:
                for item in source.installed:
                    groups = installed.file_groups(item, PART_BYTES)
                    parts += [_part(source, position, item, group) for group in groups]
            else:
                files = corpus_files(source.path)
                label = Path(source.path).name.split("*")[0] or "files"
                parts += [_part(source, position, label, group) for group in _grouped(files)]
        except UserError as error:
            raise UserError(f"corpus.sources[{position}]: {error}") from None
    return parts


def corpus_files(path: str) -> list[tuple[Path, str]]:
    """The files of a `path` source, sorted, each with its name relative to that path.

    A folder with code in it is a code folder: its code and prose are read, its JSON and CSV are not.
    """
    found = files_under(path, TEXT | ROWS | CODE)
    if len(found) > 1 and any(kind(file) in CODE for file, _ in found):
        found = [(file, name) for file, name in found if kind(file) not in ROWS]
    return found


def files_under(path: str, kinds: set[str]) -> list[tuple[Path, str]]:
    """Files of these kinds at a path, below a folder or matched by a glob pattern, sorted by name.

    A file that is named outright is taken whatever its kind. Raises UserError where there is none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [(root, root.name)]
    if root.is_dir():
        inside = [(file, file.relative_to(root).as_posix()) for file in root.rglob("*") if file.is_file()]
        found = [(file, name) for file, name in inside if kind(file) in kinds and _is_ours(name)]
        if not found:
            seen = sorted({Path(name).suffix or name for _, name in inside})
            raise UserError(
                f"{path} holds no file to read (it holds {', '.join(seen[:10]) or 'nothing'}); "
                f"these kinds are read: {' '.join(sorted(kinds - CODE))}"
            )
    else:
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        found = [(file, file.name) for file in matches if file.is_file()]
        if not found:
            raise UserError(f"{path} does not exist (seen from {Path.cwd()}); correct `path`")
    return sorted(found, key=lambda pair: (pair[1], str(pair[0])))


def kind(path: Path) -> str:
    """The suffix that says how a file is read, a compression's suffix left aside: `.jsonl` for `a.jsonl.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _is_ours(name: str) -> bool:
    *folders, file = name.split("/")
    hidden = any(part.startswith(".") for part in (*folders, file))
    return not hidden and not NOT_OURS.intersection(folders) and ".min." not in file


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


def _part(source: Source, position: int, label: str, files: list[tuple[Path, str]]) -> Part:
    stats = [(name, file.stat()) for file, name in files]
    state = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return Part(
        source=source,
        position=position,
        label=label,
        files=tuple((str(file), name) for file, name in files),
        bytes=sum(stat.st_size for _, stat in stats),
        state=xxhash.xxh3_128_hexdigest(state.encode()),
    )
