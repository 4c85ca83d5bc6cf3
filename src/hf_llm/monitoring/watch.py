"""One call that puts a training under observation."""

import os
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from hf_llm.monitoring.samples import SampleCallback, Samples
from hf_llm.monitoring.throughput import ThroughputCallback


def watch(
    trainer: Trainer,
    flops_per_token: float | None = None,
    bytes_per_token: float | None = None,
    likelihood: bool = True,
    samples: Samples | None = None,
) -> None:
    """Add throughput and samples to a trainer's logs, and have TensorBoard and wandb write to `logs/` in its output
    folder.

    `flops_per_token`, `bytes_per_token` and `likelihood` as `ThroughputCallback` takes them. TENSORBOARD_LOGGING_DIR
    and WANDB_DIR win where they are set.
    """
    handler, folder = trainer.callback_handler, Path(trainer.args.output_dir) / "logs"
    # Before the reporters: one added the usual way comes after they have logged. 0 decides when to log, evaluate and
    # save.
    handler.callbacks.insert(1, ThroughputCallback(trainer, flops_per_token, bytes_per_token, likelihood))
    if samples is not None and samples.prompts:
        handler.add_callback(SampleCallback(trainer, samples))
    for callback in handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
    if "wandb" in trainer.args.report_to and "WANDB_DIR" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DIR"] = str(folder)
