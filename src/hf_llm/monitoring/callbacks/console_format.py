"""The few numbers of a log entry that a line shows, and how it says them. The rest goes to the reporters."""

from typing import Any

from hf_llm.reporting.lineage import count
from hf_llm.reporting.run_page import duration
from hf_llm.reporting.svg_charts import short


def number(value: float) -> str:
    """A loss or a score: 3.412, 0.0312, 4.5e-05."""
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


# key in the log (or one of several), and how the line says it. Loss first; what a stage does not log is not said.
FIGURES = [
    (("loss",), lambda value: f"loss {number(value)}"),
    (("validation",), lambda value: f"val {number(value)}"),
    (("bits_per_byte",), lambda value: f"{value:.3f} bits/byte"),
    (("masked_accuracy",), lambda value: f"masked right {value:.1%}"),
    (("target_accuracy",), lambda value: f"gaps right {value:.1%}"),
    (("reward",), lambda value: f"reward {number(value)}"),
    (("rewards/accuracies", "accuracy"), lambda value: f"right {value:.0%}"),
    (("rewards/margins", "margin"), lambda value: f"margin {number(value)}"),
    (("mean_token_accuracy",), lambda value: f"tokens right {value:.0%}"),
    (("kl",), lambda value: f"KL {value:.3g}"),
    (("completions/mean_length", "length"), lambda value: f"length {value:.0f}"),
    (("learning_rate",), lambda value: f"lr {short(float(f'{value:.2g}'))}"),
    (("grad_norm",), lambda value: f"|g| {value:.3g}"),
    (("tokens_per_second",), lambda value: f"{count(value)} tok/s"),
    (("mfu", "mfu_of_measured_peak"), lambda value: f"MFU {value:.2f}"),
    (("memory_gib",), lambda value: f"{value:.1f} GiB"),
]


def progress_line(step: int, most: int, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """`step 1,200/19,073  loss 3.412  val 3.501  0.970 bits/byte  lr 5.9e-4  ...  6%  ETA 3 h 12 min  $1.93`."""
    shown = {name: value for name, value in training.items() if name != "validation"}
    shown["validation"] = evaluation.get("eval_loss")
    for name in ("bits_per_byte", "masked_accuracy", "target_accuracy"):
        shown[name] = evaluation.get(f"eval_{name}")
    words = [position(step, most), *figures(shown)]
    if most:
        words.append(f"{step / most:.0%}")
    if training.get("eta_seconds"):
        words.append(f"ETA {duration(training['eta_seconds'])}")
    if "cost" in training:
        words.append(f"${training['cost']:,.2f}")
    return "  ".join(words)


def evaluation_line(step: int, most: int, logs: dict[str, Any]) -> str:
    """`step 1,200/19,073  evaluation  val 3.501  0.970 bits/byte  perplexity 33.1  (12 s)`."""
    shown = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
    shown["validation"] = shown.pop("loss")
    words = [position(step, most), "evaluation", *figures(shown)]
    if "perplexity" in shown:
        words.append(f"perplexity {shown['perplexity']:,.4g}")
    return "  ".join([*words, f"({duration(shown['runtime'])})"] if "runtime" in shown else words)


def position(step: int, most: int) -> str:
    """`step 1,200/19,073`."""
    return f"step {step:,}/{most:,}"


def figures(shown: dict[str, Any]) -> list[str]:
    """Those of `FIGURES` that are there, in their order."""
    found = []
    for keys, words in FIGURES:
        value = next((shown[key] for key in keys if isinstance(shown.get(key), int | float)), None)
        if value is not None:
            found.append(words(value))
    return found
