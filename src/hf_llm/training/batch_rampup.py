"""What grows over the first steps of a pretraining: the tokens of an optimizer update, and those of a sequence.

A step takes `tokens_per_step` tokens from the first to the last: steps, learning rate, data and checkpoints are what
they are without a warm-up, and a resume stays exact. Within a step the batch warm-up makes several updates, the context
warm-up cuts every window into several shorter ones. Both grow in powers of two, each size for an equal part of the
warm-up's steps.

A smaller batch at first: https://arxiv.org/abs/2005.14165 (table 2.1), https://arxiv.org/abs/1812.06162. Shorter
sequences: https://arxiv.org/abs/2108.06084, https://arxiv.org/abs/2310.00576, https://arxiv.org/abs/2503.15450.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.parallel.layout import launched_layout

CONTEXT, BATCH = "pretrain.context_warmup", "pretrain.batch_warmup"


@dataclass
class Warmup:
    """A number of tokens that doubles until it is what the recipe says elsewhere."""

    start: int = field(metadata={"help": "tokens in the first step"})
    steps: int = field(metadata={"help": "until it is full grown"})

    def __post_init__(self) -> None:
        if self.start < 1 or self.steps < 1:
            raise ValueError(f"start and steps are above 0; got {self.start} and {self.steps}")

    def first_divisor(self, end: int, key: str) -> int:
        """What `end` is divided by at first. Raises UserError, naming `key`, unless that is a power of two."""
        ratio, rest = divmod(end, self.start)
        if rest or ratio & (ratio - 1):
            possible = [str(end >> doublings) for doublings in range(1, 9) if end % (1 << doublings) == 0]
            raise UserError(
                f"{key}.start: {self.start} does not become {end} by doublings; "
                + (f"one of {', '.join(possible)} does" if possible else f"{end} is odd")
            )
        return ratio

    def divisor(self, step: int, end: int) -> int:
        """What `end` is divided by in `step`, from 0."""
        doublings = (end // self.start).bit_length() - 1
        return 1 << max(0, doublings - step * doublings // self.steps)


def warm_up(
    trainer: Trainer, context: int, tokens_per_step: int, context_warmup: Warmup | None, batch_warmup: Warmup | None
) -> None:
    """Let a trainer of windows of `context` tokens begin with shorter ones, or with smaller updates. Raises UserError
    where a warm-up does not divide them, or the launch does not allow it."""
    if context_warmup is not None:
        trainer.add_callback(ContextWarmup(trainer, context_warmup, context))
    if batch_warmup is not None:
        trainer.add_callback(BatchWarmup(trainer, batch_warmup, tokens_per_step))


def lengths_of(context: int, warmup: Warmup | None) -> list[int]:
    """The lengths that sequences will have, the shortest first."""
    shortest = 1 if warmup is None else warmup.first_divisor(context, CONTEXT)
    return [context >> doublings for doublings in reversed(range(shortest.bit_length()))]


def updates_of(tokens_per_step: int, warmup: Warmup | None) -> int:
    """How many updates the first step makes."""
    return 1 if warmup is None else warmup.first_divisor(tokens_per_step, BATCH)


class ContextWarmup(TrainerCallback):
    """Cuts the windows of the first steps into shorter ones of equal length, as soon as they are fetched."""

    def __init__(self, trainer: Trainer, warmup: Warmup, context: int):
        warmup.first_divisor(context, CONTEXT)
        layout = launched_layout()
        if layout.context * layout.sequence * layout.pipeline > 1:
            raise UserError(
                f"{CONTEXT} does not run where a window is spread over processes, or in a pipeline; leave "
                "it out, or launch with ddp, zero2, zero3 or fsdp2"
            )
        if trainer.model.config.is_encoder_decoder:
            raise UserError(f"{CONTEXT}: an encoder-decoder's windows cannot be cut; leave it out")
        self._divisor = partial(warmup.divisor, end=context)
        self._context, self._said = context, 0
        self._state = lambda: trainer.state
        trainer.get_batch_samples = self._cut(trainer.get_batch_samples)

    def _cut(self, fetch: Callable) -> Callable:
        @wraps(fetch)
        def get_batch_samples(batches: Iterator[dict], *args: Any, **kwargs: Any) -> tuple[list, Any]:
            divisor = self._divisor(self._state().global_step)
            return fetch(map(partial(cut, divisor=divisor), batches), *args, **kwargs)

        return get_batch_samples

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        length = self._context // self._divisor(state.global_step)
        if length != self._said:
            print_main(f"from step {state.global_step + 1} on: sequences of {length:,} tokens")
            self._said = length


def cut(batch: dict[str, torch.Tensor], divisor: int) -> dict[str, torch.Tensor]:
    """Each row of a batch of windows (B T) as `divisor` rows (B * divisor, T / divisor)."""
    return {name: values.reshape(-1, values.shape[-1] // divisor) for name, values in batch.items()}


class BatchWarmup(TrainerCallback):
    """Makes several optimizer updates in each of the first steps, each of an equal part of its micro-batches.

    An update goes through all that Trainer's own goes through: clipping, callbacks (so that guards judge it), DDP's and
    DeepSpeed's reduction. The learning rate follows the steps.
    """

    def __init__(self, trainer: Trainer, warmup: Warmup, tokens_per_step: int):
        if launched_layout().pipeline > 1:
            raise UserError(f"{BATCH} does not run in a pipeline, whose steps are whole; leave it out")
        self.trainer, self._said, self._batches = trainer, 0, 0
        self._divisor, self._tokens = partial(warmup.divisor, end=tokens_per_step), tokens_per_step
        trainer.training_step = self._shared(trainer.training_step)

    def _share(self) -> int:
        """Micro-batches of an update; all of the step where an epoch ends in it, with fewer."""
        trainer, whole = self.trainer, self.trainer.args.gradient_accumulation_steps
        if trainer.current_gradient_accumulation_steps != whole:
            return trainer.current_gradient_accumulation_steps
        return whole // self._divisor(trainer.state.global_step)

    def _shared(self, step: Callable) -> Callable:
        @wraps(step)
        def training_step(model: torch.nn.Module, inputs: dict, items: torch.Tensor | int | None = None):
            trainer, share, whole = self.trainer, self._share(), self.trainer.current_gradient_accumulation_steps
            self._batches += 1
            if share == whole:
                return step(model, inputs, items)
            trainer.accelerator.gradient_state._set_sync_gradients(self._batches % share == 0)
            # The mean is over the tokens of this update, and its part of the step's loss, which Trainer sums up.
            trainer.current_gradient_accumulation_steps = share
            loss = step(model, inputs, None if items is None else items * share / whole)
            trainer.current_gradient_accumulation_steps = whole
            return loss * share / whole

        return training_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._batches, updates = 0, self._divisor(state.global_step)
        if updates != self._said:
            print_main(
                f"from step {state.global_step + 1} on: updates of {self._tokens // updates:,} tokens, {updates} a step"
            )
            self._said = updates
        self._announce()

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self._batches % self._share() == 0:
            self._update()
        self._announce()

    def _announce(self) -> None:
        """Let the coming micro-batch's gradients be reduced over the processes where an update follows it."""
        follows = (self._batches + 1) % self._share() == 0
        self.trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = follows

    def _update(self) -> None:
        """What Trainer does at the end of a step, but for the schedule."""
        trainer, model = self.trainer, self.trainer.model_wrapped
        args, state, handler = trainer.args, trainer.state, trainer.callback_handler
        norm = trainer._clip_grad_norm(model) if args.max_grad_norm > 0 else None
        trainer._get_grad_norm(model, grad_norm=norm)
        trainer.control = handler.on_pre_optimizer_step(args, state, trainer.control)
        trainer.optimizer.step()
        trainer.control = handler.on_optimizer_step(args, state, trainer.control)
        model.zero_grad()
