"""What the folders of a run say about a model: what it was made from, its size, its training history."""

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.stages import OPTIONAL

# folder -> the recipe key that lists what it was trained on
DATA = {"corpus": "corpus.sources", **{folder: f"{folder}.data" for folder in OPTIONAL}}


def lineage(folder: Path) -> dict[str, dict]:
    """The manifests of `folder` and of the folders beside it that it was made from, by folder name, oldest first.

    A neighbour counts only where its digest is the one the manifest names: it may have been made anew since.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return {}
    found = {}
    for name, digest in manifest["inputs"].items():
        before = folder.parent / name
        if (read_manifest(before) or {}).get("digest") == digest:
            found |= {key: value for key, value in lineage(before).items() if key not in found}
    return {**found, folder.name: manifest}


def sources(manifests: dict[str, dict]) -> list[dict[str, str]]:
    """What was learnt from, by `lineage`'s manifests: `used_for`, `name`, `hub` (an id or empty), `license`.

    A local path is reduced to its last part: where someone keeps their texts is nobody else's business.
    """
    found = []
    for folder, manifest in manifests.items():
        for source in manifest["settings"].get(DATA.get(manifest["folder"], ""), None) or []:
            hub = str(source.get("hub") or "")
            if hub:
                name = " ".join(str(source[key]) for key in ("hub", "subset", "split") if source.get(key))
            elif source.get("path") or source.get("git"):
                path = str(source.get("path") or source["git"])
                name = Path(path).name or path
            elif source.get("crawl"):
                name = "Common Crawl"
            else:
                what = source.get("installed")
                parts = ", ".join(map(str, what)) if isinstance(what, list) else str(what)
                name = f"documentation installed with Python ({parts.replace('_', ' ')})"
            license = str(source.get("license") or "unknown")
            used_for = "pretraining" if folder == "corpus" else folder
            found.append({"used_for": used_for, "name": name, "hub": hub, "license": license})
    return found


def parameters(folder: Path) -> int | None:
    """The number of parameters in a model folder's safetensors files, shared ones counted once; None where there
    are none."""
    total = 0
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total or None


def log_history(folder: Path) -> list[dict[str, Any]]:
    """Trainer's log of a training stage; empty where there is none."""
    path = folder / "trainer_state.json"
    return json.loads(path.read_text(encoding="utf-8"))["log_history"] if path.exists() else []


def samples(folder: Path) -> list[dict[str, Any]]:
    """The completions made while a stage trained (`hf_llm.monitoring.callbacks.samples`)."""
    path = folder / "samples.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def test_scores(folder: Path) -> dict[str, Any] | None:
    """This model's entry in the run's evaluation; None where it was not evaluated, or was made anew since."""
    evaluation = read_manifest(folder.parent / "evaluation")
    manifest = read_manifest(folder)
    if not evaluation or not manifest or evaluation["inputs"].get(folder.name) != manifest["digest"]:
        return None
    return evaluation["facts"].get("results", {}).get(folder.name)


SCORES = {  # what an evaluation finds -> in words, format
    "bits_per_byte": ("bits per byte", ".4f"),
    "perplexity": ("perplexity", ".2f"),
    "masked_accuracy": ("masked tokens right", ".1%"),
    "pseudo_perplexity": ("pseudo-perplexity", ".2f"),
    "span_exact_match": ("gaps filled exactly", ".1%"),
    "target_accuracy": ("tokens of gaps right", ".1%"),
}


def in_words(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores of one model in an evaluation, as (what, value), the one that matters first."""
    return [(words, format(scores[key], form)) for key, (words, form) in SCORES.items() if key in scores]


def last_value(history: list[dict[str, Any]], key: str) -> float | None:
    """The last finite value of `key` in a log history."""
    values = [entry[key] for entry in history if isinstance(entry.get(key), int | float) and math.isfinite(entry[key])]
    return values[-1] if values else None


def count(value: float) -> str:
    """A count as people say it: 6.9M, 124M, 1.1B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return (
                re.sub(r"\.0$", "", f"{value / limit:.1f}" if value < 100 * limit else f"{value / limit:.0f}") + letter
            )
    return f"{value:.0f}"
