"""Read and write the `manifest.json` of an output folder: its inputs, its recipe and the digests of its files.

The manifest is written last and atomically (temporary file, fsync, rename): a folder that has one is finished.
"""

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

MANIFEST_FILE = "manifest.json"
# Not part of the result, or derived from it.
SKIPPED = ("checkpoint-*", "logs", "README.md", "LICENSE.md", "ledger.json")
BEGUN_FILE = "begun.json"  # settings and inputs of an unfinished folder; deleted once the manifest is written
_PACKAGES = ("hf-llm", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "trl", "datatrove")


def read_manifest(folder: Path) -> dict | None:
    """Read the manifest of a folder; None if there is none, which means that the folder is not complete."""
    try:
        return json.loads((Path(folder) / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_manifest(path: Path, **entries: Any) -> dict:
    """Write `path/manifest.json` with `entries`, the files' sizes and digests, the library versions and the time."""
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
    """Write JSON atomically: a reader sees the old file or the new one, even after a power failure."""
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


def file_digests(folder: Path, skip: tuple[str, ...] = SKIPPED) -> dict[str, list]:
    """Return `{relative path: [bytes, xxh3_128 as hex]}` for every file below `folder`.

    Not included are the manifest, and what matches a pattern of `skip` at the top of the folder: by default checkpoints
    and logs, the model card with its LICENSE.md (made from the manifest) and the ledger of a corpus (it holds
    durations, which differ).
    """
    folder = Path(folder)
    digests = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        top = Path(relative.parts[0])
        is_skipped = path.name in (MANIFEST_FILE, BEGUN_FILE) or any(top.match(pattern) for pattern in skip)
        if path.is_file() and not is_skipped:
            digests[relative.as_posix()] = [path.stat().st_size, file_digest(path)]
    return digests


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
