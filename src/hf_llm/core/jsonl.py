"""Read and write the JSONL files of a training while it runs: metrics, alerts and samples.

`logs/metrics.jsonl` has one entry of Trainer's log on each line, each step once; Trainer writes its own log,
`trainer_state.json`, only with a checkpoint. The first line describes the training (`{"training": {"max_steps":
...}}`), every other line holds `step` and `time` (seconds since 1970). A number that is not finite is null.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text

LOGS = "logs"  # a folder in a stage's folder, which is neither in its digest nor uploaded
METRICS = "metrics.jsonl"
ALERTS = "alerts.jsonl"
SAMPLES = "samples.jsonl"


def metrics_file(folder: Path | str) -> Path:
    """Return the path of the metrics of the training in `folder`."""
    return Path(folder) / LOGS / METRICS


def alerts_file(folder: Path | str) -> Path:
    """Return the path of the alerts of the training in `folder`."""
    return Path(folder) / LOGS / ALERTS


def samples_file(folder: Path | str) -> Path:
    """Return the path of the completions that were sampled during the training in `folder`."""
    return Path(folder) / SAMPLES


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a JSONL file, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(format_row(row))


def replace_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the rows of a JSONL file, atomically: a reader sees either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(map(format_row, rows)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSONL file; none if it does not exist. A line that a killed process cut off is dropped."""
    if not path.exists():
        return []

    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        row = parse_row(line)
        if row is not None:
            rows.append(row)
    return rows


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Parse the row of one line; None if the line is incomplete or not a JSON object."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def truncate_after_step(path: Path, step: int) -> None:
    """Drop the rows after `step`: a run that resumes there writes them again."""
    if path.exists():
        replace_rows(path, [row for row in read_rows(path) if row["step"] <= step])


def format_row(row: dict[str, Any]) -> str:
    """Format a row as one line of JSON, with null for numbers that are not finite."""
    finite_row = {key: _replace_non_finite(value) for key, value in row.items()}
    return json.dumps(finite_row, ensure_ascii=False, default=float) + "\n"


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
