"""`run_status.json`, the file that says at which step a run is and how it ended.

A launcher turns every worker's exit code into its own, so what started the run reads this file instead.
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


def utc_timestamp() -> str:
    """The time (UTC), to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_status(folder: Path, status: str, step: int, **more: Any) -> None:
    """Write `run_status.json`: `status`, the optimizer step reached, the time and `more`. The main process only."""
    if not is_main_process():
        return
    try:
        write_json(Path(folder) / STATUS, {"status": status, "step": step, "time": utc_timestamp(), **more})
    except OSError as error:
        # On a full disk, say. The error that filled it is about to be reported, and matters more.
        print_main(f"{STATUS} could not be written: {error}")


def read_status(folder: Path) -> dict[str, Any]:
    """Read `run_status.json`; empty where the file does not exist."""
    try:
        return json.loads((Path(folder) / STATUS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


class Heartbeat:
    """Writes in `run_status.json` that the run is alive and at which step, every `HEARTBEAT_SECONDS` at most."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._last_write = time.monotonic()

    def write_if_due(self, step: int) -> None:
        """Write the status if it is due. Call this often: after a step, and within what takes long."""
        if time.monotonic() - self._last_write >= HEARTBEAT_SECONDS:
            self._last_write = time.monotonic()
            write_status(self.folder, RUNNING, step)
