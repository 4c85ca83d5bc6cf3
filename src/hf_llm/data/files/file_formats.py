"""Which reader reads a file, by the file's suffix, and the files that a path, a folder or a glob pattern names.

A new kind of file is a line of `FORMATS`, its name in `Format`, and a module in `data/corpus/readers/`.
"""

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from hf_llm.core.errors import UserError
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.file_content import ARCHIVE, FileContent, detect_content, detect_disguise
from hf_llm.data.files.git_repos import INSTALLED_FOLDERS, PROSE_SUFFIXES, explain_code_exclusion
from hf_llm.data.files.read_errors import ReadErrors, describe_counts

# What a source's `format` may say.
Format = Literal[
    "text", "books", "rows", "code", "html", "warc", "mediawiki", "latex", "pdf", "discussions", "docx", "epub"
]

# The suffixes of each format, without that of a compression.
FORMATS: dict[str, set[str]] = {
    "text": PROSE_SUFFIXES,
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
MAX_SUFFIX_CHARS = 12  # a longer one is a part of the name: `notes.of a meeting in May`


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


def check_origins(origins: Mapping[str, object]) -> None:
    """Raise ValueError if one of the keys by which a source names its data is empty, or nothing but white space."""
    for key, value in origins.items():
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{key} is empty; name the data with it, or leave the key out")


def list_suffixes(format: str | None) -> set[str]:
    """List the suffixes of the files that are read in a format, or of all that have a reader."""
    if format is None:
        return set().union(*FORMATS.values())
    return NAMED_FORMATS.get(format) or FORMATS[format]


def find_files(
    path: str, kinds: set[str], archives: bool = False, errors: ReadErrors | None = None
) -> list[tuple[Path, str]]:
    """List the files that `path` names: one file, those below a folder, or those that match a glob pattern.

    Below a folder only files whose suffix is in `kinds` (and archives, where `archives` is true) are listed; a file
    that is named outright, or matched by a pattern, is taken whatever its suffix. Returns each file with its name
    relative to the path, sorted by that name. What is there and not listed is counted in `errors`, by reason. Raises
    UserError where there is nothing to list.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [(root, root.name)]

    errors = errors or ReadErrors()
    if root.is_dir():
        files = _find_in_folder(root, path, kinds, archives, errors)
    else:
        files = _find_by_pattern(root, path, errors)
    return sorted(files, key=lambda pair: (pair[1], str(pair[0])))


def _find_by_pattern(pattern: Path, path: str, errors: ReadErrors) -> list[tuple[Path, str]]:
    files = []
    for match in sorted(glob.glob(str(pattern), recursive=True)):
        file = Path(match)
        if file.is_file():
            files.append((file, file.name))
        elif not (file.is_dir() and "**" in path):  # what is below a folder is matched by `**` itself
            errors.records += 1
            errors.leave_out("folder: a pattern with ** reads what is below" if file.is_dir() else "broken link", match)
    if not files:
        matched = f"{path} matches only folders; add /**/*" if errors.left_out else f"{path} does not exist"
        raise UserError(f"{matched} (seen from {Path.cwd()}); correct `path`")
    return files


def _find_in_folder(
    root: Path, path: str, kinds: set[str], archives: bool, errors: ReadErrors
) -> list[tuple[Path, str]]:
    files = []
    suffixes = set()
    for file, name in _walk_folder(root, errors):
        suffixes.add(file.suffix or name)
        has_kind = content_suffix(file) in kinds or file.suffix.lower() in kinds or (archives and is_archive(file))
        reason = explain_exclusion(name) or (None if has_kind else describe_unknown_kind(name))
        if reason is None:
            files.append((file, name))
        else:
            errors.records += 1
            errors.leave_out(reason, name)

    if not files:
        listed_kinds = kinds - FORMATS["code"] or kinds  # the list of all languages would hide the others
        raise UserError(
            f"{path} holds no file to read (it holds {', '.join(sorted(suffixes)[:10]) or 'nothing'}); "
            f"these kinds are read: {' '.join(sorted(listed_kinds))}"
            + (f"; left out are {describe_counts(errors.left_out)}" if errors.left_out else "")
        )
    return files


def _walk_folder(root: Path, errors: ReadErrors) -> Iterator[tuple[Path, str]]:
    """Yield every file below a folder, with its name relative to it.

    Links to folders are followed, and each folder is read once. What is no file, a link that leads nowhere and a folder
    that may not be read are counted in `errors`.
    """

    def count_unreadable(error: OSError) -> None:
        errors.records += 1
        errors.drop_record("folder that cannot be read", str(error.filename), error.strerror or "")

    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=count_unreadable):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            subfolders.clear()
            errors.records += 1
            errors.leave_out("link to a folder that is read already", folder)
            continue
        seen.add(identity)
        subfolders.sort()
        for name in files:
            file = Path(folder, name)
            relative_name = file.relative_to(root).as_posix()
            if file.is_file():
                yield file, relative_name
            else:
                errors.records += 1
                errors.leave_out("broken link" if file.is_symlink() else "not a file", relative_name)


def explain_exclusion(name: str) -> str | None:
    """Return why a file of this relative name is not the user's own data; None if it is.

    Hidden files, files that describe other files, installed packages, and code that is vendored, built or generated.
    """
    *folders, file = name.split("/")
    if any(part.startswith(".") for part in (*folders, file)):
        return "hidden"
    if file in DESCRIPTION_FILES:
        return "description of a data set"
    if INSTALLED_FOLDERS.intersection(folders):
        return "installed package"
    if detect_format(Path(name)) == "code":
        return explain_code_exclusion(name)
    return None


def describe_unknown_kind(name: str) -> str:
    """Return the reason for which a file that no reader reads is left out: its suffix, if that looks like one."""
    suffix = Path(name).suffix.lower()
    looks_like_suffix = suffix.isascii() and 1 < len(suffix) <= MAX_SUFFIX_CHARS and not suffix[1:].isdigit()
    return f"kind that is not read: {suffix if looks_like_suffix else 'no suffix'}"
