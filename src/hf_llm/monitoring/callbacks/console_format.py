"""Format entries of a training log as lines of the console: the metrics that `evaluation/metrics.py` gives a label."""

from typing import Any

from hf_llm.core.format import format_duration
from hf_llm.evaluation.metrics import METRICS, Metric, metrics_in


def format_progress(step: int, max_steps: int, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Format the last log entry of the training and the last evaluation, each empty where there is none.

    `step 1,200/19,073  6%  ETA 3 h 12 min  loss 3.412  val 3.501  0.970 bits/byte  lr 5.9e-4  ...  $1.93`. What matters
    most comes first: a terminal that is too narrow shows the beginning (`cut_words`).
    """
    words = [format_position(step, max_steps)]
    if max_steps:
        words.append(f"{step / max_steps:.0%}")
    if training.get("eta_seconds"):
        words += _label_value(METRICS["eta_seconds"], METRICS["eta_seconds"].label, training["eta_seconds"])
    for metric in metrics_in("progress line"):
        if metric.measured_on != "validation":
            words += _label_value(metric, metric.label, training.get(metric.key))
        else:
            words += _label_value(metric, metric.label, evaluation.get(metric.validation_key))
        if metric.validation_label:
            words += _label_value(metric, metric.validation_label, evaluation.get(metric.validation_key))
    words += _label_value(METRICS["cost"], METRICS["cost"].label, training.get("cost"))
    return "  ".join(words)


def cut_words(line: str, width: int) -> str:
    """Cut a line of the log to `width` columns, between two values."""
    while len(line) > width:
        shorter, gap, _ = line.rpartition("  ")
        if not gap:
            return line[:width]
        line = shorter.rstrip()
    return line


def format_evaluation(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    """Format the log entry of an evaluation.

    `step 1,200/19,073  evaluation  val 3.501  0.970 bits/byte  perplexity 33.1  (12 s)`.
    """
    words = [format_position(step, max_steps), "evaluation"]
    for metric in metrics_in("evaluation line"):
        label = metric.validation_label or metric.label
        words += _label_value(metric, label, logs.get(metric.validation_key))
    if "eval_runtime" in logs:
        words.append(f"({format_duration(logs['eval_runtime'])})")
    return "  ".join(words)


def format_position(step: int, max_steps: int) -> str:
    """Format how far a training is: `step 1,200/19,073`."""
    return f"step {step:,}/{max_steps:,}"


def _label_value(metric: Metric, label: str, value: Any) -> list[str]:
    """Format one value with its label, as a list of one; an empty list where it was not logged or was not finite."""
    if not isinstance(value, int | float):
        return []
    return [label.format(metric.format_value(value))]
