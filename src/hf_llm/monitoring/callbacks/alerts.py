"""Alert when something goes wrong in a training: on the terminal, in `logs/alerts.jsonl`, on the page, in wandb.

The rules read the log entries and change nothing. Spikes are found in three steps (`RecentValues`):

1. The move of a value is its distance from the median of the `NEIGHBOURS` values before it.
2. The usual move is the median of the last `WINDOW_ENTRIES` moves. Their scatter is 1.4826 times their median absolute
   deviation, which for a normal distribution is the standard deviation.
3. A value is a spike where its move is `OUTLIER_SIGMAS` times the scatter above the usual move.

Medians are hardly moved by a falling curve or by the outliers themselves (Hampel 1974,
https://doi.org/10.1080/01621459.1974.10482962).
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

WINDOW_ENTRIES = 48  # how many log entries are remembered
NEIGHBOURS = 5  # how many earlier entries a new one is compared with
MIN_ENTRIES = 16  # how many entries are needed before one can be called unusual

OUTLIER_SIGMAS = 8.0  # deviations from the usual that make a spike; many, since few values estimate the deviation
MIN_LOSS_DEVIATION = 0.005  # least deviation of the loss, as a share of it: smooth curves move this much too
MIN_GRADIENT_JUMP = 3.0  # a gradient norm alerts only above this many times the usual one

SLOW_SHARE = 0.5  # training is slow below this share of the usual speed ...
SLOW_ENTRIES = 2  # ... in this many log entries in a row

RISING_EVALUATIONS = 3  # the model overfits after this many evaluations in a row ...
MIN_RISE = 0.005  # ... whose loss is above the best one by this share


@dataclass
class Alert:
    """One thing that went wrong."""

    step: int
    kind: str
    """The name of the rule."""
    text: str
    """The message for people."""
    time: float = 0.0
    """Seconds since 1970."""


class RecentValues:
    """The last values of one metric, from which the next one is predicted."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW_ENTRIES)
        self._moves: deque[float] = deque(maxlen=WINDOW_ENTRIES)  # each value less the median of the few before it

    def expect_next(self) -> tuple[float, float] | None:
        """Predict the next value and its robust standard deviation; None before there are enough values."""
        if len(self._moves) < MIN_ENTRIES:
            return None
        usual_move = median(self._moves)
        deviation = 1.4826 * median(abs(move - usual_move) for move in self._moves)
        return self._median_of_last() + usual_move, deviation

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
        self._speeds: deque[float] = deque(maxlen=WINDOW_ENTRIES)  # tokens per second
        self._under_way: set[str] = set()  # kinds of alerts that have begun and still last
        self._slow_entries = 0  # how many in a row, up to now
        self._rising_evaluations = 0  # how many in a row, up to now
        self._skip_counts: dict[str, float] = {}  # the last value of each `skipped_...` counter
        self._best: tuple[float, float] | None = None  # best validation loss, and the training loss at that time

    def check_entry(self, entry: dict[str, Any]) -> list[Alert]:
        """Return the alerts that begin with this entry of the log, which has a `step`."""
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

    def _alert_at_start(self, kind: str, is_wrong: bool, text: str) -> tuple[str, str] | None:
        """Return an alert's kind and text where it begins; None while it lasts, and where nothing is wrong."""
        if not is_wrong:
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
            least_deviation = max(deviation, MIN_LOSS_DEVIATION * abs(usual), 1e-4)
            is_spike = loss > usual + OUTLIER_SIGMAS * least_deviation
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
            least_jump = max(OUTLIER_SIGMAS * deviation, math.log(MIN_GRADIENT_JUMP))
            is_jump = math.log(norm) > usual + least_jump
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

        best_loss, training_loss_at_best = self._best
        has_risen = loss > best_loss + MIN_RISE * abs(best_loss)
        if has_risen and training_loss < training_loss_at_best:
            self._rising_evaluations += 1
        else:
            self._rising_evaluations = 0

        text = (
            f"overfitting: the validation loss rises ({best_loss:.4g} to {loss:.4g}) while the training loss falls "
            f"({training_loss_at_best:.4g} to {training_loss:.4g})"
        )
        return self._alert_at_start("overfitting", self._rising_evaluations >= RISING_EVALUATIONS, text)


class AlertCallback(TrainerCallback):
    """Apply `AlertRules` in the main process. Must come after the callbacks that add numbers to the logs."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.rules = AlertRules()

    def on_train_begin(self, args, state, control, **kwargs):
        self.rules = AlertRules()
        for entry in state.log_history:  # from before a resume; their alerts have been reported
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
        if alert.kind != "skipped_update":  # the StepGuard that drops the update prints more about it
            print_main(f"!! step {alert.step:,}: {alert.text}")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("alerts", alert.text, alert.step)
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                wandb.run.alert(title=f"{alert.kind} at step {alert.step}", text=alert.text, level="WARN")
