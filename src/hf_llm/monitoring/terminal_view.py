"""Show runs in a terminal, as plain text that is redrawn every few seconds."""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

from hf_llm.core.format import format_duration, one_line
from hf_llm.evaluation.metrics import metrics_in
from hf_llm.monitoring.callbacks.console_format import format_evaluation, format_progress
from hf_llm.monitoring.log_tail import RunLog, TrainingLog

# ANSI escape sequences.
CLEAR_SCREEN = "\x1b[2J"
HOME = "\x1b[H"  # move the cursor to the top left
CLEAR_BELOW = "\x1b[J"  # from the cursor to the end of the screen
CLEAR_RIGHT = "\x1b[K"  # from the cursor to the end of the line

BARS = "▁▂▃▄▅▆▇█"
MAX_CURVE_CHARACTERS = 48
MAX_BAR_CHARACTERS = 60
MAX_ALERTS = 3
MAX_SAMPLES = 3


def follow_runs(runs: list[RunLog], seconds: float = 2.0) -> None:
    """Show the runs until Ctrl-C; only once where the output is not a terminal."""
    if not sys.stdout.isatty():
        print(render_runs(runs, shutil.get_terminal_size().columns))
        return

    os.system("")  # makes Windows' console interpret escape sequences
    try:
        print(CLEAR_SCREEN, end="")
        while True:
            size = shutil.get_terminal_size()
            lines = render_runs(runs, size.columns).splitlines()[: size.lines - 1]
            text = "".join(line + CLEAR_RIGHT + "\n" for line in lines)
            print(HOME + text + CLEAR_BELOW, end="", flush=True)
            time.sleep(seconds)
    except KeyboardInterrupt:
        print()


def render_runs(runs: list[RunLog], width: int) -> str:
    """Render the present state of the runs in lines of at most `width` characters.

    The current training of each run is rendered in full, the others in one line each.
    """
    lines: list[str] = []
    for run in runs:
        run.read()
        if lines:
            lines.append("")
        lines.append(run.name)
        if not run.trainings:
            lines.append("  nothing has been trained yet")
        for training in run.trainings.values():
            if training is run.current:
                details = _render_training(training, width - 2)
            else:
                details = [_format_heading(training)]
            lines += [f"  {line}" for line in details]
    return "\n".join(line[:width] for line in lines)


def _format_heading(training: TrainingLog) -> str:
    """Format a training's name and status in one line."""
    status = training.status()
    words = [f"{training.name:<8}", status["state"]]
    if "headline" in status:
        words.append(status["headline"])
    elif status["state"] != "finished" and status["seen"]:
        silence = format_duration(max(0, time.time() - status["seen"]))
        words.append(f"last sign of life {silence} ago")
    if "error" in status:
        words += status["error"].splitlines()[:1]
    return "  ".join(words)


def _render_training(training: TrainingLog, width: int) -> list[str]:
    """Render a training with its numbers, curves, alerts and last completions."""
    step = training.status()["step"]
    max_steps = training.facts.get("max_steps", 0)
    entry = training.last_entry("loss")
    evaluation = training.last_entry("eval_loss")

    lines = [_format_heading(training)]
    progress = format_progress(step, max_steps, entry, evaluation)
    lines += wrap_words(progress.split("  "), width)
    if evaluation:
        result = format_evaluation(evaluation["step"], max_steps, evaluation)
        lines += wrap_words(result.split("  "), width)
    if max_steps:
        lines.append(_draw_progress_bar(step / max_steps, min(width, MAX_BAR_CHARACTERS)))
    lines += _render_curves(training)

    for alert in training.alerts.rows[-MAX_ALERTS:]:
        lines.append(f"!! step {alert['step']:,}: {alert['text']}")

    samples = training.samples.rows
    last_samples = [row for row in samples if row["step"] == samples[-1]["step"]]
    for row in last_samples[:MAX_SAMPLES]:
        completion = one_line(row["text"])
        lines.append(f"[step {row['step']:,}] {row['prompt']} ▸{completion}")
    return lines


def _render_curves(training: TrainingLog) -> list[str]:
    """Render one line for each metric that has a curve here, with its first and last value."""
    keys_by_label = {}
    for metric in metrics_in("terminal curve"):
        keys_by_label[metric.label] = metric.key
        if metric.validation_label:
            keys_by_label[metric.validation_label] = metric.validation_key

    lines = []
    for label, key in keys_by_label.items():
        name = label.format("").strip()
        values = [row[key] for row in training.entries if isinstance(row.get(key), int | float)]
        if len(values) > 1:
            lines.append(f"{name:<7}{draw_curve(values)}  {values[0]:.4g} to {values[-1]:.4g}")
    return lines


def _draw_progress_bar(share: float, width: int) -> str:
    filled = round(min(1.0, share) * width)
    return "█" * filled + "░" * (width - filled)


def draw_curve(values: list[float]) -> str:
    """Draw a curve as at most `MAX_CURVE_CHARACTERS` bars; a bar is the mean of the values it stands for."""
    width = min(MAX_CURVE_CHARACTERS, len(values))
    edges = [round(number * len(values) / width) for number in range(width + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]

    low = min(means)
    high = max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[math.floor((mean - low) * scale + 0.5)] for mean in means)


def wrap_words(words: list[str], width: int) -> Iterator[str]:
    """Yield lines of words two spaces apart, no longer than `width` unless a word is."""
    line = ""
    for word in words:
        if line and len(line) + 2 + len(word) > width:
            yield line
            line = "  "
        line += ("  " if line.strip() else "") + word
    yield line
