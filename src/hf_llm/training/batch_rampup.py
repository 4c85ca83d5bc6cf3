"""Ramp up the batch size or the sequence length over the first steps of a pretraining.

Every step takes `tokens_per_step` tokens even during a ramp-up, so that steps, learning rate, data and checkpoints are
the same as without one, and a resume stays exact. Within a step the batch-size ramp-up (`pretrain.batch_warmup`) makes
several optimizer updates; the sequence-length ramp-up (`pretrain.context_warmup`) cuts every window into several
shorter ones. Both sizes grow in powers of two, and each size lasts for an equal part of the ramp-up's steps.

A smaller batch at first: https://arxiv.org/abs/2005.14165 (table 2.1), https://arxiv.org/abs/1812.06162. Shorter
sequences: https://arxiv.org/abs/2108.06084, https://arxiv.org/abs/2310.00576, https://arxiv.org/abs/2503.15450.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.parallel.layout import read_layout
from hf_llm.training.sections import Rampup

CONTEXT_KEY = "pretrain.context_warmup"
BATCH_KEY = "pretrain.batch_warmup"


def add_rampup_callbacks(
    trainer: Trainer, context: int, tokens_per_step: int, context_warmup: Rampup | None, batch_warmup: Rampup | None
) -> None:
    """Let a PretrainingTrainer, whose windows have `context` tokens, start with shorter windows or smaller updates.

    Raises UserError where a ramp-up does not divide them, or the launch does not allow it.
    """
    if context_warmup is not None:
        trainer.context_rampup = ContextRampup(trainer, context_warmup, context)
        trainer.add_callback(trainer.context_rampup)
    if batch_warmup is not None:
        trainer.batch_rampup = BatchRampup(trainer, batch_warmup, tokens_per_step)
        trainer.add_callback(trainer.batch_rampup)


def context_lengths(context: int, rampup: Rampup | None) -> list[int]:
    """Return the lengths that sequences will have, the shortest first."""
    divisor = 1
    if rampup is not None:
        divisor = rampup.initial_divisor(context, CONTEXT_KEY)
    return [context >> power for power in reversed(range(divisor.bit_length()))]


def first_step_updates(tokens_per_step: int, rampup: Rampup | None) -> int:
    """Return how many optimizer updates the first step makes."""
    if rampup is None:
        return 1
    return rampup.initial_divisor(tokens_per_step, BATCH_KEY)


class ContextRampup(TrainerCallback):
    """Cut the windows of the first steps into shorter ones of equal length, as soon as they are fetched.

    PretrainingTrainer fetches through `cut_batches`; as a callback, this prints each new length.
    """

    def __init__(self, trainer: Trainer, rampup: Rampup, context: int):
        rampup.initial_divisor(context, CONTEXT_KEY)  # raises UserError where the windows cannot be cut

        layout = read_layout()
        if layout.context * layout.sequence * layout.pipeline > 1:
            raise UserError(
                f"{CONTEXT_KEY} does not run where a window is spread over processes, or in a pipeline; leave "
                "it out, or launch with ddp, zero2, zero3 or fsdp2"
            )
        if trainer.model.config.is_encoder_decoder:
            raise UserError(f"{CONTEXT_KEY}: an encoder-decoder's windows cannot be cut; leave it out")

        self._trainer = trainer
        self._rampup = rampup
        self._context = context
        self._printed_length = 0

    def cut_batches(self, batches: Iterator[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield `batches` with their windows cut to the length of the coming step."""
        divisor = self._rampup.step_divisor(self._trainer.state.global_step, self._context)
        return (cut_windows(batch, divisor) for batch in batches)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        length = self._context // self._rampup.step_divisor(state.global_step, self._context)
        if length != self._printed_length:
            print_main(f"from step {state.global_step + 1} on: sequences of {length:,} tokens")
            self._printed_length = length


def cut_windows(batch: dict[str, torch.Tensor], divisor: int) -> dict[str, torch.Tensor]:
    """Cut each row of a batch of windows (B T) into `divisor` rows (B * divisor, T / divisor)."""
    return {name: values.reshape(-1, values.shape[-1] // divisor) for name, values in batch.items()}


class BatchRampup(TrainerCallback):
    """Make several optimizer updates in each of the first steps, each from an equal part of its micro-batches.

    The additional updates include everything that Trainer's own does: clipping, callbacks (so that guards test each
    update), DDP's and DeepSpeed's reduction of gradients. The learning rate changes only between steps.
    PretrainingTrainer runs every micro-batch through `run_micro_batch`.
    """

    def __init__(self, trainer: Trainer, rampup: Rampup, tokens_per_step: int):
        if read_layout().pipeline > 1:
            raise UserError(f"{BATCH_KEY} does not run in a pipeline, whose steps are whole; leave it out")

        self._trainer = trainer
        self._rampup = rampup
        self._tokens_per_step = tokens_per_step
        self._printed_updates = 0
        self._micro_batches = 0  # micro-batches of the present step, up to now

    def run_micro_batch(
        self,
        training_step: Callable[..., torch.Tensor],
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run Trainer's `training_step` on a micro-batch of a smaller update; return its part of the step's loss."""
        per_step = self._trainer.current_gradient_accumulation_steps
        per_update = self._micro_batches_per_update()
        self._micro_batches += 1
        if per_update == per_step:
            return training_step(model, inputs, num_items_in_batch)

        ends_update = self._micro_batches % per_update == 0
        self._trainer.accelerator.gradient_state._set_sync_gradients(ends_update)

        # The gradient is that of the mean over this update's tokens. The returned loss is scaled to its part of the
        # mean over the whole step's tokens, since Trainer sums the losses of a step.
        items_in_update = None
        if num_items_in_batch is not None:
            items_in_update = num_items_in_batch * per_update / per_step
        self._trainer.current_gradient_accumulation_steps = per_update
        loss = training_step(model, inputs, items_in_update)
        self._trainer.current_gradient_accumulation_steps = per_step
        return loss * per_update / per_step

    def _micro_batches_per_update(self) -> int:
        """Return the number of micro-batches in an update.

        A step at the end of an epoch may have fewer micro-batches than usual; then all of them are one update.
        """
        per_full_step = self._trainer.args.gradient_accumulation_steps
        per_step = self._trainer.current_gradient_accumulation_steps
        if per_step != per_full_step:
            return per_step
        return per_full_step // self._updates_in_step(self._trainer.state.global_step)

    def _updates_in_step(self, step: int) -> int:
        return self._rampup.step_divisor(step, self._tokens_per_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._micro_batches = 0
        updates = self._updates_in_step(state.global_step)
        if updates != self._printed_updates:
            tokens = self._tokens_per_step // updates
            print_main(f"from step {state.global_step + 1} on: updates of {tokens:,} tokens, {updates} per step")
            self._printed_updates = updates
        self._set_gradient_sync()

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self._micro_batches % self._micro_batches_per_update() == 0:
            self._update_weights()
        self._set_gradient_sync()

    def _set_gradient_sync(self) -> None:
        """Reduce the next micro-batch's gradients over the processes only if an update follows it."""
        update_follows = (self._micro_batches + 1) % self._micro_batches_per_update() == 0
        self._trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = update_follows

    def _update_weights(self) -> None:
        """Do what Trainer does at the end of a step, except for the learning-rate schedule."""
        trainer = self._trainer
        args = trainer.args
        state = trainer.state
        handler = trainer.callback_handler
        model = trainer.model_wrapped

        grad_norm = None
        if args.max_grad_norm > 0:
            grad_norm = trainer._clip_grad_norm(model)
        trainer._get_grad_norm(model, grad_norm=grad_norm)

        trainer.control = handler.on_pre_optimizer_step(args, state, trainer.control)
        trainer.optimizer.step()
        trainer.control = handler.on_optimizer_step(args, state, trainer.control)
        model.zero_grad()
