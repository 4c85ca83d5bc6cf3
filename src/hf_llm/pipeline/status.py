"""`run_status.json`, the file that tells how a run goes on and how it ended.

A launcher turns every worker's exit code into its own, so what started the run reads this instead.
"""

import json
import time
from pathlib import Path
from typing import Any

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.manifest import write_json

STATUS = "run_status.json"
RUNNING, FINISHED, PREEMPTED, FAILED = "running", "finished", "preempted", "failed"
HEARTBEAT_SECONDS = 5.0  # between two words that a run is alive


def now() -> str:
    """The time (UTC), to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_status(folder: Path, status: str, step: int, **more: Any) -> None:
    """Write `run_status.json`: `status`, the optimizer step reached, and the time. The first process only."""
    if is_main_process():
        try:
            write_json(Path(folder) / STATUS, {"status": status, "step": step, "time": now(), **more})
        except OSError as error:  # on a full disk; what filled it is about to be told, and matters more
            print_main(f"{STATUS} could not be written: {error}")


def read_status(folder: Path) -> dict[str, Any]:
    """What `run_status.json` says; empty where there is none."""
    try:
        return json.loads((Path(folder) / STATUS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


class Heartbeat:
    """Says in `run_status.json` that the run is alive and at which step, every `HEARTBEAT_SECONDS` at most."""

    def __init__(self, folder: Path):
        self.folder, self._last = folder, time.monotonic()

    def beat(self, step: int) -> None:
        """To be called often: after a step, and amid what takes long."""
        if time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            self._last = time.monotonic()
            write_status(self.folder, RUNNING, step)
