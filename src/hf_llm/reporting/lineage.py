"""Read from the folders of a run what a model was made from, its size and its training history."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.stages import OPTIONAL

# Folder -> the recipe key that lists what it was trained on.
DATA_KEYS = {"corpus": "corpus.sources", **{folder: f"{folder}.data" for folder in OPTIONAL}}


def read_lineage(folder: Path) -> dict[str, dict]:
    """Read the manifests of `folder` and of all folders of its run that it was made from, by folder name, oldest first.

    An input counts only where its digest is still the one that the manifest names: it may have been rebuilt since.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return {}

    manifests: dict[str, dict] = {}
    for name, digest in manifest["inputs"].items():
        neighbour = folder.parent / name
        neighbour_manifest = read_manifest(neighbour) or {}
        if neighbour_manifest.get("digest") != digest:
            continue
        for ancestor, ancestor_manifest in read_lineage(neighbour).items():
            manifests.setdefault(ancestor, ancestor_manifest)
    manifests[folder.name] = manifest
    return manifests


def list_sources(manifests: dict[str, dict]) -> list[dict[str, str]]:
    """List the data that a model was trained on, from `read_lineage`'s manifests.

    Each source has `used_for`, `name`, `hub` (an id or empty) and `license`.
    """
    sources = []
    for folder, manifest in manifests.items():
        data_key = DATA_KEYS.get(manifest["folder"], "")
        for source in manifest["settings"].get(data_key) or []:
            sources.append(
                {
                    "used_for": "pretraining" if folder == "corpus" else folder,
                    "name": _source_name(source),
                    "hub": str(source.get("hub") or ""),
                    "license": str(source.get("license") or "unknown"),
                }
            )
    return sources


def _source_name(source: dict[str, Any]) -> str:
    """Return a source's name for the page. Of a local path only the last part is shown: the others are private."""
    if source.get("hub"):
        parts = [source.get(key) for key in ("hub", "subset", "split")]
        return " ".join(str(part) for part in parts if part)
    location = source.get("path") or source.get("git")
    if location:
        return Path(str(location)).name or str(location)
    if source.get("crawl"):
        return "Common Crawl"

    installed = source.get("installed")
    names = installed if isinstance(installed, list) else [installed]
    list_of_names = ", ".join(map(str, names)).replace("_", " ")
    return f"documentation installed with Python ({list_of_names})"


def count_parameters(folder: Path) -> int | None:
    """Count the parameters in a model folder's safetensors files, shared ones once; None where there are none."""
    total = 0
    for path in sorted(folder.glob("model*.safetensors")):
        # The file begins with the length of its header, a little-endian 64-bit integer, and the header, JSON
        # (https://huggingface.co/docs/safetensors).
        with open(path, "rb") as file:
            (header_length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_length))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total or None


def read_log_history(folder: Path) -> list[dict[str, Any]]:
    """Read Trainer's log of a training stage; empty where there is none."""
    path = folder / "trainer_state.json"
    if not path.exists():
        return []
    return json.loads(path.read_text(encoding="utf-8"))["log_history"]


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Read the completions sampled while a stage trained (`hf_llm.monitoring.callbacks.samples`)."""
    path = folder / "samples.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_test_scores(folder: Path) -> dict[str, Any] | None:
    """Read this model's scores from the run's evaluation; None where it was not evaluated, or was rebuilt since."""
    evaluation = read_manifest(folder.parent / "evaluation")
    manifest = read_manifest(folder)
    if not evaluation or not manifest or evaluation["inputs"].get(folder.name) != manifest["digest"]:
        return None
    return evaluation["facts"].get("results", {}).get(folder.name)


def finite_values(log: list[dict[str, Any]], key: str) -> list[float]:
    """Return the finite values of `key` in a training log."""
    values = [entry.get(key) for entry in log]
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
