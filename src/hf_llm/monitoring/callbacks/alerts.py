"""Alert when something goes wrong in a training: on the terminal, in `logs/alerts.jsonl`, on the page, in wandb.

The rules look at what is logged and change nothing. A value is compared with the median of the few before it. How far
from such medians the last `WINDOW_ENTRIES` values were, and how much that scatters, is estimated by median and median
absolute deviation, 1.4826 times of which is a normal distribution's standard deviation. Neither a falling curve nor the
outliers that are tested for move these much (Hampel 1974, https://doi.org/10.1080/01621459.1974.10482962).
"""

import math
import time
from collections import deque
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hf_llm.core.console import print_main
from hf_llm.core.jsonl import alerts_file, append_row, truncate_after_step

WINDOW_ENTRIES = 48  # of the log that are remembered
NEIGHBOURS = 5  # entries that a new one is compared with
MIN_ENTRIES = 16  # before anything can be called unusual

OUTLIER_SIGMAS = 8.0  # many, for the deviation is estimated from few values
MIN_LOSS_DEVIATION = 0.005  # of the expected loss: a curve without any scatter may still move so much
MIN_GRADIENT_JUMP = 3.0  # times the expected gradient norm

SLOW_SHARE = 0.5  # of the usual speed
SLOW_ENTRIES = 2  # in a row

RISING_EVALUATIONS = 3  # in a row above the best one
MIN_RISE = 0.005  # of the best validation loss


@dataclass
class Alert:
    """One thing that went wrong."""

    step: int
    kind: str
    """The name of the rule."""
    text: str
    """What a person reads."""
    time: float = 0.0
    """Seconds since 1970."""


class RecentValues:
    """The last values of one metric, and what the next one may be expected to be."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW_ENTRIES)
        self._moves: deque[float] = deque(maxlen=WINDOW_ENTRIES)  # of each value from the median of the few before it

    def expect_next(self) -> tuple[float, float] | None:
        """Estimate the next value and its robust standard deviation; None before there are enough values."""
        if len(self._moves) < MIN_ENTRIES:
            return None
        move = median(self._moves)
        deviation = 1.4826 * median(abs(other - move) for other in self._moves)
        return self._median_of_last() + move, deviation

    def add_value(self, value: float) -> None:
        """Remember the next value."""
        if len(self.values) >= NEIGHBOURS:
            self._moves.append(value - self._median_of_last())
        self.values.append(value)

    def _median_of_last(self) -> float:
        return median(list(self.values)[-NEIGHBOURS:])


class AlertRules:
    """Check the entries of a training's log one after the other.

    A rule alerts when something begins, not while it lasts.
    """

    def __init__(self) -> None:
        self._losses = RecentValues()
        self._gradients = RecentValues()  # logarithms of gradient norms
        self._speeds: deque[float] = deque(maxlen=WINDOW_ENTRIES)
        self._under_way: set[str] = set()  # kinds of alerts that have begun and still last
        self._slow_entries = 0  # in a row
        self._rising_evaluations = 0  # in a row
        self._skip_counts: dict[str, float] = {}
        self._best: tuple[float, float] | None = None  # validation loss, and the training loss at that time

    def check_entry(self, entry: dict[str, Any]) -> list[Alert]:
        """Return what is wrong in this entry of the log, which has a `step`."""
        alerts = [self._check_skipped_updates(entry)]
        if "loss" in entry:
            alerts.append(self._check_loss(entry["loss"]))
            alerts.append(self._check_gradient_norm(entry.get("grad_norm")))
            alerts.append(self._check_speed(entry.get("tokens_per_second")))
        if "eval_loss" in entry:
            alerts.append(self._check_validation_loss(entry["eval_loss"]))
        return [Alert(entry["step"], kind, text) for kind, text in filter(None, alerts)]

    def start_session(self) -> None:
        """Forget the speed: another machine may have another."""
        self._slow_entries = 0
        self._speeds.clear()

    def _alert_at_start(self, kind: str, lasts: bool, text: str) -> tuple[str, str] | None:
        """Return an alert's kind and text where it begins; None while it lasts, and where all is well."""
        if not lasts:
            self._under_way.discard(kind)
            return None
        if kind in self._under_way:
            return None
        self._under_way.add(kind)
        return kind, text

    def _check_skipped_updates(self, entry: dict[str, Any]) -> tuple[str, str] | None:
        alert = None
        for key, count in entry.items():
            if key.startswith("skipped_") and count > self._skip_counts.get(key, 0):
                self._skip_counts[key] = count
                alert = ("skipped_update", f"update dropped ({key.replace('_', ' ')}: {count:g} so far)")
        return alert

    def _check_loss(self, loss: float) -> tuple[str, str] | None:
        if not math.isfinite(loss):
            return self._alert_at_start("not_finite", True, f"the loss is {loss}")
        self._under_way.discard("not_finite")

        is_spike = False
        text = ""
        expected = self._losses.expect_next()
        if expected:
            usual, deviation = expected
            is_spike = loss > usual + OUTLIER_SIGMAS * max(deviation, MIN_LOSS_DEVIATION * abs(usual), 1e-4)
            text = f"loss spike: {loss:.4g}, usual is {usual:.4g} ± {deviation:.2g}"
        self._losses.add_value(loss)
        return self._alert_at_start("loss_spike", is_spike, text)

    def _check_gradient_norm(self, norm: float | None) -> tuple[str, str] | None:
        if norm is None or not math.isfinite(norm) or norm <= 0:
            return None

        # Norms scatter by factors, so their logarithms are compared.
        is_jump = False
        text = ""
        expected = self._gradients.expect_next()
        if expected:
            usual, deviation = expected
            is_jump = math.log(norm) > usual + max(OUTLIER_SIGMAS * deviation, math.log(MIN_GRADIENT_JUMP))
            text = f"gradient jump: norm {norm:.3g}, usual is {math.exp(usual):.3g}"
        self._gradients.add_value(math.log(norm))
        return self._alert_at_start("gradient_jump", is_jump, text)

    def _check_speed(self, speed: float | None) -> tuple[str, str] | None:
        if not speed:
            return None
        usual = median(self._speeds) if len(self._speeds) >= MIN_ENTRIES else 0.0
        if speed < SLOW_SHARE * usual:
            self._slow_entries += 1
        else:
            self._slow_entries = 0
        self._speeds.append(speed)
        text = f"slow: {speed:,.0f} tokens/s, usual is {usual:,.0f}"
        return self._alert_at_start("slow", self._slow_entries >= SLOW_ENTRIES, text)

    def _check_validation_loss(self, loss: float) -> tuple[str, str] | None:
        if not math.isfinite(loss) or not self._losses.values:
            return None

        recent = list(self._losses.values)[-MIN_ENTRIES:]
        training_loss = sum(recent) / len(recent)
        if self._best is None or loss < self._best[0]:
            self._best = (loss, training_loss)
            self._rising_evaluations = 0
        elif loss > self._best[0] + MIN_RISE * abs(self._best[0]) and training_loss < self._best[1]:
            self._rising_evaluations += 1
        else:
            self._rising_evaluations = 0

        best_loss, training_loss_then = self._best
        text = (
            f"overfitting: the validation loss rises ({best_loss:.4g} to {loss:.4g}) while the training loss falls "
            f"({training_loss_then:.4g} to {training_loss:.4g})"
        )
        return self._alert_at_start("overfitting", self._rising_evaluations >= RISING_EVALUATIONS, text)


class AlertCallback(TrainerCallback):
    """Apply `AlertRules` in the main process. Stands behind the callbacks that add numbers to the logs."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.rules = AlertRules()

    def on_train_begin(self, args, state, control, **kwargs):
        self.rules = AlertRules()
        for entry in state.log_history:  # from before a resume: these have been reported
            self.rules.check_entry(entry)
        self.rules.start_session()
        if state.is_world_process_zero:
            truncate_after_step(alerts_file(args.output_dir), state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not self.trainer.is_in_train:
            return
        for alert in self.rules.check_entry({**logs, "step": state.global_step}):
            alert.time = round(time.time(), 3)
            append_row(alerts_file(args.output_dir), asdict(alert))
            self._report_alert(args, alert)

    def _report_alert(self, args, alert: Alert) -> None:
        """Print an alert, and send it to TensorBoard and wandb where they are used."""
        if alert.kind != "skipped_update":  # the guard that skips it prints more about it
            print_main(f"!! step {alert.step:,}: {alert.text}")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("alerts", alert.text, alert.step)
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                wandb.run.alert(title=f"{alert.kind} at step {alert.step}", text=alert.text, level="WARN")
