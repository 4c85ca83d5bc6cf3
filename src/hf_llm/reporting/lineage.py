"""Read from the folders of a run what a model was made from, its size and its training history."""

import json
import math
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from hf_llm.core.licenses import normalize_license
from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.stages import OPTIONAL

# Folder -> the recipe key that lists what it was trained on.
DATA_KEYS = {"corpus": "corpus.sources", **{folder: f"{folder}.data" for folder in OPTIONAL}}

HUB_FILES = "hf://datasets/"  # how the address of a data set's files begins
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")  # ISO 639-1 to 639-3, as the Hub takes them
MAX_LICENSES_SHOWN = 4  # of one source
MIN_LANGUAGE_SHARE = 0.01  # below it a language is not named: one text in a hundred may be a mistake of the detection


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

    Each source has `used_for`, `name`, `hub` (an id or empty) and `license`, the one that the recipe states.
    """
    sources = []
    for folder, manifest in manifests.items():
        data_key = DATA_KEYS.get(manifest["folder"], "")
        for source in manifest["settings"].get(data_key) or []:
            sources.append(
                {
                    "used_for": "pretraining" if folder == "corpus" else folder,
                    "name": _source_name(source),
                    "hub": hub_dataset(str(source.get("hub") or "")),
                    "license": normalize_license(str(source.get("license") or "")),
                }
            )
    return sources


def hub_dataset(hub: str) -> str:
    """Return the id of a data set on the Hub that `hub` names; empty where it is none.

    `hub` is an id, or the address of files: `hf://datasets/owner/name@revision/data/train-*.parquet`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if hub.startswith(HUB_FILES):
        owner_and_name = hub.removeprefix(HUB_FILES).split("/")[:2]
        hub = "/".join(owner_and_name).split("@")[0]
    try:
        validate_repo_id(hub)
    except HFValidationError:
        return ""
    return hub


def kept_licenses(manifests: dict[str, dict]) -> list[tuple[str, float]]:
    """Return the licences of the text that the corpus kept, each with its share of the bytes, the largest first.

    Empty where no corpus is among the manifests.
    """
    ledger = manifests.get("corpus", {}).get("facts", {}).get("ledger", {})
    return license_shares(ledger.get("licenses", {}))


def format_share(share: float) -> str:
    """Write a share of the text in per cent, with one decimal; what is there is not 0.0%."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def license_shares(counts: dict[str, dict[str, int]]) -> list[tuple[str, float]]:
    """Return (licence, share of the bytes), the largest first; names of one licence are added up."""
    sizes: Counter = Counter()
    for name, entry in counts.items():
        sizes[normalize_license(name)] += entry["bytes"]
    total = max(sizes.total(), 1)
    return [(name, size / total) for name, size in sizes.most_common()]


def format_license_shares(entry: dict[str, Any]) -> str:
    """Write the licences of what a source of the ledger has kept: `psf-2.0 48%, mit 30%, ...`, or its one licence.

    The ledgers of earlier versions have only the licence that the recipe states.
    """
    shares = license_shares(entry.get("licenses", {}))
    if not shares:
        return normalize_license(entry["license"])
    if len(shares) == 1:
        return shares[0][0]
    named = [f"{name} {format_share(share)}" for name, share in shares[:MAX_LICENSES_SHOWN]]
    rest = shares[MAX_LICENSES_SHOWN:]
    if rest:
        named.append(f"{len(rest)} others {format_share(sum(share for _, share in rest))}")
    return ", ".join(named)


def kept_languages(manifests: dict[str, dict]) -> list[str]:
    """Return the ISO 639 codes of the languages that the corpus has measured, those with a share worth naming, the
    largest first."""
    languages = manifests.get("corpus", {}).get("facts", {}).get("ledger", {}).get("languages", {})
    total = max(sum(entry["bytes"] for entry in languages.values()), 1)
    by_size = sorted(languages.items(), key=lambda item: -item[1]["bytes"])
    return [
        name
        for name, entry in by_size
        if LANGUAGE_CODE.fullmatch(name) and entry["bytes"] >= MIN_LANGUAGE_SHARE * total
    ]


def describe_test_split(manifests: dict[str, dict[str, dict]], tokens_digest: str | None) -> list[str]:
    """Say, in sentences, what is known of the test split and the training data of models: no more than was checked.

    `manifests` has by model what `read_lineage` returns, `tokens_digest` is that of the folder whose test split was
    used.
    """
    apart = []
    unknown = []
    other_data: dict[str, None] = {}
    for model, lineage in manifests.items():
        is_same_split = tokens_digest is not None and lineage.get("tokens", {}).get("digest") == tokens_digest
        base = lineage.get("base", {})
        starts_elsewhere = bool(base.get("settings", {}).get("pretrain.start_from"))
        if is_same_split and base and not starts_elsewhere:
            apart.append(model)
        else:
            unknown.append(model)
        for folder, manifest in lineage.items():
            if manifest["settings"].get(f"{manifest['folder']}.data"):
                other_data[folder] = None

    sentences = []
    if apart:
        sentences.append(
            f"The pretraining of {join_names(apart)} read the train split of this corpus, which has no document of the "
            "test split."
        )
    if other_data:
        sentences.append(
            f"Whether the data of {join_names(list(other_data))}, which have sources of their own, repeat text of the "
            "test split was not checked."
        )
    if unknown:
        sentences.append(
            f"Whether text of the test split is in the training data of {join_names(unknown)} is not known."
        )
    return sentences


def join_names(names: list[str]) -> str:
    """Join names as in a sentence: `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _source_name(source: dict[str, Any]) -> str:
    """Return a source's name for the page. Of a local path only the last part is shown: the others are private."""
    if source.get("hub"):
        parts = [hub_dataset(str(source["hub"])) or source["hub"], source.get("subset"), source.get("split")]
        return " ".join(str(part) for part in parts if part)
    location = source.get("path") or source.get("git")
    if location:
        return Path(str(location)).name or str(location)
    if source.get("crawl"):
        return "Common Crawl"

    if source.get("synthetic"):
        return f"{source['synthetic']} (written by a grammar)"

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
