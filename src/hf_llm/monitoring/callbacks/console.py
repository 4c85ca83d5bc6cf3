"""Print one line for each entry of the log, instead of Trainer's dictionaries and bars."""

import os
import sys
import time
from typing import Any

from transformers import TrainerCallback

from hf_llm.core.console import CLEAR_LINE, print_main, terminal_width
from hf_llm.core.format import format_duration
from hf_llm.monitoring.callbacks.console_format import cut_words, format_evaluation, format_position, format_progress

MIN_REDRAW_SECONDS = 0.2  # between two drawings of the progress line


class ConsoleCallback(TrainerCallback):
    """Print the log in the main process: one line an entry.

    On a terminal there is one progress line, which stays at the bottom, and a line for each evaluation; with
    `disable_tqdm` every entry is a line of its own. Other code prints through `print_main`, which clears the progress
    line first.
    """

    def __init__(self) -> None:
        self._training: dict[str, Any] = {}  # the last log entry with a training loss
        self._evaluation: dict[str, Any] = {}  # the last log entry of an evaluation
        self._eval_batches = 0  # batches done of the present evaluation
        self._redraws = False  # whether there is a progress line
        self._last_drawn = 0.0  # the moment, by time.monotonic

    def on_train_begin(self, args, state, control, **kwargs):
        self._training = {}
        self._evaluation = {}
        for entry in state.log_history:  # from before a resume
            self._remember_entry(entry)
        self._redraws = state.is_world_process_zero and not args.disable_tqdm and is_terminal()

    def on_step_end(self, args, state, control, **kwargs):
        self._eval_batches = 0
        self._draw_progress(self._format_progress(state))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self._eval_batches += 1
        position = format_position(state.global_step, state.max_steps)
        self._draw_progress(f"{position}  evaluating, batch {self._eval_batches:,}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return

        self._remember_entry(logs)
        if "loss" in logs:
            line = self._format_progress(state)
            if self._redraws:
                self._draw_progress(line, at_once=True)
            else:
                print_main(line)
        elif "eval_loss" in logs:
            print_main(format_evaluation(state.global_step, state.max_steps, logs))
        elif "train_runtime" in logs:
            session = format_duration(logs["train_runtime"])
            print_main(f"trained to step {state.global_step:,}; this session took {session}")

    def on_train_end(self, args, state, control, **kwargs):
        if self._redraws:
            print_main(self._format_progress(state))
        self._redraws = False

    def _format_progress(self, state) -> str:
        return format_progress(state.global_step, state.max_steps, self._training, self._evaluation)

    def _remember_entry(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            self._training = dict(entry)
        elif "eval_loss" in entry:
            self._evaluation = dict(entry)

    def _draw_progress(self, line: str, at_once: bool = False) -> None:
        """Draw the progress line over the one before, unless that was drawn a moment ago."""
        if not self._redraws:
            return
        if at_once or time.monotonic() - self._last_drawn > MIN_REDRAW_SECONDS:
            print(CLEAR_LINE + cut_words(line, terminal_width() - 1), end="", flush=True)
            self._last_drawn = time.monotonic()


def is_terminal() -> bool:
    """Whether the output goes to a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
