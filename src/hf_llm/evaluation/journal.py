"""The documents of a benchmark that are scored already, one row of JSON each, so that a killed evaluation goes on.

Each process of a launch writes a file of its own, `documents.<rank>.jsonl`; what any of them has counts, so that the
next launch may have another number of processes.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_llm.core.jsonl import format_row, read_rows


class Journal:
    """The scored documents of one benchmark and one model, in a folder."""

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1):
        self.folder = folder
        self.rank = rank
        self.world_size = world_size
        self.path = folder / f"documents.{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self.finished = {row["id"] for row in self.read()}
        """The ids of the documents that any process has scored before this launch."""

    def select_documents(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that this process has to score: those that are not finished, dealt out to the processes."""
        remaining = [name for name in ids if name not in self.finished]
        return remaining[self.rank :: self.world_size]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a finished batch to the disk."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(format_row(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return the rows of all processes, each document once, ordered by id as `natural_key` orders them."""
        rows = {}
        for path in sorted(self.folder.glob("documents.*.jsonl")):
            for row in read_rows(path):
                rows.setdefault(row["id"], row)
        return [rows[name] for name in sorted(rows, key=natural_key)]

    def _drop_torn_line(self) -> None:
        """Cut off a last line that a killed process left without an end; the next row would be glued to it."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)


class MemoryJournal(Journal):
    """The scored documents of a benchmark in memory, in one process, for a model that is in training."""

    def __init__(self) -> None:
        self.rank = 0
        self.world_size = 1
        self.finished = set()
        self._rows: list[dict[str, Any]] = []

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep the rows of a finished batch."""
        self._rows.extend(rows)

    def read(self) -> list[dict[str, Any]]:
        """Return the rows, ordered by id as `natural_key` orders them."""
        return sorted(self._rows, key=lambda row: natural_key(row["id"]))


def natural_key(name: str) -> tuple[int, int, str]:
    """Sort ids that are numbers as numbers, before all others."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
