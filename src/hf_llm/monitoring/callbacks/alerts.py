"""What goes wrong in a training, told when it does: on the terminal, in `logs/alerts.jsonl`, on the page, in wandb.

The rules look at what is logged and change nothing. A value is compared with the median of the few before it; how far
from those medians the last `WINDOW` values were, and how much that scatters, is known by median and median absolute
deviation, 1.4826 times of which is a normal distribution's standard deviation. Neither a falling curve nor the outliers
that are looked for move them much (Hampel 1974, https://doi.org/10.1080/01621459.1974.10482962).
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
from hf_llm.core.jsonl import alerts_file, append_row, keep_until

WINDOW = 48  # entries
NEAR = 5  # entries that a new one is compared with
FEWEST = 16  # entries before anything can be called unusual
SIGMAS = 8.0  # of a deviation that is known from few values only
LEAST_SPREAD = 0.005  # of the median: a curve as smooth as glass may still move so much
JUMP = 3.0  # times the usual gradient norm, at least
SLOW = 0.5  # of the usual speed
SLOW_ENTRIES = 2  # in a row
RISES = 3  # evaluations in a row above the best one
RISE = 0.005  # of the best validation loss, at least


@dataclass
class Alert:
    """One thing that went wrong: `kind` is the rule's name, `text` what a person reads."""

    step: int
    kind: str
    text: str
    time: float = 0.0


class Recent:
    """The last values of one number, and what the next one may be expected to be."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW)
        self._moves: deque[float] = deque(maxlen=WINDOW)  # of each value from the median of the few before it

    def expected(self) -> tuple[float, float] | None:
        """A value and its robust deviation; None before there are enough values."""
        if len(self._moves) < FEWEST:
            return None
        move = median(self._moves)
        return self._near() + move, 1.4826 * median(abs(other - move) for other in self._moves)

    def add(self, value: float) -> None:
        """Take in the next value."""
        if len(self.values) >= NEAR:
            self._moves.append(value - self._near())
        self.values.append(value)

    def _near(self) -> float:
        return median(list(self.values)[-NEAR:])


class Rules:
    """Looks at a training's log entries one after the other. Each rule speaks when something begins, not while it
    lasts."""

    def __init__(self) -> None:
        self.losses, self.gradients = Recent(), Recent()
        self.speeds: deque[float] = deque(maxlen=WINDOW)
        self._under_way: set[str] = set()
        self._slow = self._rising = 0
        self._skipped: dict[str, float] = {}
        self._best: tuple[float, float] | None = None  # validation loss, and the training loss of that time

    def look(self, entry: dict[str, Any]) -> list[Alert]:
        """What is wrong in this entry of the log, which has a `step`."""
        found = [self._skips(entry)]
        if "loss" in entry:
            found += [self._loss(entry["loss"]), self._gradient(entry.get("grad_norm"))]
            found.append(self._speed(entry.get("tokens_per_second")))
        if "eval_loss" in entry:
            found.append(self._validation(entry["eval_loss"]))
        return [Alert(entry["step"], *alert) for alert in found if alert]

    def new_session(self) -> None:
        """Another machine may have another speed."""
        self._slow = 0
        self.speeds.clear()

    def _begins(self, kind: str, is_so: bool, text: str) -> tuple[str, str] | None:
        if not is_so:
            self._under_way.discard(kind)
            return None
        if kind in self._under_way:
            return None
        self._under_way.add(kind)
        return kind, text

    def _skips(self, entry: dict[str, Any]) -> tuple[str, str] | None:
        found = None
        for key, count in entry.items():
            if key.startswith("skipped_") and count > self._skipped.get(key, 0):
                self._skipped[key] = count
                found = ("skipped_update", f"update dropped ({key.replace('_', ' ')}: {count:g} so far)")
        return found

    def _loss(self, loss: float) -> tuple[str, str] | None:
        if not math.isfinite(loss):
            return self._begins("not_finite", True, f"the loss is {loss}")
        self._under_way.discard("not_finite")
        usual, high, words = self.losses.expected(), False, ""
        if usual:
            high = loss > usual[0] + SIGMAS * max(usual[1], LEAST_SPREAD * abs(usual[0]), 1e-4)
            words = f"loss spike: {loss:.4g}, usual is {usual[0]:.4g} ± {usual[1]:.2g}"
        self.losses.add(loss)
        return self._begins("loss_spike", high, words)

    def _gradient(self, norm: float | None) -> tuple[str, str] | None:
        if norm is None or not math.isfinite(norm) or norm <= 0:
            return None
        usual, high, words = self.gradients.expected(), False, ""
        if usual:  # of logarithms, for norms scatter by factors
            high = math.log(norm) > usual[0] + max(SIGMAS * usual[1], math.log(JUMP))
            words = f"gradient jump: norm {norm:.3g}, usual is {math.exp(usual[0]):.3g}"
        self.gradients.add(math.log(norm))
        return self._begins("gradient_jump", high, words)

    def _speed(self, speed: float | None) -> tuple[str, str] | None:
        if not speed:
            return None
        usual = median(self.speeds) if len(self.speeds) >= FEWEST else 0.0
        self._slow = self._slow + 1 if speed < SLOW * usual else 0
        self.speeds.append(speed)
        words = f"slow: {speed:,.0f} tokens/s, usual is {usual:,.0f}"
        return self._begins("slow", self._slow >= SLOW_ENTRIES, words)

    def _validation(self, loss: float) -> tuple[str, str] | None:
        if not math.isfinite(loss) or not self.losses.values:
            return None
        recent = list(self.losses.values)[-FEWEST:]
        training = sum(recent) / len(recent)
        if self._best is None or loss < self._best[0]:
            self._best, self._rising = (loss, training), 0
        elif loss > self._best[0] + RISE * abs(self._best[0]) and training < self._best[1]:
            self._rising += 1
        else:
            self._rising = 0
        words = (
            f"validation loss rises ({self._best[0]:.4g} to {loss:.4g}) while the training loss falls "
            f"({self._best[1]:.4g} to {training:.4g}): it learns its data by heart"
        )
        return self._begins("overfitting", self._rising >= RISES, words)


class AlertCallback(TrainerCallback):
    """Puts `Rules` on a training: in the main process, after the callbacks that add numbers to the logs."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.rules = trainer, Rules()

    def on_train_begin(self, args, state, control, **kwargs):
        self.rules = Rules()
        for entry in state.log_history:  # told before the resume
            self.rules.look(entry)
        self.rules.new_session()
        if state.is_world_process_zero:
            keep_until(alerts_file(args.output_dir), state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not self.trainer.is_in_train:
            return
        for alert in self.rules.look({**logs, "step": state.global_step}):
            alert.time = round(time.time(), 3)
            append_row(alerts_file(args.output_dir), asdict(alert))
            self._tell(args, alert)

    def _tell(self, args, alert: Alert) -> None:
        if alert.kind != "skipped_update":  # of which the guard that drops it says more
            print_main(f"!! step {alert.step:,}: {alert.text}")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("alerts", alert.text, alert.step)
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                wandb.run.alert(title=f"{alert.kind} at step {alert.step}", text=alert.text, level="WARN")
