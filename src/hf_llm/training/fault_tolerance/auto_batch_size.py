"""`auto_find_batch_size`: where a micro-batch does not fit in memory, halve it and double the accumulation.

Trainer's own implementation takes a tenth off the micro-batch and keeps the accumulation, so that a step means
something else afterwards, and starts again with the weights as they have become. Here a step stays what it was, and the
training is the one it would have been with the smaller micro-batch from the start.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.parallel.layout import read_layout
from hf_llm.pipeline.stages import STAGES
from hf_llm.training.fault_tolerance.checkpoints import latest_valid_checkpoint


def check_auto_batch_size(settings: dict[str, Any], where: str) -> None:
    """Raise UserError where `auto_find_batch_size` is set for a launch or a stage that cannot have it.

    `settings` are the `training` section of the recipe section `where`.
    """
    if not settings.get("auto_find_batch_size"):
        return

    key = f"{where}.training.auto_find_batch_size"
    if read_layout().processes > 1:
        raise UserError(
            f"{key}: with several processes one may run out of memory alone, and the others would wait for it. Find "
            f"the micro-batch with one process, and set {where}.training.per_device_train_batch_size to it"
        )
    if where in STAGES and STAGES[where].samples_completions:
        raise UserError(f"{key}: this stage samples by the micro-batch; set per_device_train_batch_size instead")


def train_with_auto_batch_size(
    trainer: Trainer, train: Callable[[Path | None], TrainOutput], checkpoint: Path | None = None
) -> TrainOutput:
    """Call `train(checkpoint)`, again with a smaller micro-batch after each out-of-memory error; return its result.

    `train` takes the checkpoint to resume from, None to start. Without `args.auto_find_batch_size` it is called once.
    Raises UserError where a micro-batch of one example does not fit.
    """
    args = trainer.args
    if not args.auto_find_batch_size:
        return train(checkpoint)

    if checkpoint:
        saved_state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        set_micro_batch(trainer, min(saved_state.train_batch_size, args.per_device_train_batch_size))

    snapshot = InitialState(trainer)
    while True:
        args.auto_find_batch_size = False  # or Trainer would catch the error first
        try:
            return train(checkpoint)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        finally:
            args.auto_find_batch_size = True

        # After the `except` block: up to its end the error holds on to the tensors that did not fit.
        shrink_micro_batch(trainer)
        checkpoint = latest_valid_checkpoint(Path(args.output_dir))
        snapshot.restore_trainer(trainer)


def shrink_micro_batch(trainer: Trainer) -> None:
    """Split the step into smaller micro-batches, at most half as large.

    Raises UserError where a micro-batch is one example already.
    """
    args = trainer.args
    old_size = args.per_device_train_batch_size
    step = trainer.state.global_step + 1
    if old_size == 1:
        raise UserError(
            f"out of memory in step {step} with a micro-batch of one example; shorten the context, set "
            "activation_checkpointing, or take a smaller model"
        )

    divisors = [size for size in range(1, old_size // 2 + 1) if old_size % size == 0]
    set_micro_batch(trainer, max(divisors))
    print_main(
        f"out of memory in step {step} with a micro-batch of {old_size}: trying again with "
        f"{args.per_device_train_batch_size}, accumulated {args.gradient_accumulation_steps} times"
    )


def set_micro_batch(trainer: Trainer, size: int) -> None:
    """Split a step into micro-batches of `size` examples, a divisor of the present size."""
    args = trainer.args
    args.gradient_accumulation_steps *= args.per_device_train_batch_size // size
    args.per_device_train_batch_size = size
    args.per_device_eval_batch_size = min(size, args.per_device_eval_batch_size)
    trainer._update_auto_batch_size(size)


class InitialState:
    """What a training starts from: the tensors that it changes, copied to the CPU, and all random states."""

    def __init__(self, trainer: Trainer):
        self.tensors = {name: tensor.to("cpu", copy=True) for name, tensor in changing_tensors(trainer.model)}
        self.python_state = random.getstate()
        self.numpy_state = numpy.random.get_state()
        self.torch_state = torch.get_rng_state()
        self.cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore_trainer(self, trainer: Trainer) -> None:
        """Put a trainer back to this state, without an optimizer."""
        for name, tensor in changing_tensors(trainer.model):
            tensor.copy_(self.tensors[name])

        trainer.optimizer = None
        trainer.lr_scheduler = None
        trainer.callback_handler.optimizer = None

        random.setstate(self.python_state)
        numpy.random.set_state(self.numpy_state)
        torch.set_rng_state(self.torch_state)
        torch.cuda.set_rng_state_all(self.cuda_states)


def changing_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return names and values of a model's trained parameters and of its buffers."""
    parameters = [(name, parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return parameters + list(model.named_buffers())
