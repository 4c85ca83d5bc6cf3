"""Checkpoint folders that are whole or set aside: sealed when finished, verified before use, rotated without a gap.

`checkpoint-N` counts only while it holds a `manifest.json`, which is written last: sizes and digests of every file, and
what the training was. One without it was cut off while being written; one that differs from it has been damaged since.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import FILE, digest_of, file_digest, file_digests, read_manifest, versions, write_json

INCOMPLETE, CORRUPT, UNDONE = "incomplete", "corrupt", "undone"  # what follows the name of one set aside


def checkpoints(folder: Path) -> list[Path]:
    """Every `checkpoint-N` in `folder`, whole or not, by step."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Every sealed `checkpoint-N` in `folder`, by step. Says nothing about damage since."""
    return [path for path in checkpoints(folder) if (path / FILE).exists()]


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint's name tells."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoint_bytes(weights: int, trained: int, states: int, engine: str = "") -> int:
    """Bytes of one checkpoint: `weights` (of adapters only theirs) and the optimizer's `states`, of all processes.

    The engines "fsdp" and "deepspeed" write the weights once more, the latter a float32 copy of the `trained` ones too.
    """
    return weights * (2 if engine else 1) + states + (4 * trained if engine == "deepspeed" else 0)


def seal(checkpoint: Path, **entries: Any) -> None:
    """Bring every file of `checkpoint` to the disk, then write its manifest with `entries` and the files' digests."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    manifest = {"step": step_of(checkpoint), **entries, "versions": versions(), "files": file_digests(checkpoint)}
    write_json(checkpoint / FILE, {**manifest, "digest": digest_of(manifest)})


def size_of(checkpoint: Path) -> int:
    """Bytes of all files of a sealed checkpoint."""
    return sum(size for size, _ in read_manifest(checkpoint)["files"].values())


def fault(checkpoint: Path) -> tuple[str, str] | None:
    """Read every byte: None where the checkpoint is as it was sealed, else (`INCOMPLETE` or `CORRUPT`, the reason)."""
    try:
        manifest = read_manifest(checkpoint)
    except ValueError:  # no JSON, or no UTF-8
        return CORRUPT, f"{FILE} is no readable JSON"
    if manifest is None:
        return INCOMPLETE, f"it was cut off while being written (it has no {FILE})"
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != digest_of(manifest):
        return CORRUPT, f"{FILE} has been changed since it was written"
    for name, (size, digest) in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return CORRUPT, f"{name} is missing"
        if path.stat().st_size != size:
            return CORRUPT, f"{name} has {path.stat().st_size:,} bytes and had {size:,} when it was saved"
        if file_digest(path) != digest:
            return CORRUPT, f"{name} differs from what was saved (its digest does not fit)"
    return None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, the bad ones after it set aside; None where there has never been one.

    Raises UserError with every reason, and moves nothing, where checkpoints were finished and none of them is good.
    """
    bad = []
    for checkpoint in reversed(checkpoints(folder)):
        found = fault(checkpoint)
        if found is None:
            for worse, (kind, reason) in bad:
                set_aside(worse, kind, reason)
            return checkpoint
        bad.append((checkpoint, found))
    if len(bad) == 1 and bad[0][1][0] == INCOMPLETE:  # the first save of all: there was nothing before it to lose
        set_aside(bad[0][0], *bad[0][1])
        return None
    if bad:
        reasons = [f"  {checkpoint.name}: {reason}" for checkpoint, (_, reason) in bad]
        raise UserError(
            "\n".join([f"none of the checkpoints in {folder} can be gone on from:", *reasons])
            + "\n  Put a good copy back in place, or move them away to train from the beginning."
        )
    return None


def set_aside(checkpoint: Path, kind: str, reason: str) -> None:
    """Rename a checkpoint to `<name>.<kind>`, so that nothing resumes from it, and say why."""
    aside = checkpoint.with_name(f"{checkpoint.name}.{kind}")
    if aside.exists():  # of an earlier attempt at the same step
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    print_main(f"{checkpoint.name} is set aside as {aside.name}: {reason}")


def rotate(folder: Path, keep: int, best: Path | None = None) -> None:
    """Delete all but the newest `keep` sealed checkpoints and `best`; of unfinished ones, all before the newest sealed.

    The seal goes first: a kill halfway leaves a folder that is known to be incomplete.
    """
    sealed = complete_checkpoints(folder)
    if not sealed:
        return
    kept = {path.resolve() for path in [*sealed[-max(2, keep) :], *([best] if best else [])]}
    for checkpoint in checkpoints(folder):
        if checkpoint.resolve() not in kept and step_of(checkpoint) < step_of(sealed[-1]):
            delete(checkpoint)
    for aside in Path(folder).glob(f"checkpoint-*.{INCOMPLETE}"):
        delete(aside)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint, its seal first. What cannot be deleted is reported and left."""
    try:
        (checkpoint / FILE).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    except OSError as error:
        print_main(f"{checkpoint} could not be deleted: {error}")


def check_fingerprint(checkpoint: Path, fingerprint: dict[str, Any]) -> None:
    """Raise UserError, with old and new values, where `checkpoint` belongs to a training with another fingerprint."""
    old, new = read_manifest(checkpoint)["fingerprint"], as_json(fingerprint)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        lines = [f"  {key}: was {old.get(key, 'not set')!r}, is {new.get(key, 'not set')!r}" for key in changed]
        raise UserError(
            "\n".join([f"{checkpoint} belongs to another training:", *lines])
            + "\n  Take the change back, or train under another name, or move the checkpoints away to start anew."
        )


def as_json(value: Any) -> Any:
    """A plain value as it will be when it has been written to JSON and read again."""
    return json.loads(json.dumps(value, default=str))
