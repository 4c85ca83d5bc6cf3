"""Print once for all processes of a launch. Imports no torch, so that commands which only watch a run start at once."""

import os
import shutil
import sys

CLEAR_LINE = "\r\x1b[2K"  # ANSI codes: go to the start of the line and erase it


PIPE_WIDTH = 120  # columns, where the output is not a terminal


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
