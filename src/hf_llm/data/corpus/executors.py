"""Run the tasks of a pass on Ray or Slurm (`corpus.executor`), which datatrove's own executors drive.

Every host has to see the run's folder. This process waits for the tasks of one pass before it starts the next.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.config import Cluster

POLL_SECONDS = 2.0


@dataclass
class Executor:
    """Where tasks run: processes of this host, a Ray cluster (of this host where RAY_ADDRESS is not set), or Slurm."""

    kind: Literal["local", "ray", "slurm"] = "local"
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def remedy(self) -> str:
        """What to do about tasks that left no result."""
        logs = {"local": "the lines above say why", "ray": "Ray's logs say why", "slurm": "its logs are in corpus/work"}
        return f"{logs[self.kind]}; the same command runs them again"

    def run(self, tasks: dict[Path, tuple], run_task: Callable[..., None], work: Callable[..., dict]) -> Iterator[Path]:
        """Run the tasks on Ray or Slurm, yielding the path of each when its result is there."""
        if not tasks:
            return
        step = _TaskStep(list(tasks.items()), run_task, work)

        work_folder = next(iter(tasks)).parent.absolute()
        key = xxhash.xxh3_64_hexdigest("".join(path.name for path in tasks).encode())
        logs = str(work_folder / "logs" / f"{key}-{int(time.time())}")
        if self.kind == "ray":
            self._run_on_ray(step, logs)
            yield from tasks
        else:
            yield from self._run_on_slurm(step, logs, list(tasks))

    def _run_on_ray(self, step: "_TaskStep", logs: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("corpus.executor is ray, which is not installed: pip install 'hf-llm[ray]'") from None
        from datatrove.executor.ray import RayPipelineExecutor

        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
        executor = RayPipelineExecutor(
            [step], len(step.tasks), self.cluster.workers, logging_dir=logs, mem_per_cpu_gb=self.cluster.memory_gb
        )
        executor.run()

    def _run_on_slurm(self, step: "_TaskStep", logs: str, paths: list[Path]) -> Iterator[Path]:
        from datatrove.executor.slurm import SlurmPipelineExecutor

        partition = self.cluster.partition
        assert partition is not None, "Corpus refuses Slurm without a partition"
        executor = SlurmPipelineExecutor(
            [step],
            len(paths),
            time=self.cluster.time,
            partition=partition,
            workers=self.cluster.workers,
            mem_per_cpu_gb=max(1, round(self.cluster.memory_gb)),
            qos=self.cluster.qos or "",  # empty: none, as datatrove reads it
            env_command=self.cluster.env_command or "",
            job_name="hf_llm.prepare_data",
            logging_dir=logs,
            with_srun=self.cluster.srun,
        )
        try:
            executor.run()
        except FileNotFoundError:
            raise UserError(
                "corpus.executor is slurm, but this host has no `sbatch`; run this on a login node"
            ) from None
        yield from _wait_for_results(paths, str(executor.job_id))


class _TaskStep(PipelineStep):
    """datatrove's view of our tasks: rank `n` runs the `n`-th."""

    type = "TASK"
    name = "hf_llm"

    def __init__(self, tasks: list[tuple[Path, tuple]], run_task: Callable[..., None], work: Callable[..., dict]):
        super().__init__()
        self.tasks = [(path.absolute(), arguments) for path, arguments in tasks]
        self.folder = Path.cwd()  # paths in a recipe are seen from here
        self.run_task = run_task
        self.work = work

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        os.chdir(self.folder)
        path, arguments = self.tasks[rank]
        if not path.exists():
            self.run_task(path, self.work, arguments)
        yield from ()


def _wait_for_results(paths: list[Path], job: str) -> Iterator[Path]:
    """Yield each path when it, or its error, is there. Ends early where Slurm no longer knows the job."""
    pending = list(paths)
    while pending:
        # Asked before the files are looked for: what a job wrote before it ended is seen.
        is_running = _is_queued(job)
        done = [path for path in pending if path.exists() or path.with_suffix(".error").exists()]
        yield from done

        pending = [path for path in pending if path not in done]
        if pending and not is_running:
            return
        if pending:
            time.sleep(POLL_SECONDS)


def _is_queued(job: str) -> bool:
    command = ["squeue", "--noheader", "--jobs", job]
    queue = subprocess.run(command, capture_output=True, text=True, check=False)
    return queue.returncode == 0 and bool(queue.stdout.strip())
