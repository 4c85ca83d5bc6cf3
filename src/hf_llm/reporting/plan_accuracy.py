"""What was predicted for a pretraining beside what it took, once it has run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hf_llm.core.manifest import digest_of, read_manifest, write_json

PLAN = "plan.json"  # in the run's folder
BASE = "base"


@dataclass(frozen=True)
class Score:
    """One figure: `error` is (predicted - actual) / actual."""

    what: str
    predicted: float
    actual: float

    @property
    def error(self) -> float:
        return self.predicted / self.actual - 1


def planned_for(tree: dict[str, Any]) -> str:
    """A digest of what of a recipe a plan depends on."""
    return digest_of([tree.get("model"), tree.get("pretrain")])


def score(root: Path, tree: dict[str, Any]) -> list[Score]:
    """The figures of the plan in `root/plan.json` that the finished pretraining tells too; empty where there is no plan
    of this recipe, or no pretraining."""
    plan, manifest = (_read(root / PLAN) or {}).get(planned_for(tree)), read_manifest(root / BASE)
    if not plan or not manifest:
        return []
    log = (_read(root / BASE / "trainer_state.json") or {"log_history": []})["log_history"]
    actual = {
        "memory, GiB": max(_values(log, "memory_gib"), default=None),
        "tokens per second": median(found) if (found := _values(log, "tokens_per_second")) else None,
        "hours": max(manifest["seconds"] / 3600, _hours(log, manifest)),
    }
    pairs = [(what, plan.get(what), value) for what, value in actual.items()]
    return [Score(what, predicted, value) for what, predicted, value in pairs if predicted and value]


def keep(root: Path, tree: dict[str, Any], predicted: dict[str, float]) -> None:
    """Leave what was predicted for the recipe of `tree` in `root/plan.json`, beside the plans of other settings."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / PLAN, {**(_read(root / PLAN) or {}), planned_for(tree): predicted})


def _hours(log: list[dict[str, Any]], manifest: dict[str, Any]) -> float:
    """Of all sessions: the manifest tells how long the last one took."""
    return max(_values(log, "device_hours"), default=0.0) / manifest.get("facts", {}).get("processes", 1)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _values(log: list[dict[str, Any]], key: str) -> list[float]:
    return [entry[key] for entry in log if isinstance(entry.get(key), int | float) and math.isfinite(entry[key])]
