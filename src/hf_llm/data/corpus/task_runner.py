"""Run datatrove steps over parts: whole results or none, and nothing done twice.

datatrove marks a task done by its number alone, so a rerun over other files or with other filters keeps the wrong
documents. Here a result's name holds a digest of what it was made from, whichever executor runs it.
"""

import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from tqdm import tqdm

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.data.corpus.executors import Executor

_COUNT_EVERY = 100  # documents after which a task tells the progress bar


@dataclass
class Flow:
    """What has passed one step: the entry of the ledger for one rule."""

    rule: str
    documents: int = 0
    bytes: int = 0  # of text, in UTF-8
    seconds: float = 0.0  # in this step alone
    dropped: dict[str, int] = field(default_factory=dict)  # documents or records, by reason
    changed: dict[str, int] = field(default_factory=dict)  # what a formatter says it has replaced, by kind

    def through(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, counted and timed as they go by; `seconds` holds those of the steps before, too."""
        documents = iter(documents)
        while True:
            started = time.perf_counter()
            document = next(documents, None)
            self.seconds += time.perf_counter() - started
            if document is None:
                return
            self.documents += 1
            self.bytes += utf8_length(document.text)
            yield document


def run_steps(steps: list[PipelineStep], rank: int = 0, world_size: int = 1) -> list[Flow]:
    """Pull every document of task `rank` through the steps. Returns what passed each of them."""
    data, flows = None, []
    for step in steps:
        flows.append(Flow(step.name))
        data = flows[-1].through(step.run(data, rank, world_size))
        if len(flows) == 1:
            data = _reported(data)
    deque(data, maxlen=0)
    for flow, before in reversed(list(zip(flows[1:], flows, strict=False))):
        flow.seconds -= before.seconds
    for step, flow in zip(steps, flows, strict=True):
        totals = {label: int(metric.total) for label, metric in step.stats.stats.items()}
        flow.dropped = {k.removeprefix("dropped_"): n for k, n in totals.items() if k.startswith("dropped_")}
        flow.changed = {k: n for k, n in totals.items() if k.startswith(("redacted_", "lines_"))}
        if hasattr(step, "faults"):
            flow.dropped |= step.faults.dropped
    return flows


def run_tasks(
    tasks: dict[Path, tuple], work: Callable[..., dict], weights: list[int], title: str, executor: Executor
) -> list[dict]:
    """Run `work(*arguments)` for every task and keep what it returns as JSON in the task's file.

    Each result gets the `seconds` it took. A task whose file exists is not run again. One that ends with a UserError
    does not stop the others; the errors are raised together when all have been tried. Returns the results in the order
    of the tasks. `weights` (bytes) drive the progress bar.
    """
    missing = [path for path in tasks if not path.exists()]
    weight = dict(zip(tasks, weights, strict=True))
    with tqdm(total=sum(weights), desc=title, unit="B", unit_scale=True) as bar:
        bar.update(sum(weight[path] for path in tasks if path not in missing))
        to_run = {path: tasks[path] for path in missing}
        if executor.kind == "local":
            done = _run_here(to_run, work, bar, executor.cluster.workers)
        else:
            done = executor.run(to_run, run_task, work)
        for path in done:
            bar.update(weight[path])
    errors = [error.read_text(encoding="utf-8") for path in missing if (error := error_file(path)).exists()]
    for path in missing:
        error_file(path).unlink(missing_ok=True)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    lost = [path.name for path in tasks if not path.exists()]
    if lost:
        raise UserError(f"{title}: {len(lost)} of {len(tasks)} tasks left no result ({lost[0]} ...); {executor.remedy}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in tasks]


def run_task(path: Path, work: Callable[..., dict], arguments: tuple) -> None:
    """Run one task and write its result and seconds, or the message of the UserError it ended with."""
    started = time.perf_counter()
    try:
        result = work(*arguments)
        write_text(path, json.dumps({**result, "seconds": time.perf_counter() - started}, ensure_ascii=False))
    except UserError as error:
        write_text(error_file(path), str(error))


def error_file(path: Path) -> Path:
    """Where the message of a failed task lies."""
    return path.with_suffix(".error")


def _run_here(tasks: dict[Path, tuple], work: Callable[..., dict], bar: tqdm, workers: int) -> Iterator[Path]:
    """One process per core; a single task, or a single worker, works in this process."""
    workers = min(len(tasks), cores() if workers < 0 else workers)
    if workers <= 1:
        for path, arguments in tasks.items():
            run_task(path, work, arguments)
            yield path
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(counter,)) as pool:
        running = {pool.submit(run_task, path, work, arguments): path for path, arguments in tasks.items()}
        try:
            yield from _as_they_end(running, bar, counter)
        except BrokenProcessPool:
            raise UserError(
                f"{bar.desc}: a worker process was killed, mostly for want of memory; the same command goes on "
                "(--corpus.cluster.workers=1 takes less)"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _as_they_end(running: dict[Future, Path], bar: tqdm, counter) -> Iterator[Path]:
    left = set(running)
    while left:
        done, left = wait(left, timeout=1, return_when=FIRST_COMPLETED)
        if counter.value:
            bar.set_postfix_str(f"{counter.value:,} documents")
        for future in done:
            future.result()
            yield running[future]


_counter = None  # of the documents that all workers have read; None in a process that works alone


def _reported(documents: Iterable[Document]) -> Iterator[Document]:
    for number, document in enumerate(documents, 1):
        if _counter is not None and number % _COUNT_EVERY == 0:
            with _counter.get_lock():
                _counter.value += _COUNT_EVERY
        yield document


def _begin_worker(counter) -> None:
    """Know where to count; and die with the parent, for a worker would wait for its next task for ever."""
    global _counter
    _counter = counter

    def outlive_nobody() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=outlive_nobody, daemon=True).start()


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def utf8_length(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
