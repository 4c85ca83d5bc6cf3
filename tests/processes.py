"""Programs that a test starts and that never outlive it."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 60


@contextmanager
def started(command: list[str], ignores_interrupts: bool = False, **options: Any) -> Iterator[subprocess.Popen]:
    """A program for the length of a `with` block, killed at its end where it still runs.

    With `ignores_interrupts` it is started as a script's `&` starts it: SIGINT is ignored.
    """
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_interrupts else signal.default_int_handler)
    try:
        process = subprocess.Popen(command, **options)
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        yield process
    finally:
        process.kill()
        process.wait(SECONDS)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
