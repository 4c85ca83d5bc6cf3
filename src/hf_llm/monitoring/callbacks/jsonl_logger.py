"""Trainer's log, kept in `logs/metrics.jsonl` entry by entry while it trains."""

import time
from typing import Any

import torch
from transformers import TrainerCallback

from hf_llm.core.jsonl import append_row, metrics_file, read_rows, replace_rows


class RecordCallback(TrainerCallback):
    """Writes `logs/metrics.jsonl` in the main process. Stands behind the callbacks that add numbers to the logs."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        path = metrics_file(args.output_dir)
        times = {_key(row): row["time"] for row in read_rows(path) if "time" in row and "step" in row}
        # What a checkpoint remembers is what has happened: rows that came after it are written anew, with their steps.
        kept = [{"time": times.get(_key(entry)), **entry} for entry in state.log_history]
        replace_rows(path, [{"training": training_facts(args, state)}, *kept])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            row = {"step": state.global_step, "time": round(time.time(), 3), **logs}
            append_row(metrics_file(args.output_dir), row)


def training_facts(args, state) -> dict[str, Any]:
    """What a training is, for who watches it from outside."""
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    return {
        "max_steps": state.max_steps,
        "processes": args.world_size,
        "device": device,
        "learning_rate": args.learning_rate,
        "started": round(time.time(), 3),
    }


def _key(entry: dict[str, Any]) -> tuple[int, str]:
    """What tells the entries of a log apart: the step, and the kind of entry."""
    kind = next((name for name in ("loss", "eval_loss", "train_runtime") if name in entry), "other")
    return entry["step"], kind
