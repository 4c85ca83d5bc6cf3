"""Run the tasks of a pass: whole results or none, and nothing done twice.

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
from hf_llm.core.progress import open_progress_bar
from hf_llm.data.corpus.executors import Executor

DOCUMENTS_PER_REPORT = 100  # after so many a worker reports to the progress bar


@dataclass
class StepStats:
    """What has passed one step: the entry of the ledger for one rule."""

    rule: str
    """The name of the step."""

    documents: int = 0
    bytes: int = 0
    """Bytes of text, in UTF-8."""

    seconds: float = 0.0
    """Processor time in this step alone."""

    dropped: dict[str, int] = field(default_factory=dict)
    """Documents or records that were dropped, by reason."""

    changed: dict[str, int] = field(default_factory=dict)
    """What a step has replaced or cut out, by kind."""

    def count_documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the same documents, counted and timed; `seconds` holds those of the steps before, too."""
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


def run_steps(steps: list[PipelineStep], rank: int = 0, world_size: int = 1) -> list[StepStats]:
    """Pull every document of task `rank` through the steps. Returns what passed each of them."""
    data: Iterator[Document] | None = None
    all_stats = []
    for step in steps:
        stats = StepStats(step.name)
        data = stats.count_documents(step.run(data, rank, world_size))
        if not all_stats:
            data = _report_progress(data)
        all_stats.append(stats)
    assert data is not None, "there is at least one step"
    deque(data, maxlen=0)  # the steps are generators: this runs them

    # The seconds of a step hold those of all steps before it.
    for number in range(len(all_stats) - 1, 0, -1):
        all_stats[number].seconds -= all_stats[number - 1].seconds

    for step, stats in zip(steps, all_stats, strict=True):
        for label, metric in step.stats.stats.items():
            if label.startswith("dropped_"):
                stats.dropped[label.removeprefix("dropped_")] = int(metric.total)
            elif label.startswith(("redacted_", "lines_")):
                stats.changed[label] = int(metric.total)
        faults = getattr(step, "faults", None)  # of a reader
        if faults is not None:
            stats.dropped |= faults.dropped
    return all_stats


def run_tasks(
    tasks: dict[Path, tuple], work: Callable[..., dict], weights: list[int], title: str, executor: Executor
) -> list[dict]:
    """Run `work(*arguments)` for every task and keep what it returns as JSON in the task's file.

    Each result gets the `seconds` it took. A task whose file exists is not run again. One that ends with a UserError
    does not stop the others; the errors are raised together when all have been tried. Returns the results in the order
    of the tasks. `weights` (bytes) drive the progress bar.
    """
    weight = dict(zip(tasks, weights, strict=True))
    total_weight = sum(weights)
    to_run = {path: arguments for path, arguments in tasks.items() if not path.exists()}
    missing_weight = sum(weight[path] for path in to_run)

    with open_progress_bar(total=total_weight, desc=title, unit="B", unit_scale=True) as bar:
        bar.update(total_weight - missing_weight)
        if executor.kind == "local":
            finished = _run_locally(to_run, work, bar, executor.cluster.workers)
        else:
            finished = executor.run(to_run, run_task, work)
        for path in finished:
            bar.update(weight[path])

    _raise_task_errors(list(to_run))
    lost = [path.name for path in tasks if not path.exists()]
    if lost:
        count = f"{len(lost)} of {len(tasks)} tasks"
        raise UserError(f"{title}: {count} left no result ({lost[0]} ...); {executor.remedy}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in tasks]


def _raise_task_errors(paths: list[Path]) -> None:
    """Delete the error files of these tasks, and raise what they say as one UserError."""
    messages = []
    for path in paths:
        file = error_file(path)
        if file.exists():
            messages.append(file.read_text(encoding="utf-8"))
    for path in paths:
        error_file(path).unlink(missing_ok=True)
    if messages:
        raise UserError("\n".join(dict.fromkeys(messages)))


def run_task(path: Path, work: Callable[..., dict], arguments: tuple) -> None:
    """Run one task and write its result and seconds, or the message of the UserError it ended with."""
    started = time.perf_counter()
    try:
        result = work(*arguments)
        timed_result = {**result, "seconds": time.perf_counter() - started}
        write_text(path, json.dumps(timed_result, ensure_ascii=False))
    except UserError as error:
        write_text(error_file(path), str(error))


def error_file(path: Path) -> Path:
    """Return the file of a failed task's message."""
    return path.with_suffix(".error")


def _run_locally(tasks: dict[Path, tuple], work: Callable[..., dict], bar: tqdm, workers: int) -> Iterator[Path]:
    """Run tasks in one process per core, or in this process where there is one task or one worker.

    Yields the path of each task that is done.
    """
    if workers < 0:
        workers = count_cores()
    workers = min(len(tasks), workers)
    if workers <= 1:
        for path, arguments in tasks.items():
            run_task(path, work, arguments)
            yield path
        return

    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counter,)) as pool:
        running = {pool.submit(run_task, path, work, arguments): path for path, arguments in tasks.items()}
        try:
            yield from _wait_for_tasks(running, bar, counter)
        except BrokenProcessPool:
            raise UserError(
                f"{bar.desc}: a worker process was killed, mostly for want of memory; the same command resumes "
                "(--corpus.cluster.workers=1 takes less)"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _wait_for_tasks(running: dict[Future, Path], bar: tqdm, counter) -> Iterator[Path]:
    """Yield the path of each task that is done, and show how many documents the workers have read."""
    pending = set(running)
    while pending:
        done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
        if counter.value:
            bar.set_postfix_str(f"{counter.value:,} documents")
        for future in done:
            future.result()
            yield running[future]


_counter = None  # of the documents that all workers have read; None in a process that works alone


def _report_progress(documents: Iterable[Document]) -> Iterator[Document]:
    for number, document in enumerate(documents, 1):
        if _counter is not None and number % DOCUMENTS_PER_REPORT == 0:
            with _counter.get_lock():
                _counter.value += DOCUMENTS_PER_REPORT
        yield document


def _start_worker(counter) -> None:
    """Remember where to count documents; and die with the parent, for whose next task a worker would wait for ever."""
    global _counter
    _counter = counter

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "a worker has a parent"
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def utf8_length(text: str) -> int:
    """Return the bytes of the text in UTF-8."""
    if text.isascii():
        return len(text)
    return len(text.encode("utf-8", "surrogatepass"))
