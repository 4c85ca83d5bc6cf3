"""One clean line for each entry of the log, instead of Trainer's dictionaries and bars."""

import os
import shutil
import sys
import time
from typing import Any

from transformers import TrainerCallback

from hf_llm.core.console import CLEAR_LINE, print_main
from hf_llm.monitoring.callbacks.console_format import duration, evaluation_line, position, progress_line

REDRAWN = 0.2  # seconds between two drawings of the progress line, at least


class LineCallback(TrainerCallback):
    """Prints the log of the main process: one line an entry; on a terminal one progress line that stays at the bottom,
    and a line for each evaluation.

    `disable_tqdm` gives plain lines on a terminal too. What other code prints meanwhile goes through `print_main`,
    which clears the progress line first.
    """

    def __init__(self) -> None:
        self._training: dict[str, Any] = {}  # the last entry of the training
        self._evaluation: dict[str, Any] = {}
        self._batches = 0  # of the evaluation under way
        self._live = False
        self._drawn = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._training, self._evaluation = {}, {}
        for entry in state.log_history:  # of before a resume
            self._remember(entry)
        self._live = state.is_world_process_zero and not args.disable_tqdm and is_terminal()

    def on_step_end(self, args, state, control, **kwargs):
        self._batches = 0
        self._draw(self._line(state))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self._batches += 1
        self._draw(f"{position(state.global_step, state.max_steps)}  evaluating, batch {self._batches:,}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self._remember(logs)
        line = self._line(state)
        if "loss" in logs and self._live:
            self._draw(line, now=True)
        elif "loss" in logs:
            print_main(line)
        elif "eval_loss" in logs:
            print_main(evaluation_line(state.global_step, state.max_steps, logs))
        elif "train_runtime" in logs:
            print_main(f"trained to step {state.global_step:,}; this session took {duration(logs['train_runtime'])}")

    def on_train_end(self, args, state, control, **kwargs):
        if self._live:
            print_main(self._line(state))
        self._live = False

    def _line(self, state) -> str:
        return progress_line(state.global_step, state.max_steps, self._training, self._evaluation)

    def _remember(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            self._training = dict(entry)
        elif "eval_loss" in entry:
            self._evaluation = dict(entry)

    def _draw(self, line: str, now: bool = False) -> None:
        if self._live and (now or time.monotonic() - self._drawn > REDRAWN):
            width = shutil.get_terminal_size().columns - 1
            print(CLEAR_LINE + line[:width], end="", flush=True)
            self._drawn = time.monotonic()


def is_terminal() -> bool:
    """Whether what is printed is read on a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
