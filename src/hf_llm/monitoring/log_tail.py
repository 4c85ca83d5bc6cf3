"""Runs under way, read again and again from the files they write; whoever reads disturbs nothing."""

import difflib
import os
import time
from calendar import timegm
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.jsonl import alerts_file, metrics_file, row_of, samples_file
from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.stages import STAGES
from hf_llm.pipeline.status import RUNNING, read_status

SILENT_SECONDS = 300  # without a sign of life, after which a run that says it is running is called silent


class Tail:
    """A file of JSON lines that grows. `rows` are those read so far; `generation` counts how often the file was begun
    anew, as a resumed training does."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.generation = 0
        self._offset, self._file = 0, 0

    def read(self) -> None:
        """Take in what has been written since the last time. A line that is not whole yet is left for the next."""
        try:
            with open(self.path, "rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._file or state.st_size < self._offset:
                    self._begin_anew(state.st_ino)
                file.seek(self._offset)
                block = file.read()
        except FileNotFoundError:
            if self._file:
                self._begin_anew(0)
            return
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.rows += [row for line in whole.splitlines(True) if (row := row_of(line)) is not None]

    def _begin_anew(self, file: int) -> None:
        self.generation += bool(self._file)
        self._file, self._offset, self.rows = file, 0, []


class TrainingLog:
    """What one training stage writes into its folder while it runs."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.metrics, self.alerts, self.samples = (
            Tail(file(folder)) for file in (metrics_file, alerts_file, samples_file)
        )

    def read(self) -> None:
        """Take in what is new."""
        for tail in (self.metrics, self.alerts, self.samples):
            tail.read()

    @property
    def facts(self) -> dict[str, Any]:
        """What the training is (`hf_llm.monitoring.callbacks.jsonl_logger.training_facts`)."""
        rows = self.metrics.rows
        return rows[0].get("training", {}) if rows else {}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of its log."""
        return [row for row in self.metrics.rows if "step" in row]

    def last(self, key: str) -> dict[str, Any]:
        """The last entry that has `key`; empty where there is none."""
        return next((row for row in reversed(self.metrics.rows) if row.get(key) is not None), {})

    def status(self) -> dict[str, Any]:
        """`state` (running, finished, preempted, failed, or silent), `step`, `seen` (the last sign of life, seconds
        since 1970), and `error` or `headline` where there is one."""
        said, manifest = read_status(self.folder), read_manifest(self.folder)
        times = [row["time"] for row in self.metrics.rows[-1:] if row.get("time")]
        times.append(self.facts.get("started", 0))
        if "time" in said:
            times.append(timegm(time.strptime(said["time"], "%Y-%m-%dT%H:%M:%SZ")))
        step = max([said.get("step", 0), *(row["step"] for row in self.entries[-1:])])
        found = {"state": said.get("status", RUNNING), "step": step, "seen": max(times, default=0)}
        if found["state"] == RUNNING and time.time() - found["seen"] > SILENT_SECONDS:
            found["state"] = "silent"
        if said.get("error"):
            found["error"] = said["error"]
        if manifest:
            found |= {"state": "finished", "headline": manifest["headline"]}
        return found


class RunLog:
    """A run's folder, `runs/<name>`, with all its trainings; or the folder of one training."""

    def __init__(self, path: Path):
        self.path = check_folder(path)
        self.trainings: dict[str, TrainingLog] = {}
        self.single = metrics_file(path).exists()
        self.name = f"{path.resolve().parent.name}/{path.resolve().name}" if self.single else path.resolve().name

    def read(self) -> None:
        """Take in what is new, trainings that have begun since among it. They are kept in running order."""
        folders = [self.path] if self.single else [file.parents[1] for file in self.path.glob("*/logs/metrics.jsonl")]
        order = list(STAGES)
        folders.sort(key=lambda folder: (order.index(folder.name) if folder.name in order else len(order), folder.name))
        self.trainings = {folder.name: self.trainings.get(folder.name) or TrainingLog(folder) for folder in folders}
        for training in self.trainings.values():
            training.read()

    @property
    def current(self) -> TrainingLog | None:
        """The training that gave the last sign of life."""
        return max(self.trainings.values(), key=lambda training: training.status()["seen"], default=None)


def check_folder(path: Path) -> Path:
    """`path`, where there is such a folder; else UserError with the nearest name that there is."""
    if path.is_dir():
        return path
    there = [str(other) for other in path.parent.glob("*") if other.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), there, 1)
    hint = f"did you mean {near[0]}?" if near else "name a run's folder, as runs/quickstart"
    raise UserError(f"there is no folder {path}; {hint}")
