"""Read and write the `manifest.json` of an output folder: its inputs, its recipe and the digests of its files.

The manifest is written last and atomically (temporary file, fsync, rename): a folder that has one is finished.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from hf_llm.core.secrets import hide_secrets

MANIFEST_FILE = "manifest.json"
BEGUN_FILE = "begun.json"  # settings and inputs of an unfinished folder; deleted once the manifest is written
STEP_FILE = "step.json"  # what was chosen for the steps of a training by a measurement (training/step_choice.py)
# Not part of the result, or derived from it.
SKIPPED = ("checkpoint-*", "logs", "README.md", "LICENSE.md", "ledger.json", "lock.json*", STEP_FILE, "measured")
_PACKAGES = ("hf-llm", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "trl", "datatrove")


def read_manifest(folder: Path) -> dict | None:
    """Read the manifest of a folder; None if there is none, which means that the folder is not complete."""
    try:
        return json.loads((Path(folder) / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_manifest(path: Path, **entries: Any) -> dict:
    """Write `path/manifest.json` with `entries`, the files' sizes and digests, the library versions and the time.

    The files get the permissions that new files have here (`apply_umask`).
    """
    apply_umask(path)
    files = file_digests(path)
    manifest = {
        **entries,
        "versions": package_versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": files,
        "digest": digest_of(files),
    }
    write_json(Path(path) / MANIFEST_FILE, manifest)
    return manifest


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result depends on."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, even after a power failure.

    A secret that came from a `${NAME}` of the recipe is written as `${NAME}`.
    """
    value = hide_secrets(value)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

    # The renaming itself is on the disk only when the folder is.
    if os.name == "nt":
        return  # Windows cannot open a folder
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def apply_umask(folder: Path) -> None:
    """Give every file below `folder` that belongs to this user the permissions of a new file.

    safetensors writes files that only their owner may read, whatever the umask says.
    """
    if os.name == "nt":
        return  # Windows knows no such permissions

    mode = 0o666 & ~read_umask()
    for path in Path(folder).rglob("*"):
        is_own_file = path.is_file() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
        if is_own_file and path.stat().st_mode & 0o666 != mode:
            path.chmod(path.stat().st_mode & 0o111 | mode)


def read_umask() -> int:
    """Return the permissions that this process takes from new files."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        umask = os.umask(0o077)  # it can only be read by setting it
        os.umask(umask)
        return umask
    line = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    assert line, status
    return int(line[1], 8)


def file_digests(folder: Path, skip: tuple[str, ...] = SKIPPED) -> dict[str, list]:
    """Return `{relative path: [bytes, xxh3_128 as hex]}` for every file below `folder`.

    Not included are the manifest, and what matches a pattern of `skip` at the top of the folder: by default checkpoints
    and logs, the model card with its LICENSE.md (made from the manifest), the ledger of a corpus (it holds durations,
    which differ) and the single measurements of an evaluation (its results hold those that count).
    """
    return {name: [path.stat().st_size, file_digest(path)] for path, name in _list_files(Path(folder), skip)}


def _list_files(folder: Path, skip: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder that belong to its result, sorted, each with its relative name."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        top = Path(relative.parts[0])
        is_skipped = path.name in (MANIFEST_FILE, BEGUN_FILE) or any(top.match(pattern) for pattern in skip)
        if path.is_file() and not is_skipped:
            yield path, relative.as_posix()


def current_digest(folder: Path) -> str | None:
    """Return the digest of what a finished folder holds now; None for a folder without a manifest.

    That is the manifest's own, unless a file has been changed, added or removed since. Only files of another size, or
    younger than the manifest, are read for that.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if _is_unchanged(folder, manifest):
        return manifest["digest"]
    return digest_of(file_digests(folder))


def _is_unchanged(folder: Path, manifest: dict) -> bool:
    """Whether the files of a folder are those of its manifest; model cards, which are made from it, do not count."""
    finished = (folder / MANIFEST_FILE).stat().st_mtime_ns
    names = set()
    is_younger = False
    for path, name in _list_files(folder, SKIPPED):
        if path.name == "README.md" or any(part.startswith(".") for part in Path(name).parts) or name.endswith(".tmp"):
            continue
        names.add(name)
        status = path.stat()
        size, digest = manifest["files"].get(name, (None, None))
        if status.st_size != size:
            return False
        if status.st_mtime_ns > finished:
            is_younger = True
            if file_digest(path) != digest:
                return False

    recorded = {name for name in manifest["files"] if Path(name).name != "README.md"}
    if any(not (folder / name).exists() for name in recorded - names):
        return False
    if is_younger and os.access(folder / MANIFEST_FILE, os.W_OK):
        os.utime(folder / MANIFEST_FILE)  # a copy, whose files need not be read once more
    return True


def file_digest(path: Path) -> str:
    """Return xxh3_128 of a file's bytes, as hex (https://xxhash.com: detects damage, does not resist an attacker)."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def digest_of(value: Any) -> str:
    """Return xxh3_128 of a plain value (of its JSON with sorted keys), as hex."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())
