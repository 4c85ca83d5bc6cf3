"""Count the seconds that a stage takes in all its sessions: an interrupted one is resumed in another process.

While a folder is unfinished, `clock.json` in it holds the seconds so far, and when the session began. Of a session that
was killed, the newest file in the folder tells how long it lasted.
"""

import json
import time
from pathlib import Path

from hf_llm.core.manifest import write_json

CLOCK_FILE = "clock.json"


class SessionClock:
    """The clock of one session of the stage that makes `folder`."""

    def __init__(self, folder: Path):
        self.path = folder / CLOCK_FILE
        self._earlier_seconds = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of this session and of those before it."""
        return self._earlier_seconds + time.monotonic() - self._started

    def start(self, earlier_seconds: float = 0.0) -> None:
        """Read the seconds of the sessions before, and write that this one begins.

        `earlier_seconds` are those of a finished training that is continued, whose clock was removed.
        """
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            self._earlier_seconds = record["seconds"]
            if "began" in record:  # it was killed
                self._earlier_seconds += max(0.0, _newest_change(self.path.parent) - record["began"])
        except (OSError, ValueError, KeyError):
            self._earlier_seconds = earlier_seconds
        write_json(self.path, {"seconds": round(self._earlier_seconds, 1), "began": round(time.time(), 1)})

    def stop(self) -> None:
        """Write the seconds so far, if the folder is still there."""
        if self.path.exists():
            write_json(self.path, {"seconds": round(self.seconds, 1)})

    def remove(self) -> None:
        """Delete the file: the folder is complete, or its next session starts from nothing."""
        self.path.unlink(missing_ok=True)


def _newest_change(folder: Path) -> float:
    """Return the time of the last change of a file below a folder, in seconds since 1970."""
    times = []
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # deleted since it was listed
            continue
    return max(times, default=0.0)
