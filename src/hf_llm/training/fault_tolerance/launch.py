"""Stages as processes of their own: on every GPU where they train, and there started again after a fault."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial

from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import MODELS, STAGES
from hf_llm.training.fault_tolerance.supervisor import Child, Supervisor, exit_code

PR_SET_PDEATHSIG = 1  # prctl(2)


def run_stage(folder: str, argv: list[str]) -> int:
    """Run the stage that makes `folder` to its end. Returns its exit code. One that trains is supervised."""
    start = partial(launch, folder, argv)
    return Supervisor(Run(argv).root / folder, start).run() if folder in MODELS else wait(start({}))


def launch(folder: str, argv: list[str], variables: dict[str, str]) -> Child:
    """Start a stage, on every GPU where it trains.

    On Linux without a GPU it is a process forked from this one, whose imports it shares; a forked process could use
    neither CUDA nor Metal.
    """
    module, gpus = STAGES[folder].module, gpu_count()
    if gpus or sys.platform != "linux":
        several = ["accelerate.commands.launch", "--multi_gpu", f"--num_processes={gpus}", "-m"]
        several = several if gpus > 1 and folder in MODELS else []
        return subprocess.Popen([sys.executable, "-m", *several, module, *argv], env={**os.environ, **variables})
    process = multiprocessing.get_context("fork").Process(target=forked, args=(module, argv, variables))
    process.start()
    return process


def forked(module: str, argv: list[str], variables: dict[str, str]) -> None:
    """Be a stage, in a process forked from this one, that answers signals as one started by itself.

    It is killed with the process it was forked from: nobody could find it later, for it has that one's environment.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(variables)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.import_module(module).main(argv)


def wait(process: Child) -> int:
    """The exit code of a process. Ctrl-C reaches it too: this waits until it has saved its work."""
    while True:
        try:
            process.wait() if isinstance(process, subprocess.Popen) else process.join()
            return exit_code(process)
        except KeyboardInterrupt:
            continue


def gpu_count() -> int:
    """The number of CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count()
