"""Read and write `run_status.json`, which says at which step a training is, or how it ended.

That of a stage is in its folder; the one in the run's own folder says whether the gates of its evaluation are met.

A launcher (torchrun, accelerate) replaces the exit codes of its workers by its own, so whatever started it reads this
file instead.
"""

import json
import time
from pathlib import Path
from typing import Any

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.manifest import write_json

STATUS = "run_status.json"
HEARTBEAT_SECONDS = 5.0  # the shortest interval between two writes of a running step

# The values of `status`.
RUNNING = "running"
FINISHED = "finished"
PREEMPTED = "preempted"
FAILED = "failed"
GATES_MISSED = "gates missed"


def utc_timestamp() -> str:
    """Return the present time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_status(folder: Path, status: str, step: int | None, **entries: Any) -> None:
    """Write `run_status.json`: `status`, the optimizer step reached (None for what has no steps), the time and
    `entries`. Main process only."""
    if not is_main_process():
        return
    steps = {} if step is None else {"step": step}
    try:
        write_json(Path(folder) / STATUS, {"status": status, **steps, "time": utc_timestamp(), **entries})
    except OSError as error:
        # A full disk, for example. The error that ends the run is reported anyway, and this one must not hide it.
        print_main(f"{STATUS} could not be written: {error}")


def read_status(folder: Path) -> dict[str, Any]:
    """Read `run_status.json`; an empty dictionary if it does not exist."""
    try:
        return json.loads((Path(folder) / STATUS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


class Heartbeat:
    """Writes to `run_status.json` that the run is alive and at which step, at most every `HEARTBEAT_SECONDS`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._last_write = time.monotonic()

    def write_if_due(self, step: int) -> None:
        """Write the status if it is due. Call this often: after each step, and in the course of long work."""
        if time.monotonic() - self._last_write >= HEARTBEAT_SECONDS:
            self._last_write = time.monotonic()
            write_status(self.folder, RUNNING, step)
