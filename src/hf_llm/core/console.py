"""Print once for all processes of a launch, and leave out what libraries tell each other.

Imports no torch, so that commands which only watch a run start at once.
"""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

CLEAR_LINE = "\r\x1b[2K"  # ANSI codes: go to the start of the line and erase it


PIPE_WIDTH = 120  # columns, where the output is not a terminal

# Notices of libraries that no user of a training can act on: the logger, and words of the message.
LIBRARY_NOTICES = (
    # torchao comes with kernels for each version of CUDA and Python, tries to load all of them, and reports the others.
    ("torchao", "Failed to load "),
    # From torch to torchao, which registers types of its own while it is imported.
    ("torch.utils._pytree", "Calling register_constant() on Enum subclasses is deprecated"),
    # A faster product of weights in 4 bits on a CPU. `quantize` needs a GPU.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
)


def terminal_width() -> int:
    """Return the columns of the terminal, or what the variable COLUMNS says."""
    return shutil.get_terminal_size((PIPE_WIDTH, 24)).columns


def is_main_process() -> bool:
    """Return whether this process is the first of its launch; it alone writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def print_main(message: str) -> None:
    """Print a line in the main process; on a terminal it replaces the progress line under the cursor."""
    if is_main_process():
        clear = CLEAR_LINE if sys.stdout.isatty() else ""
        print(clear + message, flush=True)


class NoticeFilter(logging.Filter):
    """Drop the records of a logger whose message holds certain words, and keep their messages."""

    def __init__(self, words: str):
        super().__init__()
        self.words = words
        self.dropped: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if self.words not in message:
            return True
        self.dropped.append(message)
        return False


def drop_library_notices() -> None:
    """Drop the notices of LIBRARY_NOTICES, which libraries print while they are imported, and one warning."""
    for name, words in LIBRARY_NOTICES:
        logging.getLogger(name).addFilter(NoticeFilter(words))

    # TRL and PEFT ask a model for a property that transformers has given another name.
    warnings.filterwarnings(
        "ignore",
        message="`is_gradient_checkpointing` is deprecated",
        category=FutureWarning,
        module=r"transformers\.modeling_utils",
    )


@contextmanager
def hold_notices(logger: str, words: str) -> Iterator[list[str]]:
    """Within the block, keep the messages of a logger that hold `words` in a list instead of printing them."""
    notices = NoticeFilter(words)
    logging.getLogger(logger).addFilter(notices)
    try:
        yield notices.dropped
    finally:
        logging.getLogger(logger).removeFilter(notices)
