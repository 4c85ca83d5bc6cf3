"""Which reader reads a file, by the file's suffix, and the files that a path, a folder or a glob pattern names.

A new kind of file is a line of `FORMATS`, its name in `Format`, and a module in `data/corpus/readers/`.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hf_llm.core.errors import UserError
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.file_content import ARCHIVE, FileContent, detect_content, detect_disguise
from hf_llm.data.files.git_repos import INSTALLED_FOLDERS, VENDORED_OR_BUILT_FOLDERS

# What a source's `format` may say.
Format = Literal[
    "text", "books", "rows", "code", "html", "warc", "mediawiki", "latex", "pdf", "discussions", "docx", "epub"
]

# The suffixes of each format, without that of a compression.
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
    "warc": {".warc", ".wet", ".arc"},
    "mediawiki": {".xml"},
    "latex": {".tex"},
    "pdf": {".pdf"},
    "docx": {".docx"},
    "epub": {".epub"},
}  # fmt: skip

# What is read where a source names its `format`, if that differs from the suffixes above. No suffix distinguishes books
# and discussions from other text and rows; a paper from arXiv is a .gz file.
NAMED_FORMATS: dict[str, set[str]] = {
    "books": FORMATS["text"],
    "discussions": FORMATS["rows"] | {".xml"},
    "latex": FORMATS["latex"] | {".gz"},
}

# The extra of hf_llm whose packages read a format; the other formats are read by what the `corpus` extra holds.
EXTRA_OF_FORMAT = {"html": "web", "warc": "web", "pdf": "pdf", "docx": "office"}

# Files in which the `datasets` library describes the files beside them.
DESCRIPTION_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def detect_format(path: Path) -> str | None:
    """Return the format of a file by its name, or None where no reader is known for it."""
    suffix = content_suffix(path)
    for name, suffixes in FORMATS.items():
        if suffix in suffixes:
            return name
    return None


def resolve_format(path: Path, stated: str | None) -> FileContent:
    """Return how a file is read: as its source states, or else by its name, or by what it holds.

    The content decides where the name does not, and where the name says text and it is certainly something else. Raises
    OSError if the file cannot be read.
    """
    if stated:
        return FileContent(stated, stated)
    format = detect_format(path)
    if format is None and is_archive(path):
        return FileContent(ARCHIVE, "archive")
    if format is None:
        return detect_content(path)
    disguise = detect_disguise(path) if format == "text" else None
    return disguise or FileContent(format, format)


def check_is_read(path: Path, name: str) -> None:
    """Raise UserError if a file that a source names outright, by itself, is of no kind that is read."""
    content = resolve_format(path, None)
    if content.format is None:
        raise UserError(f"{name} is not read: it is {content.kind}; {content.remedy}")


def find_files(path: str, kinds: set[str], archives: bool = False) -> list[tuple[Path, str]]:
    """List the files that `path` names: one file, those below a folder, or those that match a glob pattern.

    Below a folder only files whose suffix is in `kinds` (and archives, where `archives` is true) are listed; a file
    that is named outright, or matched by a pattern, is taken whatever its suffix. Returns each file with its name
    relative to the path, sorted by that name. Raises UserError where there is none.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [(root, root.name)]

    if root.is_dir():
        files = _find_in_folder(root, path, kinds, archives)
    else:
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        files = [(file, file.name) for file in matches if file.is_file()]
        if not files:
            raise UserError(f"{path} does not exist (seen from {Path.cwd()}); correct `path`")
    return sorted(files, key=lambda pair: (pair[1], str(pair[0])))


def _find_in_folder(root: Path, path: str, kinds: set[str], archives: bool) -> list[tuple[Path, str]]:
    everything = [(file, file.relative_to(root).as_posix()) for file in _walk_folder(root) if file.is_file()]

    files = []
    for file, name in everything:
        has_kind = content_suffix(file) in kinds or file.suffix.lower() in kinds
        if is_input_file(name) and (has_kind or (archives and is_archive(file))):
            files.append((file, name))

    if not files:
        suffixes = sorted({Path(name).suffix or name for _, name in everything})
        listed_kinds = kinds - FORMATS["code"] or kinds  # the list of all languages would hide the others
        raise UserError(
            f"{path} holds no file to read (it holds {', '.join(suffixes[:10]) or 'nothing'}); "
            f"these kinds are read: {' '.join(sorted(listed_kinds))}"
        )
    return files


def _walk_folder(root: Path) -> Iterator[Path]:
    """Yield everything below a folder. Links to folders are followed, and each folder is read once."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders.sort()
        for name in files:
            yield Path(folder, name)


def is_input_file(name: str) -> bool:
    """Whether a file of this relative name is the user's own data.

    Hidden files, files that describe other files, installed packages, and code that is vendored or minified are not.
    """
    *folders, file = name.split("/")
    is_hidden = any(part.startswith(".") for part in (*folders, file))
    if is_hidden or file in DESCRIPTION_FILES or INSTALLED_FOLDERS.intersection(folders):
        return False
    return not (detect_format(Path(name)) == "code" and is_vendored(name))


def is_vendored(name: str) -> bool:
    """Whether a file of a code folder, by its relative name, is vendored, built or minified."""
    *folders, file = name.split("/")
    return bool(VENDORED_OR_BUILT_FOLDERS.intersection(folders)) or ".min." in file
