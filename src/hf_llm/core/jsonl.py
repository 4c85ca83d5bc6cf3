"""The numbers of a training while it runs: `logs/metrics.jsonl`, one entry of Trainer's log a line, each step once.

Trainer writes its own log, `trainer_state.json`, only with a checkpoint. The first line tells what the training is
(`{"training": {"max_steps": ...}}`), every other holds `step` and `time` (seconds since 1970). A number that is not
finite is null.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text

LOGS = "logs"  # of a stage's folder: left out of its digest, and of what is uploaded
METRICS = "metrics.jsonl"
ALERTS = "alerts.jsonl"
SAMPLES = "samples.jsonl"


def metrics_file(folder: Path | str) -> Path:
    """Where the numbers of the training in `folder` are."""
    return Path(folder) / LOGS / METRICS


def alerts_file(folder: Path | str) -> Path:
    """Where the alerts of the training in `folder` are."""
    return Path(folder) / LOGS / ALERTS


def samples_file(folder: Path | str) -> Path:
    """Where the completions made while training in `folder` are."""
    return Path(folder) / SAMPLES


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a file of JSON lines, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(format_row(row))


def replace_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a file of JSON lines; a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(map(format_row, rows)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where there is no file. A line cut off by a kill is dropped."""
    if not path.exists():
        return []
    return [row for line in path.read_bytes().splitlines(True) if (row := parse_row(line)) is not None]


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of one line; None where the line is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def truncate_after_step(path: Path, step: int) -> None:
    """Drop the rows after `step`: a run resumed there makes them again."""
    if path.exists():
        replace_rows(path, [row for row in read_rows(path) if row["step"] <= step])


def format_row(row: dict[str, Any]) -> str:
    """A row as JSON and a line's end."""
    return json.dumps({key: _finite(value) for key, value in row.items()}, ensure_ascii=False, default=float) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
