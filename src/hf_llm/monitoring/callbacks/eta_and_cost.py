"""Estimate how long a training still takes, and add up what it has cost so far."""

import time

from transformers import Trainer, TrainerCallback

from hf_llm.core.jsonl import metrics_file, read_rows
from hf_llm.hardware.energy import EnergyMeter
from hf_llm.monitoring.callbacks.throughput import sum_over_processes

JOULES_PER_KWH = 3.6e6


class CostCallback(TrainerCallback):
    """Add `eta_seconds`, `device_hours`, `cost` and `energy_kwh` to the training logs.

    `device_hours` are hours times processes; `cost` is there where the price of one device for an hour is known, and
    `energy_kwh` where the machine lets it be read. All of them include steps that a fault undid, and leave out time in
    which nothing ran. `eta_seconds` goes by this session's pace, evaluation and saving included, without its first
    entry, which includes the compilation.
    """

    def __init__(self, trainer: Trainer, price_per_hour: float | None = None):
        self.trainer = trainer
        self.price_per_hour = price_per_hour
        self._session_start: tuple[int, float] | None = None  # step and moment
        self._started = time.perf_counter()  # before the model is loaded: a rented machine is paid for then too

    def on_train_begin(self, args, state, control, **kwargs):
        is_first = self._session_start is None
        self._session_start = (state.global_step, time.perf_counter())
        self._pace_start = self._session_start
        if not is_first:  # started again by this process, whose time and energy have been counted all along
            return

        self._energy = EnergyMeter(args.device, args.local_process_index == 0)
        earlier_rows = []
        if state.is_world_process_zero and state.global_step:
            earlier_rows = read_rows(metrics_file(args.output_dir))
        self._earlier_hours = max((row.get("device_hours") or 0 for row in earlier_rows), default=0)
        self._earlier_kwh = max((row.get("energy_kwh") or 0 for row in earlier_rows), default=0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs or self._session_start is None or state.global_step <= self._session_start[0]:
            return

        now = time.perf_counter()
        hours = self._earlier_hours + (now - self._started) / 3600 * args.world_size
        values = {}
        values["eta_seconds"] = self._estimate_seconds_left(state, now)
        values["device_hours"] = round(hours, 5)
        if self.price_per_hour is not None:
            values["cost"] = round(hours * self.price_per_hour, 4)
        joules = sum_over_processes(self._energy.read_joules(), args.device)
        kwh = self._earlier_kwh + joules / JOULES_PER_KWH
        if kwh:
            values["energy_kwh"] = round(kwh, 6)

        logs.update(values)
        state.log_history[-1].update(values)

    def _estimate_seconds_left(self, state, now: float) -> float:
        step, since = self._pace_start
        if self._pace_start == self._session_start:
            self._pace_start = (state.global_step, now)  # the pace is measured from the first entry on
        seconds_per_step = (now - since) / (state.global_step - step)
        return round(seconds_per_step * (state.max_steps - state.global_step), 1)
