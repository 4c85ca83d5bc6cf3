"""One clean line for each entry of the log, instead of Trainer's dictionaries and bars."""

import math
import os
import shutil
import sys
import time
from typing import Any

from transformers import TrainerCallback

from hf_llm.lifecycle import CLEAR, say

REDRAWN = 0.2  # seconds between two drawings of the progress line, at least


def number(value: float) -> str:
    """A loss or a score: 3.412, 0.0312, 4.5e-05."""
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


# key in the log (or one of several), and how the line says it. Loss first; what a stage does not log is not said.
FIGURES = [
    (("loss",), lambda value: f"loss {number(value)}"),
    (("validation",), lambda value: f"val {number(value)}"),
    (("bits_per_byte",), lambda value: f"{value:.3f} bits/byte"),
    (("reward",), lambda value: f"reward {number(value)}"),
    (("rewards/accuracies", "accuracy"), lambda value: f"right {value:.0%}"),
    (("rewards/margins", "margin"), lambda value: f"margin {number(value)}"),
    (("mean_token_accuracy",), lambda value: f"tokens right {value:.0%}"),
    (("kl",), lambda value: f"KL {value:.3g}"),
    (("completions/mean_length", "length"), lambda value: f"length {value:.0f}"),
    (("learning_rate",), lambda value: f"lr {value:.2g}"),
    (("grad_norm",), lambda value: f"|g| {value:.3g}"),
    (("tokens_per_second",), lambda value: f"{count(value)} tok/s"),
    (("mfu", "mfu_of_measured_peak"), lambda value: f"MFU {value:.2f}"),
    (("memory_gib",), lambda value: f"{value:.1f} GiB"),
]


class LineCallback(TrainerCallback):
    """Prints the log of the main process: one line an entry; on a terminal one progress line that stays at the bottom,
    and a line for each evaluation.

    `disable_tqdm` gives plain lines on a terminal too. What other code prints meanwhile goes through `say`, which
    clears the progress line first.
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
        self._draw(progress_line(state, self._training, self._evaluation))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self._batches += 1
        self._draw(f"step {state.global_step:,}/{state.max_steps:,}  evaluating, batch {self._batches:,}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self._remember(logs)
        line = progress_line(state, self._training, self._evaluation)
        if "loss" in logs and self._live:
            self._draw(line, now=True)
        elif "loss" in logs:
            say(line)
        elif "eval_loss" in logs:
            say(evaluation_line(state, logs))
        elif "train_runtime" in logs:
            say(f"trained to step {state.global_step:,}; this session took {duration(logs['train_runtime'])}")

    def on_train_end(self, args, state, control, **kwargs):
        if self._live:
            say(progress_line(state, self._training, self._evaluation))
        self._live = False

    def _remember(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            self._training = dict(entry)
        elif "eval_loss" in entry:
            self._evaluation = dict(entry)

    def _draw(self, line: str, now: bool = False) -> None:
        if self._live and (now or time.monotonic() - self._drawn > REDRAWN):
            width = shutil.get_terminal_size().columns - 1
            print(CLEAR + line[:width], end="", flush=True)
            self._drawn = time.monotonic()


def progress_line(state, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """`step 1,200/19,073  loss 3.412  val 3.501  0.970 bits/byte  lr 5.9e-4  ...  6%  ETA 3 h 12 min  $1.93`."""
    shown = {name: value for name, value in training.items() if name != "validation"}
    shown["validation"] = evaluation.get("eval_loss")
    shown["bits_per_byte"] = evaluation.get("eval_bits_per_byte")
    words = [position(state), *figures(shown)]
    if state.max_steps:
        words.append(f"{state.global_step / state.max_steps:.0%}")
    if training.get("eta_seconds"):
        words.append(f"ETA {duration(training['eta_seconds'])}")
    if "cost" in training:
        words.append(f"${training['cost']:,.2f}")
    return "  ".join(words)


def evaluation_line(state, logs: dict[str, Any]) -> str:
    """`step 1,200/19,073  evaluation  val 3.501  0.970 bits/byte  perplexity 33.1  (12 s)`."""
    shown = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
    shown["validation"] = shown.pop("loss")
    words = [position(state), "evaluation", *figures(shown)]
    if "perplexity" in shown:
        words.append(f"perplexity {shown['perplexity']:,.4g}")
    return "  ".join([*words, f"({duration(shown['runtime'])})"] if "runtime" in shown else words)


def position(state) -> str:
    """`step 1,200/19,073`."""
    return f"step {state.global_step:,}/{state.max_steps:,}"


def figures(shown: dict[str, Any]) -> list[str]:
    """Those of `FIGURES` that are there, in their order."""
    found = []
    for keys, words in FIGURES:
        value = next((shown[key] for key in keys if isinstance(shown.get(key), int | float)), None)
        if value is not None:
            found.append(words(value))
    return found


def count(value: float) -> str:
    """A count as people say it: 930, 41.2k, 1.25M."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def is_terminal() -> bool:
    """Whether what is printed is read on a terminal that can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
