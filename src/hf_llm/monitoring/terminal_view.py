"""Runs in a terminal: a plain text that is drawn again and again."""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

from hf_llm.monitoring.callbacks.console_format import duration, evaluation_line, progress_line
from hf_llm.monitoring.log_tail import RunLog, TrainingLog

HOME, BELOW, END_OF_LINE = "\x1b[H", "\x1b[J", "\x1b[K"  # to the top; clear to the screen's end, to the line's
BARS = "▁▂▃▄▅▆▇█"
NARROW = 60
CURVE = 48  # characters


def follow(runs: list[RunLog], seconds: float = 2.0) -> None:
    """Show the runs until Ctrl-C; where the output is no terminal, show them once."""
    if not sys.stdout.isatty():
        print(view(runs, shutil.get_terminal_size().columns))
        return
    os.system("")  # lets Windows' console understand what follows
    try:
        print("\x1b[2J", end="")
        while True:
            size = shutil.get_terminal_size()
            lines = view(runs, size.columns).splitlines()[: size.lines - 1]
            print(HOME + "".join(line + END_OF_LINE + "\n" for line in lines) + BELOW, end="", flush=True)
            time.sleep(seconds)
    except KeyboardInterrupt:
        print()


def view(runs: list[RunLog], width: int) -> str:
    """The runs as they are now, in lines of at most `width` characters."""
    lines: list[str] = []
    for run in runs:
        run.read()
        lines += ["", run.name] if lines else [run.name]
        if not run.trainings:
            lines.append("  nothing has been trained yet")
        for training in run.trainings.values():
            current = training is run.current
            lines += [f"  {line}" for line in (full(training, width - 2) if current else [heading(training)])]
    return "\n".join(line[:width] for line in lines)


def heading(training: TrainingLog) -> str:
    """A training in one line."""
    status = training.status()
    words = [f"{training.name:<8}", status["state"]]
    if "headline" in status:
        words.append(status["headline"])
    elif status["state"] != "finished" and status["seen"]:
        words.append(f"last sign of life {duration(max(0, time.time() - status['seen']))} ago")
    return "  ".join([*words, *(status["error"].splitlines()[:1] if "error" in status else [])])


def full(training: TrainingLog, width: int) -> list[str]:
    """A training with its numbers, curves, alerts and last completions."""
    status, entry, evaluation = training.status(), training.last("loss"), training.last("eval_loss")
    most = training.facts.get("max_steps", 0)
    lines = [heading(training), *wrapped(progress_line(status["step"], most, entry, evaluation).split("  "), width)]
    if evaluation:
        lines += wrapped(evaluation_line(evaluation["step"], most, evaluation).split("  "), width)
    if most:
        lines.append(bar(status["step"] / most, min(width, NARROW)))
    for title, key in (("loss", "loss"), ("val", "eval_loss"), ("reward", "reward"), ("|g|", "grad_norm")):
        values = [row[key] for row in training.entries if isinstance(row.get(key), int | float)]
        if len(values) > 1:
            lines.append(f"{title:<7}{curve(values)}  {values[0]:.4g} to {values[-1]:.4g}")
    lines += [f"!! step {alert['step']:,}: {alert['text']}" for alert in training.alerts.rows[-3:]]
    rows = training.samples.rows
    for row in [row for row in rows if row["step"] == rows[-1]["step"]][:3]:
        lines.append(f"[step {row['step']:,}] {row['prompt']} ▸{' '.join(row['text'].split())}")
    return lines


def bar(share: float, width: int) -> str:
    """How far something has come."""
    done = round(min(1.0, share) * width)
    return "█" * done + "░" * (width - done)


def curve(values: list[float]) -> str:
    """A line of at most `CURVE` bars: the mean of each stretch."""
    width = min(CURVE, len(values))
    edges = [round(number * len(values) / width) for number in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[math.floor((mean - low) * scale + 0.5)] for mean in means)


def wrapped(words: list[str], width: int) -> Iterator[str]:
    """Lines of words two spaces apart, no longer than `width` where that can be."""
    line = ""
    for word in words:
        if line and len(line) + 2 + len(word) > width:
            yield line
            line = "  "
        line += ("  " if line.strip() else "") + word
    yield line
