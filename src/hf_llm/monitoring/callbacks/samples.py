"""Short completions of fixed prompts while a model trains: printed, logged, and kept in `samples.jsonl`.

A model that fills gaps gives the prompts with their masks or sentinels filled.
"""

import random
from dataclasses import dataclass, field

import numpy
import torch
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hf_llm.core.console import print_main
from hf_llm.core.jsonl import append_row, keep_until, samples_file
from hf_llm.inference.infill import write


@dataclass
class Samples:
    """Which prompts to complete during training, and how often. No prompts, no samples."""

    prompts: list[str] = field(default_factory=list)
    every: int = field(default=1, metadata={"help": "evaluations between two sets of samples"})
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if self.every < 1 or self.max_new_tokens < 1:
            raise ValueError("every and max_new_tokens are counted from 1; leave `prompts` out for no samples")


class SampleCallback(TrainerCallback):
    """After every `samples.every`-th evaluation completes the prompts greedily: `{"step", "prompt", "text"}` a line.

    Only the main process generates; the model's mode and every random number generator are put back, so that a run is
    the same bit for bit with and without samples. Under ZeRO-3, FSDP, tensor and pipeline parallelism no process
    holds the weights and there are none.
    """

    def __init__(self, trainer: Trainer, samples: Samples):
        self.trainer = trainer
        self.samples = samples
        self._evaluations = 0
        self._sharded = weights_are_sharded(trainer)
        if self._sharded:
            print_main("no samples during training: no single process of this launch holds the weights")

    def on_train_begin(self, args, state, control, **kwargs):
        self._evaluations = 0
        if state.is_world_process_zero:
            keep_until(samples_file(args.output_dir), state.global_step)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if self._sharded or not self.trainer.is_in_train:
            return
        self._evaluations += 1
        if state.is_world_process_zero and (self._evaluations - 1) % self.samples.every == 0:
            self._keep(args, state.global_step, self._complete(model))

    def _complete(self, model: torch.nn.Module) -> list[str]:
        training, tokenizer = model.training, self.trainer.processing_class
        python, array = random.getstate(), numpy.random.get_state()
        try:
            with torch.random.fork_rng():
                model.eval()
                return write(model, tokenizer, self.samples.prompts, self.samples.max_new_tokens)
        finally:
            model.train(training)
            random.setstate(python)
            numpy.random.set_state(array)

    def _keep(self, args, step: int, texts: list[str]) -> None:
        rows = [{"step": step, "prompt": p, "text": t} for p, t in zip(self.samples.prompts, texts, strict=True)]
        for row in rows:
            append_row(samples_file(args.output_dir), row)
            print_main(f"[step {step}] {row['prompt']} ▸{row['text']}")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                text = "\n\n".join(f"**{row['prompt']}**{row['text']}" for row in rows)
                callback.tb_writer.add_text("samples", text, step)
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                table = wandb.Table(["step", "prompt", "text"], [list(row.values()) for row in rows])
                wandb.log({"samples": table, "train/global_step": step})


def weights_are_sharded(trainer: Trainer) -> bool:
    """Whether the parameters themselves are spread over processes, so that one process alone cannot run the model."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return bool(trainer.is_fsdp_enabled or trainer.is_distributed_loading_by_transformers)
