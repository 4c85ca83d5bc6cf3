"""Run each stage in its own process; a stage that trains uses every GPU and is relaunched after a failure."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial

from hf_llm.core.errors import is_command_process
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import MODELS, STAGES
from hf_llm.training.fault_tolerance.supervisor import Child, Supervisor, exit_code

PR_SET_PDEATHSIG = 1  # an option of prctl(2): choose the signal that this process gets when its parent dies


def run_stage(run: Run, folder: str) -> int:
    """Run the stage that makes a folder of `run` to its end and return its exit code.

    A stage that trains is supervised.
    """
    start_process = partial(start_stage_process, folder, run.argv)
    if folder in MODELS:
        return Supervisor(run.folder(folder), start_process).run()
    return wait_for_exit(start_process({}))


def start_stage_process(folder: str, argv: list[str], variables: dict[str, str]) -> Child:
    """Start a stage, on every GPU where it trains, with `variables` added to its environment.

    Without a GPU it is a process forked from this one, whose imports it shares, where that is possible (`can_fork`); a
    forked process could use neither CUDA nor Metal.
    """
    module = STAGES[folder].module
    gpus = gpu_count()
    if not gpus and can_fork():
        process = multiprocessing.get_context("fork").Process(target=run_forked_stage, args=(module, argv, variables))
        process.start()
        return process

    launcher = []
    if gpus > 1 and folder in MODELS:
        launcher = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={gpus}", "-m"]
    return subprocess.Popen([sys.executable, "-m", *launcher, module, *argv], env={**os.environ, **variables})


def can_fork() -> bool:
    """Whether a fork of this process can train: on Linux, where a command of ours leaves the work to other processes.

    A fork has none of its parent's threads. Where torch has computed with them, as in a notebook that trained before,
    it would wait for them without end.
    """
    return sys.platform == "linux" and is_command_process()


def run_forked_stage(module: str, argv: list[str], variables: dict[str, str]) -> None:
    """Run a stage in the forked process that calls this, with the usual reactions to signals.

    The process is killed when its parent dies: a supervisor could not find it later by its environment, which is that
    of the parent.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(variables)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.import_module(module).main(argv)


def wait_for_exit(process: Child) -> int:
    """Return the exit code of a process. Ctrl-C reaches that process too: this waits until it has saved its work."""
    while True:
        try:
            if isinstance(process, subprocess.Popen):
                process.wait()
            else:
                process.join()
            return exit_code(process)
        except KeyboardInterrupt:
            continue


def gpu_count() -> int:
    """Return the number of CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count()
