"""Complete fixed prompts while a model trains; the completions are printed, logged, and kept in `samples.jsonl`.

A masked language model or an encoder-decoder fills in the masked tokens or spans of the prompts instead.
"""

import torch
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from hf_llm.core.console import print_main
from hf_llm.core.jsonl import append_row, samples_file, truncate_after_step
from hf_llm.inference.infill import complete_or_infill
from hf_llm.monitoring.callbacks.samples_section import SamplesSection
from hf_llm.monitoring.callbacks.undisturbed import undisturbed_training


class SampleCallback(TrainerCallback):
    """Complete the prompts greedily after every `samples.every`-th evaluation.

    Each completion is a line `{"step", "prompt", "text"}` of `samples.jsonl`. Only the main process generates. The
    model's mode and the state of every random number generator are restored, so that a run is the same bit for bit with
    and without samples. There are no samples under ZeRO-3, FSDP, tensor and pipeline parallelism, where no process
    holds all weights.
    """

    def __init__(self, trainer: Trainer, samples: SamplesSection):
        self.trainer = trainer
        self.samples = samples
        self._evaluations = 0
        self._is_disabled = weights_are_sharded(trainer)
        if self._is_disabled:
            print_main("no samples during training: no single process of this launch holds the weights")

    def on_train_begin(self, args, state, control, **kwargs):
        self._evaluations = 0
        if state.is_world_process_zero:
            truncate_after_step(samples_file(args.output_dir), state.global_step)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if self._is_disabled or not self.trainer.is_in_train:
            return
        is_due = self._evaluations % self.samples.every == 0
        self._evaluations += 1
        if is_due and state.is_world_process_zero:
            self._record_samples(args, state.global_step, self._complete_prompts(model))

    def _complete_prompts(self, model: torch.nn.Module) -> list[str]:
        """Complete the prompts without any effect on the training."""
        with undisturbed_training(model):
            return complete_or_infill(
                model, self.trainer.processing_class, self.samples.prompts, self.samples.max_new_tokens
            )

    def _record_samples(self, args, step: int, completions: list[str]) -> None:
        """Print the completions, write them to `samples.jsonl`, and send them to TensorBoard and wandb."""
        rows = []
        for prompt, completion in zip(self.samples.prompts, completions, strict=True):
            row = {"step": step, "prompt": prompt, "text": completion}
            append_row(samples_file(args.output_dir), row)
            print_main(f"[step {step}] {prompt} ▸{completion}")
            rows.append(row)

        markdown = "\n\n".join(f"**{row['prompt']}**{row['text']}" for row in rows)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("samples", markdown, step)
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
