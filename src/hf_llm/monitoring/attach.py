"""Attach to a trainer the callbacks that measure, print and record its training."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.integrations import TensorBoardCallback

from hf_llm.core.jsonl import LOGS
from hf_llm.monitoring.callbacks.alerts import AlertCallback
from hf_llm.monitoring.callbacks.console import ConsoleCallback
from hf_llm.monitoring.callbacks.eta_and_cost import CostCallback
from hf_llm.monitoring.callbacks.gradient_norms import GradientNormCallback
from hf_llm.monitoring.callbacks.jsonl_logger import JsonlCallback
from hf_llm.monitoring.callbacks.samples import SampleCallback, SamplesSection
from hf_llm.monitoring.callbacks.tasks import TaskCallback
from hf_llm.monitoring.callbacks.tasks_section import TasksSection
from hf_llm.monitoring.callbacks.throughput import ThroughputCallback


def attach_callbacks(
    trainer: Trainer,
    flops_per_token: float | Mapping[int, float] | None = None,
    bytes_per_token: float | None = None,
    likelihood: bool = True,
    samples: SamplesSection | None = None,
    tasks: TasksSection | None = None,
    price_per_hour: float | None = None,
    stage_at: Callable[[int], int] | None = None,
) -> None:
    """Add speed, gradient norms, cost, samples and the scores of tasks to a trainer's logs, and record and print them.

    Each entry is printed as one line and written to `logs/metrics.jsonl` while the trainer trains; alerts go to
    `logs/alerts.jsonl`; TensorBoard and wandb write to `logs/` too, unless TENSORBOARD_LOGGING_DIR and WANDB_DIR say
    otherwise.

    `flops_per_token`, `bytes_per_token`, `likelihood` and `stage_at` are those of `ThroughputCallback`;
    `price_per_hour` is that of one device.
    """
    handler = trainer.callback_handler
    log_folder = Path(trainer.args.output_dir) / LOGS

    # Callbacks are called in the order of the list. First comes Trainer's own, which decides when to log, evaluate and
    # save; then the reporters. `add_callback` appends after the reporters, too late to add numbers to what they log, so
    # these are inserted before them. The cost comes before the JSONL log: at a resume it reads the file that the JSONL
    # log then rewrites.
    handler.callbacks[1:1] = [
        ThroughputCallback(trainer, flops_per_token, bytes_per_token, likelihood, stage_at),
        GradientNormCallback(trainer),
        CostCallback(trainer, price_per_hour),
        *([TaskCallback(trainer, tasks)] if tasks is not None and tasks.tasks else []),
        JsonlCallback(),
    ]

    for printer in (PrinterCallback, ProgressCallback):  # a notebook's table stays
        trainer.remove_callback(printer)
    handler.add_callback(AlertCallback(trainer))
    handler.add_callback(ConsoleCallback())
    if samples is not None and samples.prompts:
        handler.add_callback(SampleCallback(trainer, samples))

    for callback in handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(log_folder)
    if "wandb" in trainer.args.report_to and "WANDB_DIR" not in os.environ:
        log_folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DIR"] = str(log_folder)
