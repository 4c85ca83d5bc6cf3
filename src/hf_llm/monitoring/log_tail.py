"""Follow runs while they train, by reading the files they write; reading changes nothing."""

import os
import time
from calendar import timegm
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.jsonl import alerts_file, metrics_file, parse_row, samples_file
from hf_llm.core.manifest import read_manifest
from hf_llm.core.similar_names import suggest_names
from hf_llm.pipeline.stages import STAGES
from hf_llm.pipeline.status import RUNNING, read_status

MAX_SILENT_SECONDS = 300  # a run whose status is "running" is shown as silent when it has written nothing for so long


class Tail:
    """A growing file of JSON lines, of which each `read` takes only the new rows.

    `rows` are those read so far; `generation` counts how often the file was replaced, as a resumed training does.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.generation = 0
        self._offset = 0
        self._inode = 0  # of the file that `rows` were read from; 0 before there is one

    def read(self) -> None:
        """Read the rows written since the last call. An incomplete last line is left for the next call."""
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._offset:
                    self._start_over(stat.st_ino)
                file.seek(self._offset)
                block = file.read()
        except FileNotFoundError:
            if self._inode:
                self._start_over(0)
            return

        complete_lines = block[: block.rfind(b"\n") + 1]
        self._offset += len(complete_lines)
        for line in complete_lines.splitlines(True):
            row = parse_row(line)
            if row is not None:
                self.rows.append(row)

    def _start_over(self, inode: int) -> None:
        if self._inode:
            self.generation += 1
        self._inode = inode
        self._offset = 0
        self.rows = []


class TrainingLog:
    """What one training stage writes into its folder while it runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name
        self.metrics = Tail(metrics_file(folder))
        self.alerts = Tail(alerts_file(folder))
        self.samples = Tail(samples_file(folder))

    def read(self) -> None:
        """Read the rows written since the last call."""
        for tail in (self.metrics, self.alerts, self.samples):
            tail.read()

    @property
    def facts(self) -> dict[str, Any]:
        """The description of the training by `hf_llm.monitoring.callbacks.jsonl_logger.describe_training`."""
        rows = self.metrics.rows
        return rows[0].get("training", {}) if rows else {}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of its log."""
        return [row for row in self.metrics.rows if "step" in row]

    def last_entry(self, key: str) -> dict[str, Any]:
        """Return the last entry that has a value for `key`; an empty one where there is none."""
        return next((row for row in reversed(self.metrics.rows) if row.get(key) is not None), {})

    def status(self) -> dict[str, Any]:
        """Return the training's present status.

        Its keys: `state` (running, finished, preempted, failed, or silent), `step`, `seen` (when the training last
        wrote something, in seconds since 1970), and `error` or `headline` where there is one.
        """
        status_file = read_status(self.folder)
        manifest = read_manifest(self.folder)
        state = status_file.get("status", RUNNING)

        # Log and status file are written at different moments; the later one counts.
        steps = [status_file.get("step", 0)]
        times = [self.facts.get("started", 0)]
        entries = self.entries
        if entries:
            steps.append(entries[-1]["step"])
        if self.metrics.rows:
            times.append(self.metrics.rows[-1].get("time") or 0)
        if "time" in status_file:
            times.append(timegm(time.strptime(status_file["time"], "%Y-%m-%dT%H:%M:%SZ")))
        if state == RUNNING and time.time() - max(times) > MAX_SILENT_SECONDS:
            state = "silent"

        status = {"state": state, "step": max(steps), "seen": max(times)}
        if status_file.get("error"):
            status["error"] = status_file["error"]
        if manifest:
            status["state"] = "finished"
            status["headline"] = manifest["headline"]
        return status


class RunLog:
    """A run's folder, `runs/<name>`, with all its trainings; or the folder of one training."""

    def __init__(self, path: Path):
        self.path = check_folder(path)
        self.trainings: dict[str, TrainingLog] = {}
        self.is_single = metrics_file(path).exists()
        folder = path.resolve()
        self.name = f"{folder.parent.name}/{folder.name}" if self.is_single else folder.name

    def read(self) -> None:
        """Read the new rows of all trainings, and find trainings that have begun since, in the order of the stages."""
        if self.is_single:
            folders = [self.path]
        else:
            folders = [file.parents[1] for file in self.path.glob("*/logs/metrics.jsonl")]
        folders.sort(key=_running_order)

        trainings = {}
        for folder in folders:
            trainings[folder.name] = self.trainings.get(folder.name) or TrainingLog(folder)
        self.trainings = trainings
        for training in self.trainings.values():
            training.read()

    @property
    def current(self) -> TrainingLog | None:
        """The training that wrote something last."""
        return max(self.trainings.values(), key=lambda training: training.status()["seen"], default=None)


def _running_order(folder: Path) -> tuple[int, str]:
    """Return a sort key: folders in the order in which a run makes them, then others by name."""
    stages = list(STAGES)
    number = stages.index(folder.name) if folder.name in stages else len(stages)
    return number, folder.name


def check_folder(path: Path) -> Path:
    """Return `path` where it is a folder. Raises UserError with the most similar name that exists."""
    if path.is_dir():
        return path

    siblings = []
    if path.parent.is_dir():
        siblings = [str(sibling) for sibling in path.parent.glob("*") if sibling.is_dir()]
    hint = suggest_names(path, siblings, "name a run's folder, as runs/quickstart")
    raise UserError(f"there is no folder {path}; {hint}")
