"""Run datatrove steps over parts on this machine: whole results or none, and nothing done twice.

datatrove's own local executor marks a task done by its number alone, so a rerun over other files or with other filters
keeps the wrong documents. Here a result's name holds a digest of what it was made from.
"""

import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep


@dataclass
class Flow:
    """What has passed one step: the entry of the ledger for one rule."""

    rule: str
    documents: int = 0
    bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def through(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, counted as they go by."""
        for document in documents:
            self.documents += 1
            self.bytes += utf8_length(document.text)
            yield document


def run_steps(steps: list[PipelineStep], rank: int = 0, world_size: int = 1) -> list[Flow]:
    """Pull every document of task `rank` through the steps. Returns what passed each of them."""
    data, flows = None, []
    for step in steps:
        flow = Flow(step.name)
        flows.append(flow)
        data = flow.through(step.run(data, rank, world_size))
    deque(data, maxlen=0)
    for step, flow in zip(steps, flows, strict=True):
        reasons = {label: metric.total for label, metric in step.stats.stats.items() if label.startswith("dropped_")}
        flow.dropped = {label.removeprefix("dropped_"): int(total) for label, total in reasons.items()}
        if hasattr(step, "faults"):
            flow.dropped |= step.faults.dropped
    return flows


def run_tasks(tasks: dict[Path, tuple], work: Callable[..., dict], weights: list[int], title: str) -> list[dict]:
    """Run `work(*arguments)` for every task and keep what it returns as JSON in the task's file.

    A task whose file exists is not run again. Tasks go to one process per core; a single one runs in this process.
    Returns the results in the order of the tasks. `weights` (bytes) drive the progress bar.
    """
    from tqdm import tqdm

    missing = [path for path in tasks if not path.exists()]
    weight = dict(zip(tasks, weights, strict=True))
    bar = tqdm(total=sum(weights), desc=title, unit="B", unit_scale=True)
    bar.update(sum(weight[path] for path in tasks if path not in missing))
    with bar:
        for path in _each(tasks, missing, work):
            bar.update(weight[path])
    return [json.loads(path.read_text(encoding="utf-8")) for path in tasks]


def _each(tasks: dict[Path, tuple], missing: list[Path], work: Callable[..., dict]) -> Iterator[Path]:
    workers = min(len(missing), cores())
    if workers <= 1:
        for path in missing:
            _run_task(path, work, tasks[path])
            yield path
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        running = {pool.submit(_run_task, path, work, tasks[path]): path for path in missing}
        try:
            for done in as_completed(running):
                done.result()
                yield running[done]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_task(path: Path, work: Callable[..., dict], arguments: tuple) -> None:
    result = json.dumps(work(*arguments), ensure_ascii=False)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(result, encoding="utf-8")
    os.replace(temporary, path)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task for ever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def utf8_length(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
