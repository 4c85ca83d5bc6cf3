"""`corpus.executor`: where the tasks of the data engine run. Ray and Slurm are driven by datatrove's own executors.

Every machine has to see the run's folder. This process waits for
the tasks of one pass before it starts the next.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import xxhash
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from hf_llm.core.errors import UserError

_POLL_SECONDS = 2.0


@dataclass
class Cluster:
    """`corpus.cluster`: what each task gets, and how to reach the cluster."""

    workers: int = field(default=-1, metadata={"help": "tasks at a time; -1: one per core here, no limit elsewhere"})
    memory_gb: float = field(default=2.0, metadata={"help": "memory to reserve for a task on Ray or Slurm"})
    partition: str | None = field(default=None, metadata={"help": "of Slurm"})
    time: str = field(default="12:00:00", metadata={"help": "limit of a Slurm task"})
    qos: str | None = field(default=None, metadata={"help": "of Slurm"})
    env_command: str | None = field(
        default=None, metadata={"help": "run first in a Slurm task, such as: source .venv/bin/activate"}
    )
    srun: bool = field(default=True, metadata={"help": "start a Slurm task by srun"})

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers is {self.workers}; write -1 or how many tasks may run at a time")
        if self.memory_gb <= 0:
            raise ValueError(f"memory_gb is {self.memory_gb}; it has to be positive")


@dataclass
class Executor:
    """Processes of this machine, a Ray cluster (one of this machine where RAY_ADDRESS is not set), or Slurm."""

    kind: Literal["local", "ray", "slurm"] = "local"
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        if self.kind == "slurm" and not self.cluster.partition:
            raise ValueError("executor is slurm: name its partition, cluster: {partition: ...}")

    @property
    def remedy(self) -> str:
        """What to do about tasks that vanished."""
        logs = {"local": "the lines above say why", "ray": "Ray's logs say why", "slurm": "its logs are in corpus/work"}
        return f"{logs[self.kind]}; the same command runs them again"

    def run(self, tasks: dict[Path, tuple], run_task: Callable[..., None], work: Callable[..., dict]) -> Iterator[Path]:
        """Run the tasks on Ray or Slurm, yielding the path of each when its result is there."""
        if not tasks:
            return
        step = _Tasks(list(tasks.items()), run_task, work)
        key = xxhash.xxh3_64_hexdigest("".join(path.name for path in tasks).encode())
        logs = str(next(iter(tasks)).parent.absolute() / "logs" / f"{key}-{int(time.time())}")
        if self.kind == "ray":
            self._run_on_ray(step, logs)
            yield from tasks
        else:
            yield from self._run_on_slurm(step, logs, list(tasks))

    def _run_on_ray(self, step: "_Tasks", logs: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("corpus.executor is ray, which is not installed: pip install 'hf-llm[ray]'") from None
        from datatrove.executor.ray import RayPipelineExecutor

        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
        RayPipelineExecutor(
            [step], len(step.tasks), self.cluster.workers, logging_dir=logs, mem_per_cpu_gb=self.cluster.memory_gb
        ).run()

    def _run_on_slurm(self, step: "_Tasks", logs: str, paths: list[Path]) -> Iterator[Path]:
        from datatrove.executor.slurm import SlurmPipelineExecutor

        executor = SlurmPipelineExecutor(
            [step],
            len(paths),
            time=self.cluster.time,
            partition=self.cluster.partition,
            workers=self.cluster.workers,
            mem_per_cpu_gb=max(1, round(self.cluster.memory_gb)),
            qos=self.cluster.qos,
            env_command=self.cluster.env_command,
            job_name="hf_llm.prepare_data",
            logging_dir=logs,
            with_srun=self.cluster.srun,
        )
        try:
            executor.run()
        except FileNotFoundError:
            raise UserError(
                "corpus.executor is slurm, but there is no `sbatch` here; run this on a login node"
            ) from None
        yield from _as_they_appear(paths, executor.job_id)


class _Tasks(PipelineStep):
    """datatrove's view of our tasks: rank `n` runs the `n`-th."""

    type = "TASK"
    name = "hf_llm"

    def __init__(self, tasks: list[tuple[Path, tuple]], run_task: Callable[..., None], work: Callable[..., dict]):
        super().__init__()
        self.tasks = [(path.absolute(), arguments) for path, arguments in tasks]
        self.folder = Path.cwd()  # paths in a recipe are seen from here
        self.run_task = run_task
        self.work = work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        os.chdir(self.folder)
        path, arguments = self.tasks[rank]
        if not path.exists():
            self.run_task(path, self.work, arguments)
        yield from ()


def _as_they_appear(paths: list[Path], job: str) -> Iterator[Path]:
    """Each path when it, or its error, is there. Ends early where Slurm no longer knows the job."""
    left = list(paths)
    while left:
        running = _is_queued(job)  # asked first: what the job wrote before it ended is there when looked for
        done = [path for path in left if path.exists() or path.with_suffix(".error").exists()]
        yield from done
        left = [path for path in left if path not in done]
        if left and not running:
            return
        if left:
            time.sleep(_POLL_SECONDS)


def _is_queued(job: str) -> bool:
    found = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())
