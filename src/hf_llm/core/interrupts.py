"""Let people end a command that runs until they end it."""

import signal
import threading


def accept_interrupts(with_sigterm: bool = True) -> None:
    """Let Ctrl-C (SIGINT), and SIGTERM too, raise KeyboardInterrupt in this process.

    A process that a script starts with `&`, or that nohup starts, has inherited that SIGINT is ignored, and would not
    end at all.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if with_sigterm:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
