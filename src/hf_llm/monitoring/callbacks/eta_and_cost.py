"""How long a training will go on, and what it has cost so far."""

import time

from transformers import Trainer, TrainerCallback

from hf_llm.core.jsonl import metrics_file, read_rows
from hf_llm.hardware.energy import EnergyMeter
from hf_llm.monitoring.callbacks.throughput import summed

JOULES = 3.6e6  # of a kWh


class MeterCallback(TrainerCallback):
    """Adds to the training logs `eta_seconds`, `device_hours` (hours times processes), `cost` where the price of one
    device for an hour is known, and `energy_kwh` where the machine lets it be read.

    All count what was spent on steps that a fault undid; time in which nothing ran is not counted. `eta_seconds` goes
    by this session's pace, evaluation and saving included, without its first entry, which holds the compilation.
    """

    def __init__(self, trainer: Trainer, price_per_hour: float | None = None):
        self.trainer, self.price_per_hour = trainer, price_per_hour
        self._begun: tuple[int, float] | None = None  # step and moment
        self._started = time.perf_counter()  # with the loading of the model: a rented machine is paid for then too

    def on_train_begin(self, args, state, control, **kwargs):
        first, self._begun = self._begun is None, (state.global_step, time.perf_counter())
        self._paced_from = self._begun
        if not first:  # begun again by this process, whose time and energy have been counted on
            return
        self._energy = EnergyMeter(args.device, args.local_process_index == 0)
        before = read_rows(metrics_file(args.output_dir)) if state.is_world_process_zero and state.global_step else []
        self._hours, self._kwh = (
            max((row.get(name) or 0 for row in before), default=0) for name in ("device_hours", "energy_kwh")
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs or self._begun is None or state.global_step <= self._begun[0]:
            return
        now = time.perf_counter()
        hours = self._hours + (now - self._started) / 3600 * args.world_size
        extra = {"eta_seconds": self._left(state, now), "device_hours": round(hours, 5)}
        if self.price_per_hour is not None:
            extra["cost"] = round(hours * self.price_per_hour, 4)
        kwh = self._kwh + summed(self._energy.joules(), args.device) / JOULES
        if kwh:
            extra["energy_kwh"] = round(kwh, 6)
        logs.update(extra)
        state.log_history[-1].update(extra)

    def _left(self, state, now: float) -> float:
        step, since = self._paced_from
        if self._paced_from == self._begun:
            self._paced_from = (state.global_step, now)
        return round((now - since) / (state.global_step - step) * (state.max_steps - state.global_step), 1)
