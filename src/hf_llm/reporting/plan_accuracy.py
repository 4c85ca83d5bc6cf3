"""Compare what a plan predicted for a pretraining with what the pretraining took, once it has run."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hf_llm.core.manifest import digest_of, read_manifest, write_json
from hf_llm.reporting.lineage import finite_values, read_log_history

PLAN_FILE = "plan.json"  # in the run's folder
PRETRAINING_FOLDER = "base"


@dataclass(frozen=True)
class PredictedQuantity:
    """One quantity as predicted and as measured."""

    what: str
    predicted: float
    actual: float

    @property
    def error(self) -> float:
        """The relative error: (predicted - actual) / actual."""
        return self.predicted / self.actual - 1


def compare_with_plan(root: Path, tree: dict[str, Any]) -> list[PredictedQuantity]:
    """Compare the plan in `root/plan.json` with the finished pretraining, in each quantity that was measured.

    Returns an empty list where there is no plan of this recipe, or no finished pretraining.
    """
    plan = _read_plans(root).get(_plan_key(tree))
    manifest = read_manifest(root / PRETRAINING_FOLDER)
    if not plan or not manifest:
        return []

    log = read_log_history(root / PRETRAINING_FOLDER)
    speeds = finite_values(log, "tokens_per_second")
    actual = {
        "memory, GiB": max(finite_values(log, "memory_gib"), default=None),
        "tokens per second": median(speeds) if speeds else None,
        "hours": max(manifest["seconds"] / 3600, _hours_of_all_sessions(log, manifest)),
    }

    scores = []
    for what, value in actual.items():
        predicted = plan.get(what)
        if predicted and value:
            scores.append(PredictedQuantity(what, predicted, value))
    return scores


def save_prediction(root: Path, tree: dict[str, Any], predicted: dict[str, float]) -> None:
    """Save the prediction for the recipe `tree` in `root/plan.json`, which keeps those for other settings."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / PLAN_FILE, {**_read_plans(root), _plan_key(tree): predicted})


def _plan_key(tree: dict[str, Any]) -> str:
    """Return a digest of the parts of a recipe that a plan depends on."""
    return digest_of([tree.get("model"), tree.get("pretrain")])


def _read_plans(root: Path) -> dict[str, Any]:
    """Read the predictions in `root/plan.json` by `_plan_key`; empty where there is no such file."""
    path = root / PLAN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _hours_of_all_sessions(log: list[dict[str, Any]], manifest: dict[str, Any]) -> float:
    """Return the hours of all sessions of a training; the manifest has only those of the last session."""
    device_hours = max(finite_values(log, "device_hours"), default=0.0)
    return device_hours / manifest.get("facts", {}).get("processes", 1)
