"""Write Trainer's log to `logs/metrics.jsonl`, entry by entry, while it trains."""

import time
from typing import Any

import torch
from transformers import TrainerCallback

from hf_llm.core.jsonl import append_row, metrics_file, read_rows, replace_rows


class JsonlCallback(TrainerCallback):
    """Write `logs/metrics.jsonl` in the main process. Must come after the callbacks that add numbers to the logs."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return

        # After a resume the file begins with the checkpoint's log history, which has no times: those are taken from the
        # file. Later rows are dropped, since their steps are repeated.
        path = metrics_file(args.output_dir)
        times = {_entry_key(row): row["time"] for row in read_rows(path) if "time" in row and "step" in row}
        history = [{"time": times.get(_entry_key(entry)), **entry} for entry in state.log_history]
        replace_rows(path, [{"training": describe_training(args, state)}, *history])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            row = {"step": state.global_step, "time": round(time.time(), 3), **logs}
            append_row(metrics_file(args.output_dir), row)


def describe_training(args, state) -> dict[str, Any]:
    """Describe a training for the programs that watch it: the first row of `metrics.jsonl`."""
    is_cuda = args.device.type == "cuda"
    return {
        "max_steps": state.max_steps,
        "processes": args.world_size,
        "device": torch.cuda.get_device_name(args.device) if is_cuda else args.device.type,
        "learning_rate": args.learning_rate,
        "started": round(time.time(), 3),
    }


def _entry_key(entry: dict[str, Any]) -> tuple[int, str]:
    """Return the step and the kind of a log entry, which together identify it."""
    kind = next((name for name in ("loss", "eval_loss", "train_runtime") if name in entry), "other")
    return entry["step"], kind
