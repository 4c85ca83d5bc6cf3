"""React to SIGTERM and Ctrl-C at the end of a step, instead of in the middle of it."""

import os
import signal
import time
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import is_main_process

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

# A second signal within this time is ignored as an echo of the first: Slurm, and Ctrl-C in a terminal, signal the
# launcher and the workers, and the launcher then signals the workers again.
ECHO_SECONDS = 1.5


class SignalListener:
    """Within `with`, record SIGTERM and SIGINT instead of ending the process.

    The first signal is in `received`. A second one, more than `ECHO_SECONDS` later, sets `received_again`; with
    `die_at_second` it also has its usual effect, as without the listener. At the first signal the main process prints
    the signal's name and `message`.
    """

    def __init__(self, message: str = "", die_at_second: bool = False) -> None:
        self.received = 0
        """The number of the first signal; 0 before it."""
        self.received_again = False
        """Whether a second signal has come that is not the first one's echo."""
        self.ignores_sigterm_at_exit = False
        """Set once all is saved and this process is about to end: a late SIGTERM must not kill it any more."""

        self._message = message
        self._die_at_second = die_at_second
        self._received_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "SignalListener":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            if self.ignores_sigterm_at_exit and number == signal.SIGTERM:
                continue
            signal.signal(number, handler)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self._received_at = time.monotonic()  # before `received`, as an echo may interrupt this handler too
            self.received = number
            if self._message and is_main_process():
                # Not by `print`: the handler may have interrupted a write to Python's output buffer.
                line = f"received {signal.Signals(number).name}: {self._message}\n"
                os.write(1, line.encode())
            return

        if time.monotonic() - self._received_at > ECHO_SECONDS:
            self.received_again = True
            if self._die_at_second:
                signal.signal(number, self._previous_handlers[number])
                os.kill(os.getpid(), number)


def let_workers_exit_quietly(loader: "DataLoader") -> None:
    """Let the worker processes of `loader` exit without an error at a signal sent to all processes of a job.

    When a worker dies of a signal, torch raises in the training process, in the middle of the step that is to be saved.
    All batches of a step are fetched before it begins, so it can end without the workers. Workers ignore SIGINT, since
    the training process ends them itself.
    """
    loader = getattr(loader, "dl", loader)  # for sequence parallelism DeepSpeed wraps accelerate's
    loader = getattr(loader, "base_dataloader", loader)  # accelerate wraps torch's
    if loader.num_workers:
        loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(previous_init: Any, worker: int) -> None:
    signal.signal(signal.SIGTERM, _exit_worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if previous_init is not None:
        previous_init(worker)


def _exit_worker(number: int, frame: FrameType | None) -> None:
    os._exit(0)
