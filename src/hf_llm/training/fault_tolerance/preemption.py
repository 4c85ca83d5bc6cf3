"""Being told to stop: SIGTERM and Ctrl-C granted at the end of the step."""

import os
import signal
import time
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import is_main_process

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

# Slurm, and Ctrl-C in a terminal, signal the launcher and the workers, and the launcher then signals the workers again.
ECHO_SECONDS = 1.5


class StopSignals:
    """Within `with`: the first SIGTERM or SIGINT is noted in `received`; a later one does what it does without us."""

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self.granted = False  # all is saved and this process about to end: a rank may be told so only now
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if not (self.granted and number == signal.SIGTERM):
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if is_main_process():  # past Python's buffer, in whose use this may be called
                os.write(1, b"told to stop: saving at the end of this step; once more stops at once\n")
        elif time.monotonic() - self._since > ECHO_SECONDS:
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)


def outlive_by_workers(loader: "DataLoader") -> None:
    """Let `loader`'s worker processes end quietly at a SIGTERM sent to all processes of a job, Ctrl-C included.

    torch raises in the training process where a worker dies of a signal, in the middle of the step that is to be saved.
    A step's batches are all there before it begins, so the workers are not needed for its end.
    """
    loader = getattr(loader, "dl", loader)  # for sequence parallelism DeepSpeed wraps accelerate's
    loader = getattr(loader, "base_dataloader", loader)  # accelerate wraps torch's
    if loader.num_workers:
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _start_worker(before: Any, worker: int) -> None:
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if before is not None:
        before(worker)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
