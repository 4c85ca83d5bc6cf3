import os
import signal
import subprocess
import sys
import time

import pytest
from datatrove.data import Document

from hf_llm.data.corpus.executors import Executor
from hf_llm.data.corpus.filter_pipeline import FilterStep
from hf_llm.data.corpus.filters.length import LengthFilter
from hf_llm.data.corpus.normalize import TextNormalizer
from hf_llm.data.corpus.task_runner import run_steps, run_tasks

PARENT = """
import os, sys, time
from pathlib import Path
from hf_llm.data.corpus import task_runner
from hf_llm.data.corpus.executors import Executor

if __name__ == "__main__":
    task_runner.cores = lambda: 2
    folder = Path(sys.argv[1])
    task_runner.run_tasks({folder / str(i): (10,) for i in range(2)}, time.sleep, [1, 1], "sleeping", Executor())
"""


class Three(TextNormalizer):
    name = "three"

    def run(self, data=None, rank=0, world_size=1):
        yield from (Document(text=text, id="") for text in ("ä" * 10 + "\r\n", "b", "c" * 100))


def test_every_step_is_counted_with_the_reasons_for_what_it_drops():
    stats = run_steps([Three(), TextNormalizer(), FilterStep(LengthFilter(5, 50))])
    assert [(each.rule, each.documents, each.bytes) for each in stats] == [
        ("three", 3, 22 + 1 + 100),
        ("normalise", 3, 20 + 1 + 100),
        ("length", 1, 20),
    ]
    assert stats[-1].dropped == {"too_short": 1, "too_long": 1}


def test_a_task_that_is_done_is_not_done_again(tmp_path):
    calls = []

    def work(number):
        calls.append(number)
        return {"number": number}

    tasks = {tmp_path / "only.json": (7,)}
    first = run_tasks(tasks, work, [1], "t", Executor())
    assert run_tasks(tasks, work, [1], "t", Executor()) == first
    assert first[0]["number"] == 7 and first[0]["seconds"] >= 0
    assert calls == [7]


def children(pid):
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in Linux's /proc")
def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(tmp_path)])
    deadline = time.time() + 30
    while len(children(parent.pid)) < 3 and time.time() < deadline:  # two workers and multiprocessing's tracker
        time.sleep(0.1)
    workers = children(parent.pid)
    time.sleep(1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(60)
    while any(map(alive, workers)) and time.time() < deadline:
        time.sleep(0.1)
    assert len(workers) >= 2 and not any(map(alive, workers))
