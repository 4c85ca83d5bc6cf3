"""Find the files of a code repository, cloned or on this disk, that people wrote in it, and their licence.

Left out, and counted: code that others wrote (vendored folders) or a program wrote (generated or minified files, lock
files, compiled protocols), hidden files, data, and code that is not text. Prose is never judged by its folder's name, a
generator's mark or its long lines.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from hf_llm.core.errors import UserError
from hf_llm.data.files.read_errors import ReadErrors

HEAD_BYTES = 32 << 10  # of a file, looked at for marks of a generator
HEAD_LINES = 20  # where a generator leaves its mark
SPDX_CHARS = 4096  # of a file, looked at for its SPDX line
# A file is minified if its longest line and its mean line are longer than this.
LONGEST_LINE_CHARS = 5_000
MEAN_LINE_CHARS = 300

VENDORED_OR_BUILT_FOLDERS = {
    "node_modules", "vendor", "vendors", "vendored", "_vendor", "third_party", "third-party", "thirdparty", "3rdparty",
    "external", "externals", "extern", "deps", "site-packages", "dist-packages", "venv", "env", "__pycache__", "dist",
    "build", "target", "bower_components", "jspm_packages", "Pods", "Carthage", "Godeps",
}  # fmt: skip
INSTALLED_FOLDERS = {  # those of them that nobody uses as a name for texts of their own
    "node_modules", "site-packages", "dist-packages", "__pycache__", "bower_components", "jspm_packages",
}  # fmt: skip
PROSE_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst"}
_LOCK_FILES = {
    "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lockb", "poetry.lock", "pdm.lock",
    "pipfile.lock", "uv.lock", "cargo.lock", "composer.lock", "gemfile.lock", "go.sum", "go.work.sum", "flake.lock",
    "mix.lock", "podfile.lock", "packages.lock.json", "gradle.lockfile", "pubspec.lock", "conan.lock",
}  # fmt: skip
_GENERATED_NAME = re.compile(
    r"(\.min\.|[-.]bundle\.|_pb2(_grpc)?\.pyi?$|\.pb\.(go|cc|h|c|swift)$|\.g\.dart$|\.designer\.cs$|\.generated\."
    r"|(^|[._-])generated\.\w+$|_generated\.\w+$|\.map$|\.snap$|zz_generated)",
    re.IGNORECASE,
)
# Suffixes whose files are data, pictures or programs, whatever is in them.
_DATA_SUFFIXES = {
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".xml", ".svg", ".lock", ".log", ".geojson",
    ".sqlite", ".db", ".pkl", ".npy", ".npz", ".h5", ".bin", ".dat", ".pt", ".onnx", ".safetensors", ".po", ".pot",
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico", ".bmp", ".tif", ".tiff", ".pdf", ".ps", ".eps", ".ttf", ".otf",
    ".woff", ".woff2", ".eot", ".mp3", ".mp4", ".ogg", ".wav", ".webm", ".mov", ".zip", ".gz", ".bz2", ".xz", ".zst",
    ".tar", ".tgz", ".7z", ".rar", ".jar", ".war", ".whl", ".egg", ".so", ".dll", ".dylib", ".exe", ".o", ".a", ".lib",
    ".obj", ".class", ".pyc", ".pyo", ".wasm", ".patch", ".diff", ".pem", ".crt", ".key",
}  # fmt: skip
_GENERATED_MARK = re.compile(
    r"@generated\b|\bdo not (?:edit|modify)\b|\b(?:auto-?|automatically |machine[- ])generated\b"
    r"|\bgenerated (?:by|from|with) (?:the |an? )?[\w.-]*"
    r"(?:compiler|generator|protoc|swig|cython|bison|flex|thrift|openapi)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\"|'''|\(\*|\{-|rem\b|dnl\b)", re.IGNORECASE)


def clone_repository(url: str, folder: Path) -> Path:
    """Clone a repository, without its history, to `folder`, and return that. A complete clone is not fetched again.

    Raises UserError if there is no git, no such repository or no network.
    """
    complete_mark = folder / ".git" / "hf_llm_complete"
    if complete_mark.exists():
        return folder
    if url.startswith("-"):
        raise UserError(f"{url} is not an address of a repository")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)

    command = ["git", "clone", "--quiet", "--depth=1", "--no-tags", "--single-branch", "--", url, str(folder)]
    # No prompt for a password, no hook, no filter of a large file store.
    variables = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    }
    result = _run_git(command, variables)
    if result.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        messages = result.stderr.strip().splitlines()
        reason = messages[-1] if messages else "git says nothing"
        raise UserError(f"{url} cannot be cloned: {reason}\n  Check the address and the network, or use a `path`.")
    complete_mark.touch()
    return folder


def head_commit(root: Path) -> str:
    """Return the commit that is checked out in a git folder; empty if it is not one."""
    if not (root / ".git").exists():
        return ""
    result = _run_git(["git", "-C", str(root), "rev-parse", "HEAD"])
    return "" if result.returncode else result.stdout.strip()


def list_repository_files(root: Path, errors: ReadErrors | None = None) -> list[tuple[Path, str]]:
    """List the files that people wrote in a repository, sorted by name, each with its name relative to `root`.

    In a git folder those that are tracked, elsewhere all. What is left out is counted in `errors`, by reason.
    """
    errors = errors or ReadErrors()
    is_git_folder = (root / ".git").exists()
    if is_git_folder:
        names = _list_git_names(root)
        for name in _list_git_names(root, "--others"):
            errors.records += 1
            errors.leave_out("not tracked by git", name)
    else:
        names = list(_walk_folder(root))

    files = []
    for name in sorted(names):
        reason = _exclusion_reason(root / name, name)
        if reason is None:
            files.append((root / name, name))
        else:
            errors.records += 1
            errors.leave_out(reason, name)
    return files


def _list_git_names(root: Path, *options: str) -> list[str]:
    """List the files that git tracks in a folder, or those that `options` of `git ls-files` select."""
    result = _run_git(["git", "-C", str(root), "ls-files", "-z", *options])
    if result.returncode:
        raise UserError(f"{root} is not a git folder that can be read: {result.stderr.strip()}")
    return [name for name in result.stdout.split("\0") if name]


def _walk_folder(root: Path) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        for name in files:
            yield (Path(folder) / name).relative_to(root).as_posix()


def _run_git(command: list[str], variables: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run git with these environment variables beside the process's own. Raises UserError if it is not installed."""
    try:
        return subprocess.run(
            command,
            env={**os.environ, **(variables or {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise UserError(
            "the program `git` is not installed; install it, or unpack the repository to a `path`"
        ) from None


def _exclusion_reason(path: Path, name: str) -> str | None:
    """Return why a file is left out, for its name (relative to the repository), kind or content; None if it is not."""
    *folders, file = name.split("/")
    suffix = path.suffix.lower()
    if any(part.startswith(".") for part in (*folders, file)):
        return "hidden"
    if path.is_symlink() or not path.is_file():
        return "link" if path.is_symlink() else "missing"
    if INSTALLED_FOLDERS.intersection(folders):
        return "installed package"
    if suffix in PROSE_SUFFIXES:
        return None

    reason = explain_code_exclusion(name)
    if reason is not None:
        return reason
    if suffix in _DATA_SUFFIXES:
        return "data"
    return explain_content_exclusion(path)


def explain_code_exclusion(name: str) -> str | None:
    """Return why a code file of this name, relative to its source, is left out: others or a program wrote it."""
    *folders, file = name.split("/")
    if VENDORED_OR_BUILT_FOLDERS.intersection(folders):
        return "vendored or built"
    if file.lower() in _LOCK_FILES or _GENERATED_NAME.search(file):
        return "generated"
    return None


def explain_content_exclusion(path: Path) -> str | None:
    """Return why a code file is left out for its content: `binary`, `generated` or `minified`; None if it is not.

    Notebooks are not judged: a program writes their outputs, people their cells.
    """
    if path.suffix.lower() == ".ipynb":
        return None
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        return "binary"
    return detect_machine_written(head.decode("utf-8", errors="replace"))


def detect_machine_written(text: str) -> str | None:
    """Return `generated` or `minified` if the start of a file says, or shows, that a program wrote it; else None."""
    lines = text[:HEAD_BYTES].splitlines()
    if any(_COMMENT.match(line) and _GENERATED_MARK.search(line) for line in lines[:HEAD_LINES]):
        return "generated"

    line_lengths = [len(line) for line in lines]
    longest = max(line_lengths, default=0)
    if longest > LONGEST_LINE_CHARS and sum(line_lengths) / len(lines) > MEAN_LINE_CHARS:
        return "minified"
    return None


# A licence and phrases that all stand in its text, the more specific before the more general.
_LICENSES = (
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("EPL-2.0", ("eclipse public license", "2.0")),
    ("CC0-1.0", ("cc0 1.0",)),
    ("CC-BY-SA-4.0", ("attribution-sharealike 4.0",)),
    ("CC-BY-4.0", ("attribution 4.0 international",)),
    ("Unlicense", ("this is free and unencumbered software",)),
    ("BSL-1.0", ("boost software license",)),
    ("PSF-2.0", ("python software foundation license",)),
    ("Zlib", ("in no event will the authors be held liable", "this notice may not be removed")),
    ("BSD-4-Clause", ("redistributions of source code must retain", "all advertising materials mentioning")),
    ("BSD-3-Clause", ("redistributions of source code must retain", "endorse or promote")),
    ("BSD-2-Clause", ("redistributions of source code must retain",)),
    ("MIT-0", ("permission is hereby granted, free of charge", "without restriction", "mit no attribution")),
    ("MIT", ("permission is hereby granted, free of charge", "without restriction")),
    ("0BSD", ("zero-clause bsd",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose", "provided that")),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any purpose", "provided that")),
    ("WTFPL", ("do what the fuck you want to",)),
)  # fmt: skip
_GNU = re.compile(r"gnu (affero |lesser |library )?general public license\W.{0,80}?version (\d(?:\.\d)?)")
_GNU_NAMES = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL", None: "GPL"}
_LICENSE_FILE = re.compile(r"(?:un)?licen[cs]e(?:[-._].*)?|copying(?:[-._].*)?", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*(\(?[A-Za-z0-9.+-]+(?:\s+(?:AND|OR|WITH)\s+[A-Za-z0-9.+-]+)*\)?)")
_DECLARED = {
    "pyproject.toml": re.compile(r'^license\s*=\s*(?:\{\s*text\s*=\s*)?"([^"\n]+)"', re.MULTILINE),
    "Cargo.toml": re.compile(r'^license\s*=\s*"([^"\n]+)"', re.MULTILINE),
    "package.json": re.compile(r'"license"\s*:\s*"([^"\n]+)"'),
    "setup.cfg": re.compile(r"^license\s*=\s*(\S.*)", re.MULTILINE),
}
_SPDX_NAMES = {name.lower(): name for name, _ in _LICENSES} | {
    "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0", "mit license": "MIT",
    "bsd 3-clause": "BSD-3-Clause",
    "gpl-3.0-only": "GPL-3.0", "gpl-3.0-or-later": "GPL-3.0", "gpl-2.0-only": "GPL-2.0", "gpl-2.0-or-later": "GPL-2.0",
    "gplv3": "GPL-3.0", "gplv2": "GPL-2.0",
}  # fmt: skip


@lru_cache(maxsize=4096)
def folder_license(folder: Path) -> str:
    """Return the SPDX identifier of the licence that the files of one folder state; `unknown` if none is recognised.

    Reads LICENSE, COPYING and their like, then pyproject.toml, Cargo.toml, package.json and setup.cfg.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return "unknown"

    for name in names:
        if not _LICENSE_FILE.fullmatch(name):
            continue
        license = recognize_license(_read_head(folder / name))
        if license:
            return license

    for name, pattern in _DECLARED.items():
        if name not in names:
            continue
        match = pattern.search(_read_head(folder / name))
        if match:
            declared = match[1].strip()
            return _SPDX_NAMES.get(declared.lower(), declared)
    return "unknown"


def nearest_license(path: Path, top: Path) -> str:
    """Return the licence stated nearest to a file, in its folder or above it up to `top`; `unknown` if there is none.

    The search also ends at the root of a git repository.
    """
    for folder in path.parents:
        license = folder_license(folder)
        if license != "unknown":
            return license
        if folder == top or (folder / ".git").exists():
            break
    return "unknown"


def license_root(path: str) -> Path:
    """Return the folder of a source at which the search for a file's licence ends.

    `path` is a folder, a file, or a glob pattern, of which it is the part before the first wildcard.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    if root.is_file():
        return root.parent
    parts = []
    for part in root.parts:
        if any(mark in part for mark in "*?["):
            break
        parts.append(part)
    return Path(*parts)


def is_license_file(name: str) -> bool:
    """Whether a file of this name states the licence of its folder (`folder_license`)."""
    return bool(_LICENSE_FILE.fullmatch(name)) or name in _DECLARED


def recognize_license(text: str) -> str | None:
    """Return the SPDX identifier of a licence's text, recognised by its phrases; None if it is not a known one."""
    plain = " ".join(text.lower().split())
    for name, phrases in _LICENSES:
        if all(phrase in plain for phrase in phrases):
            return name

    gnu = _GNU.search(plain)  # the first that is named: they all name one another later
    if gnu:
        version = gnu[2] if "." in gnu[2] else f"{gnu[2]}.0"
        return f"{_GNU_NAMES[gnu[1]]}-{version}"
    return find_spdx_identifier(text)


def find_spdx_identifier(text: str) -> str | None:
    """Return the licence a source file names for itself in an `SPDX-License-Identifier:` line near its start."""
    match = _SPDX.search(text[:SPDX_CHARS])
    return match[1].strip("()") if match else None


def _read_head(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(HEAD_BYTES)
