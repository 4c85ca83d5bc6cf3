"""Verify checkpoint folders before they are used, quarantine bad ones, and delete old ones.

A `checkpoint-N` is valid only with its `manifest.json`, which is written last: sizes and digests of every file, and the
identity of the training. A checkpoint without a manifest was cut off while being written; one that differs from its
manifest has been damaged since.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import (
    MANIFEST_FILE,
    apply_umask,
    digest_of,
    file_digest,
    file_digests,
    package_versions,
    read_manifest,
    write_json,
)
from hf_llm.pipeline.setting_kinds import list_changes

# Quarantined checkpoints are renamed: one of these is appended to the name.
INCOMPLETE = "incomplete"
CORRUPT = "corrupt"
UNDONE = "undone"

MIN_CHECKPOINTS_KEPT = 2

# The files that hold a part of the training's state, any of them, by engine. `**` also finds the shards of processes.
WEIGHTS = [
    "model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.safetensors",
    "adapter_model.bin",
]  # fmt: skip
NEEDED_BY_ENGINE = {
    "torch": {"weights of the model": WEIGHTS, "optimizer.pt": ["optimizer.pt"]},
    "FSDP": {
        "weights of the model": ["pytorch_model_fsdp*/**/*", "pytorch_model_fsdp*.bin", *WEIGHTS],
        "states of the optimizer": ["optimizer_*/**/*", "optimizer.bin", "optimizer_*.bin", "optimizer.pt"],
    },
    "ZeRO": {
        "weights of the model": ["global_step*/*model_states.pt"],
        "states of the optimizer": ["global_step*/*optim_states.pt"],
    },
    "DCP": {
        "weights of the model": [*WEIGHTS, "model/**/*", "*.distcp"],
        "states of the optimizer": ["optimizer/**/*"],
    },
}


def all_checkpoints(folder: Path) -> list[Path]:
    """Return every `checkpoint-N` in `folder`, complete or not, by step."""
    paths = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(paths, key=checkpoint_step)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return every `checkpoint-N` in `folder` that has a manifest, by step. It may have been damaged since."""
    return [path for path in all_checkpoints(folder) if (path / MANIFEST_FILE).exists()]


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def estimate_checkpoint_bytes(weights: int, trained: int, states: int, engine: str = "") -> int:
    """Estimate the bytes of one checkpoint, the files of all processes together.

    `weights` are the bytes of the weights (with adapters, of these alone), `states` those of the optimizer's states,
    and `trained` is the number of trained parameters. The engines "fsdp" and "deepspeed" write the weights a second
    time; "deepspeed" writes a float32 copy of the trained ones as well.
    """
    total = weights + states
    if engine:
        total += weights
    if engine == "deepspeed":
        total += 4 * trained
    return total


def write_checkpoint_manifest(checkpoint: Path, **entries: Any) -> None:
    """Flush every file of `checkpoint` to the disk, then write its manifest: `entries` and the files' digests.

    The files get the permissions of new files (`apply_umask`). Raises UserError, and writes none, where a file that a
    resume needs is not there.
    """
    missing = missing_parts(checkpoint, entries)
    if missing:
        raise UserError(
            f"{checkpoint} is not complete: it has no {', no '.join(missing)}. Was something else writing to this "
            "folder, or deleting from it? Those before it are unchanged, and the same command resumes from them"
        )

    apply_umask(checkpoint)
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    manifest = {
        "step": checkpoint_step(checkpoint),
        **entries,
        "versions": package_versions(),
        "files": file_digests(checkpoint),
    }
    write_json(checkpoint / MANIFEST_FILE, {**manifest, "digest": digest_of(manifest)})


def missing_parts(checkpoint: Path, entries: dict[str, Any]) -> list[str]:
    """List what a resume needs and a checkpoint does not have, by the `engine` and `processes` of its manifest.

    Empty for a checkpoint of which the engine is not known, which is not resumed from.
    """
    engine = entries.get("engine")
    if engine is None:
        return []
    processes = entries.get("processes", 1)

    needed = {"trainer_state.json": ["trainer_state.json"]}
    if not engine.startswith("ZeRO"):  # DeepSpeed keeps its own schedule beside the optimizer
        needed["scheduler.pt (the learning-rate schedule)"] = ["scheduler.pt"]
    if processes == 1:
        needed["rng_state.pth (the random states)"] = ["rng_state.pth"]
    for rank in range(processes) if processes > 1 else ():
        needed[f"rng_state_{rank}.pth (the random states of process {rank})"] = [f"rng_state_{rank}.pth"]
    needed |= NEEDED_BY_ENGINE["ZeRO" if engine.startswith("ZeRO") else engine]
    if engine == "ZeRO-0":  # without sharding DeepSpeed keeps the optimizer's states beside the weights
        del needed["states of the optimizer"]

    missing = []
    for part, patterns in needed.items():
        files = [path for pattern in patterns for path in checkpoint.glob(pattern)]
        if not any(path.is_file() and path.stat().st_size for path in files):
            missing.append(part)
    return missing + _missing_shards(checkpoint)


def _missing_shards(checkpoint: Path) -> list[str]:
    """List the files of weights that a checkpoint's index names and that are not there."""
    names = set()
    for index in checkpoint.glob("*.index.json"):
        try:
            names.update(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return [f"readable {index.name}"]
    return sorted(name for name in names if not (checkpoint / name).is_file())


def recorded_bytes(checkpoint: Path) -> int:
    """Return the bytes of all files in a checkpoint's manifest."""
    return sum(size for size, _ in read_manifest(checkpoint)["files"].values())


def verify_checkpoint(checkpoint: Path) -> tuple[str, str] | None:
    """Read every byte of a checkpoint and compare it with its manifest.

    Returns None for a valid checkpoint, else `INCOMPLETE` or `CORRUPT` and the reason.
    """
    try:
        manifest = read_manifest(checkpoint)
    except ValueError:  # not JSON, or not UTF-8
        return CORRUPT, f"cannot parse {MANIFEST_FILE} as JSON"
    if manifest is None:
        return INCOMPLETE, f"it was cut off while being written (it has no {MANIFEST_FILE})"
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != digest_of(manifest):
        return CORRUPT, f"{MANIFEST_FILE} has been changed since it was written"

    for name, (recorded_size, recorded_digest) in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return CORRUPT, f"{name} is missing"
        size = path.stat().st_size
        if size != recorded_size:
            return CORRUPT, f"{name} has {size:,} bytes and had {recorded_size:,} when it was saved"
        if file_digest(path) != recorded_digest:
            return CORRUPT, f"{name} differs from what was saved (its digest does not match)"

    missing = missing_parts(checkpoint, manifest)
    if missing:
        return CORRUPT, f"it was completed without {', '.join(missing)}"
    return None


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that verifies, and quarantine the bad ones after it.

    Returns None where there has never been a complete one. Raises UserError with every reason, and moves nothing, where
    checkpoints were completed and none of them is valid.
    """
    bad_checkpoints = []  # newest first: checkpoint, kind, reason
    for checkpoint in reversed(all_checkpoints(folder)):
        verification_error = verify_checkpoint(checkpoint)
        if verification_error is None:
            for bad_checkpoint, kind, reason in bad_checkpoints:
                quarantine(bad_checkpoint, kind, reason)
            return checkpoint
        bad_checkpoints.append((checkpoint, *verification_error))

    if not bad_checkpoints:
        return None

    first_checkpoint, first_kind, first_reason = bad_checkpoints[0]
    if len(bad_checkpoints) == 1 and first_kind == INCOMPLETE:
        # The very first save was cut off: nothing was saved before it that could be lost.
        quarantine(first_checkpoint, first_kind, first_reason)
        return None

    reasons = [f"  {checkpoint.name}: {reason}" for checkpoint, _, reason in bad_checkpoints]
    raise UserError(
        "\n".join([f"none of the checkpoints in {folder} can be resumed from:", *reasons])
        + "\n  Put a good copy back in place, or move them away to train from the beginning."
    )


def quarantine(checkpoint: Path, kind: str, reason: str) -> None:
    """Rename a checkpoint to `<name>.<kind>`, so that nothing resumes from it, and print why."""
    new_path = checkpoint.with_name(f"{checkpoint.name}.{kind}")
    if new_path.exists():  # from an earlier attempt at the same step
        shutil.rmtree(new_path)
    checkpoint.rename(new_path)
    print_main(f"{checkpoint.name} is quarantined as {new_path.name}: {reason}")


def delete_old_checkpoints(
    folder: Path, keep: int, best: Path | None = None, pinned: Callable[[int], bool] | None = None
) -> None:
    """Delete all but the newest `keep` complete checkpoints (at least two), `best`, and those at steps that `pinned`.

    Incomplete checkpoints are deleted too, if they are older than the newest complete one or quarantined.
    """
    complete = complete_checkpoints(folder)
    if not complete:
        return

    kept = complete[-max(MIN_CHECKPOINTS_KEPT, keep) :]
    if best:
        kept.append(best)
    if pinned:
        kept += [path for path in complete if pinned(checkpoint_step(path))]
    kept_paths = {path.resolve() for path in kept}

    newest_step = checkpoint_step(complete[-1])
    for checkpoint in all_checkpoints(folder):
        if checkpoint.resolve() not in kept_paths and checkpoint_step(checkpoint) < newest_step:
            delete_checkpoint(checkpoint)
    for quarantined in Path(folder).glob(f"checkpoint-*.{INCOMPLETE}"):
        delete_checkpoint(quarantined)


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint; what cannot be deleted is printed and stays.

    The manifest is deleted first, so that a folder left behind by a kill is recognised as incomplete.
    """
    try:
        (checkpoint / MANIFEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    except OSError as error:
        print_main(f"{checkpoint} could not be deleted: {error}")


def check_fingerprint(checkpoint: Path, fingerprint: dict[str, Any], former_settings: Sequence[str] = ()) -> None:
    """Raise UserError, with old and new values, where `checkpoint` belongs to a training with another fingerprint.

    Of the settings, under "settings" and by key, only those count that change the arithmetic of a step. A checkpoint of
    an older version has a digest of them instead, which has to be one of `former_settings`.
    """
    old = read_manifest(checkpoint)["fingerprint"]
    new = convert_to_json(fingerprint)

    changes = []
    for key in {**old, **new}:
        before = old.get(key)
        after = new.get(key)
        if key == "settings" and isinstance(after, dict):
            changes += _list_setting_changes(before, after, former_settings)
        elif before != after:
            changes.append(f"{key}: was {old.get(key, 'not set')!r}, is {new.get(key, 'not set')!r}")

    if changes:
        raise UserError(
            "\n".join([f"{checkpoint} belongs to another training:", *(f"  {change}" for change in changes)])
            + "\n  Undo the change, or train under another name, or move the checkpoints away to start from scratch."
        )


def _list_setting_changes(old: Any, new: dict[str, Any], former_settings: Sequence[str]) -> list[str]:
    if isinstance(old, dict):
        return [change.describe() for change in list_changes(old, new) if change.kind == "fixed"]
    if old == digest_of(new) or old in former_settings:
        return []
    return ["settings: are others than those it was saved with"]


def convert_to_json(value: Any) -> Any:
    """Return a plain value as it will be after it has been written to JSON and read again."""
    return json.loads(json.dumps(value, default=str))
