"""A code repository, cloned or on this disk, turned into the files people wrote in it, and their licence.

Left out: what others wrote (vendored folders), what a program made (generated, minified, lock files, compiled
protocols), data, and what is no text.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path

from hf_llm.core.errors import UserError

HEAD_BYTES = 32 << 10  # of a file, looked at for marks of a generator
LONG_LINE = 5_000  # characters; a line as long is no program's, in a file of mostly long lines
MEAN_LINE = 300

FOREIGN_FOLDERS = {
    "node_modules", "vendor", "vendors", "vendored", "_vendor", "third_party", "third-party", "thirdparty", "3rdparty",
    "external", "externals", "extern", "deps", "site-packages", "dist-packages", "venv", "env", "__pycache__", "dist",
    "build", "target", "bower_components", "jspm_packages", "Pods", "Carthage", "Godeps",
}  # fmt: skip
INSTALLED_FOLDERS = {  # those of them that no one gives to texts of their own
    "node_modules", "site-packages", "dist-packages", "__pycache__", "bower_components", "jspm_packages",
}  # fmt: skip
_LOCKS = {
    "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lockb", "poetry.lock", "pdm.lock",
    "pipfile.lock", "uv.lock", "cargo.lock", "composer.lock", "gemfile.lock", "go.sum", "go.work.sum", "flake.lock",
    "mix.lock", "podfile.lock", "packages.lock.json", "gradle.lockfile", "pubspec.lock", "conan.lock",
}  # fmt: skip
_MADE = re.compile(
    r"(\.min\.|[-.]bundle\.|_pb2(_grpc)?\.pyi?$|\.pb\.(go|cc|h|c|swift)$|\.g\.dart$|\.designer\.cs$|\.generated\."
    r"|(^|[._-])generated\.\w+$|_generated\.\w+$|\.map$|\.snap$|zz_generated)",
    re.IGNORECASE,
)
# Suffixes whose files are data, pictures or programs, whatever is in them.
_DATA = {
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".xml", ".svg", ".lock", ".log", ".geojson",
    ".sqlite", ".db", ".pkl", ".npy", ".npz", ".h5", ".bin", ".dat", ".pt", ".onnx", ".safetensors", ".po", ".pot",
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".ico", ".bmp", ".tif", ".tiff", ".pdf", ".ps", ".eps", ".ttf", ".otf",
    ".woff", ".woff2", ".eot", ".mp3", ".mp4", ".ogg", ".wav", ".webm", ".mov", ".zip", ".gz", ".bz2", ".xz", ".zst",
    ".tar", ".tgz", ".7z", ".rar", ".jar", ".war", ".whl", ".egg", ".so", ".dll", ".dylib", ".exe", ".o", ".a", ".lib",
    ".obj", ".class", ".pyc", ".pyo", ".wasm", ".patch", ".diff", ".pem", ".crt", ".key",
}  # fmt: skip
_GENERATED = re.compile(
    r"@generated\b|\bdo not (?:edit|modify)\b|\b(?:auto-?|automatically |machine[- ])generated\b"
    r"|\bgenerated (?:by|from|with) (?:the |an? )?[\w.-]*"
    r"(?:compiler|generator|protoc|swig|cython|bison|flex|thrift|openapi)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\"|'''|\(\*|\{-|rem\b|dnl\b)", re.IGNORECASE)


def clone(url: str, folder: Path) -> Path:
    """A shallow copy of a repository in `folder`, which is returned. One that is there whole is not fetched again.

    Raises UserError where there is no git, no such repository or no network.
    """
    done = folder / ".git" / "hf_llm_complete"
    if done.exists():
        return folder
    if url.startswith("-"):
        raise UserError(f"{url} is no address of a repository")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "clone", "--quiet", "--depth=1", "--no-tags", "--single-branch", "--", url, str(folder)]
    # No prompt for a password, no hook, no filter of a large file store.
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
    ended = _git(command, quiet)
    if ended.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (ended.stderr.strip().splitlines() or ["git says nothing"])[-1]
        raise UserError(f"{url} cannot be cloned: {reason}\n  Check the address and the network, or use a `path`.")
    done.touch()
    return folder


def revision(root: Path) -> str:
    """The commit a git folder stands at; empty where it is none."""
    ended = _git(["git", "-C", str(root), "rev-parse", "HEAD"]) if (root / ".git").exists() else None
    return ended.stdout.strip() if ended and not ended.returncode else ""


def repository_files(root: Path, left_out: Counter | None = None) -> list[tuple[Path, str]]:
    """The files of a repository that people wrote there, sorted by name, each with its name relative to `root`.

    In a git folder those that git knows of, elsewhere all. `left_out` is given the number left out for each reason.
    """
    names = _tracked(root) if (root / ".git").exists() else _walked(root)
    found = []
    for name in sorted(names):
        path = root / name
        reason = _foreign(name) or (None if path.is_file() and not path.is_symlink() else "link") or _made(path)
        if reason is None:
            found.append((path, name))
        elif left_out is not None:
            left_out[reason] += 1
    return found


def _tracked(root: Path) -> list[str]:
    ended = _git(["git", "-C", str(root), "ls-files", "-z"])
    if ended.returncode:
        raise UserError(f"{root} is no git folder that can be read: {ended.stderr.strip()}")
    return [name for name in ended.stdout.split("\0") if name]


def _walked(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in FOREIGN_FOLDERS]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
    return found


def _git(command: list[str], variables: dict[str, str] | None = None) -> subprocess.CompletedProcess:
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


def _foreign(name: str) -> str | None:
    """Why a file is left out for its name alone; None where it is not."""
    *folders, file = name.split("/")
    if FOREIGN_FOLDERS.intersection(folders):
        return "vendored or built"
    if any(part.startswith(".") for part in (*folders, file)):
        return "hidden"
    if file.lower() in _LOCKS or _MADE.search(file):
        return "generated"
    return "data" if Path(file).suffix.lower() in _DATA else None


def _made(path: Path) -> str | None:
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if b"\0" in head:
        return "binary"
    return machine_made(head.decode("utf-8", errors="replace"))


def machine_made(text: str) -> str | None:
    """`generated` or `minified` where the start of a file says, or shows, that a program wrote it; else None."""
    lines = text[:HEAD_BYTES].splitlines()
    if any(_COMMENT.match(line) and _GENERATED.search(line) for line in lines[:20]):
        return "generated"
    longest = max(map(len, lines), default=0)
    if longest > LONG_LINE and sum(map(len, lines)) / len(lines) > MEAN_LINE:
        return "minified"
    return None


# A licence and phrases that all stand in its text, the more special before the more general.
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
def license_of(folder: Path) -> str:
    """The SPDX identifier of the licence that the files of one folder state; `unknown` where none is recognised.

    Read are LICENSE, COPYING and their like, then pyproject.toml, Cargo.toml, package.json and setup.cfg.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return "unknown"
    for name in names:
        if _LICENSE_FILE.fullmatch(name) and (found := license_in(_start(folder / name))):
            return found
    for name, pattern in _DECLARED.items():
        if name in names and (match := pattern.search(_start(folder / name))):
            return _SPDX_NAMES.get(match[1].strip().lower(), match[1].strip())
    return "unknown"


def nearest_license(path: Path, top: Path) -> str:
    """The licence stated nearest to a file, in its folder or one above it up to `top`; `unknown` where none is."""
    for folder in path.parents:
        if (found := license_of(folder)) != "unknown":
            return found
        if folder == top or (folder / ".git").exists():
            break
    return "unknown"


def license_in(text: str) -> str | None:
    """The SPDX identifier of a licence's text by phrases that stand in it; None where no known one is."""
    plain = " ".join(text.lower().split())
    for name, phrases in _LICENSES:
        if all(phrase in plain for phrase in phrases):
            return name
    if gnu := _GNU.search(plain):  # the first that is named: they all name one another later
        return f"{_GNU_NAMES[gnu[1]]}-{gnu[2] if '.' in gnu[2] else gnu[2] + '.0'}"
    return spdx_line(text)


def spdx_line(text: str) -> str | None:
    """The licence a source file names for itself in an `SPDX-License-Identifier:` line near its start."""
    match = _SPDX.search(text[:4096])
    return match[1].strip("()") if match else None


def _start(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(HEAD_BYTES)
