"""Estimate how long a training will still take, and add up what it has cost so far."""

import time

from transformers import Trainer, TrainerCallback

from hf_llm.core.jsonl import metrics_file, read_rows
from hf_llm.hardware.energy import EnergyMeter
from hf_llm.monitoring.callbacks.throughput import sum_over_processes

JOULES_PER_KWH = 3.6e6


class CostCallback(TrainerCallback):
    """Add `eta_seconds`, `device_hours`, `cost` and `energy_kwh` to the training logs.

    `device_hours` are hours times processes. There is a `cost` where the price of one device for an hour is known, and
    `energy_kwh` where this host reports it. They add up over all sessions of the training, with steps that were undone
    by a crash and made again, but without the time between sessions. `eta_seconds` follows the pace of this session,
    evaluation and saving included, measured from its first log entry on, since compilation comes before that.
    """

    def __init__(self, trainer: Trainer, price_per_hour: float | None = None):
        self.trainer = trainer
        self.price_per_hour = price_per_hour
        self._session_start: tuple[int, float] | None = None  # step and moment of its beginning
        self._started = time.perf_counter()  # earlier than the first step: a rented machine costs money then too

    def on_train_begin(self, args, state, control, **kwargs):
        is_first = self._session_start is None
        self._session_start = (state.global_step, time.perf_counter())
        self._pace_start = self._session_start
        if not is_first:  # trained before in this process, as after a rollback: time and energy are counted already
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
        start_step, start_time = self._pace_start
        if self._pace_start == self._session_start:
            self._pace_start = (state.global_step, now)  # from the second entry on, the pace is counted from the first
        seconds_per_step = (now - start_time) / (state.global_step - start_step)
        return round(seconds_per_step * (state.max_steps - state.global_step), 1)
