"""One call that puts a training under observation."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.integrations import TensorBoardCallback

from hf_llm.core.jsonl import LOGS
from hf_llm.monitoring.callbacks.alerts import AlertCallback
from hf_llm.monitoring.callbacks.console import LineCallback
from hf_llm.monitoring.callbacks.eta_and_cost import MeterCallback
from hf_llm.monitoring.callbacks.gradient_norms import GradientNormCallback
from hf_llm.monitoring.callbacks.jsonl_logger import RecordCallback
from hf_llm.monitoring.callbacks.samples import SampleCallback, Samples
from hf_llm.monitoring.callbacks.throughput import ThroughputCallback


def watch(
    trainer: Trainer,
    flops_per_token: float | Mapping[int, float] | None = None,
    bytes_per_token: float | None = None,
    likelihood: bool = True,
    samples: Samples | None = None,
    price_per_hour: float | None = None,
    stage_at: Callable[[int], int] | None = None,
) -> None:
    """Add speed, gradient norms, cost and samples to a trainer's logs; print them as one line each, keep them in
    `logs/metrics.jsonl` while it trains, and tell when something goes wrong (`logs/alerts.jsonl`). TensorBoard and
    wandb write to `logs/` too.

    `flops_per_token`, `bytes_per_token`, `likelihood` and `stage_at` as `ThroughputCallback` takes them;
    `price_per_hour` of one device. TENSORBOARD_LOGGING_DIR and WANDB_DIR win where they are set.
    """
    handler, folder = trainer.callback_handler, Path(trainer.args.output_dir) / LOGS
    # Before the reporters: one added the usual way comes after they have logged. 0 decides when to log, evaluate and
    # save. Among these, those that add numbers come first; the record, which a resume rewrites, after the meter.
    handler.callbacks[1:1] = [
        ThroughputCallback(trainer, flops_per_token, bytes_per_token, likelihood, stage_at),
        GradientNormCallback(trainer),
        MeterCallback(trainer, price_per_hour),
        RecordCallback(),
    ]
    for printer in (PrinterCallback, ProgressCallback):  # a notebook's table stays
        trainer.remove_callback(printer)
    handler.add_callback(AlertCallback(trainer))
    handler.add_callback(LineCallback())
    if samples is not None and samples.prompts:
        handler.add_callback(SampleCallback(trainer, samples))
    for callback in handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
    if "wandb" in trainer.args.report_to and "WANDB_DIR" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DIR"] = str(folder)
