"""`auto_find_batch_size`: a micro-batch that does not fit the memory is halved, and the accumulation doubled.

Trainer's own way takes a tenth off the micro-batch and leaves the accumulation, so that a step means something else,
and begins again with the weights as they have become. Here a step stays what it was, and the training is the one it
would have been with the smaller micro-batch from the start.
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
from hf_llm.parallel.layout import launched_layout
from hf_llm.pipeline.stages import STAGES
from hf_llm.training.fault_tolerance.checkpoints import newest_whole


def check_fitting(settings: dict[str, Any], where: str) -> None:
    """Raise UserError where `auto_find_batch_size` is set for a launch or a stage that cannot have it."""
    if not settings.get("auto_find_batch_size"):
        return
    key = f"{where}.training.auto_find_batch_size"
    if launched_layout().processes > 1:
        raise UserError(
            f"{key}: with several processes one may run out of memory alone, and the others would wait for it. Find "
            f"the micro-batch with one process, and set {where}.training.per_device_train_batch_size to it"
        )
    if where in STAGES and STAGES[where].samples_completions:
        raise UserError(f"{key}: this stage samples by the micro-batch; set per_device_train_batch_size instead")


def fitted(
    trainer: Trainer, train: Callable[[Path | None], TrainOutput], checkpoint: Path | None = None
) -> TrainOutput:
    """What `train` returns, given the checkpoint to go on from, with the largest micro-batch that fits where
    `args.auto_find_batch_size` asks for it. Raises UserError where not even one row does."""
    args = trainer.args
    if not args.auto_find_batch_size:
        return train(checkpoint)
    if checkpoint:
        found = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).train_batch_size
        set_micro_batch(trainer, min(found, args.per_device_train_batch_size))
    before = Beginning(trainer)
    while True:
        args.auto_find_batch_size = False  # or Trainer would catch the error first
        try:
            return train(checkpoint)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        finally:
            args.auto_find_batch_size = True
        # Behind the except: until here the error holds on to the tensors that did not fit.
        halve(trainer)
        checkpoint = newest_whole(Path(args.output_dir))
        before.restore(trainer)


def halve(trainer: Trainer) -> None:
    """Set a smaller micro-batch for as large a step. Raises UserError where it is one row already."""
    args, micro = trainer.args, trainer.args.per_device_train_batch_size
    step = trainer.state.global_step + 1
    if micro == 1:
        raise UserError(
            f"out of memory in step {step} with a micro-batch of one row; shorten the context, set "
            "activation_checkpointing, or take a smaller model"
        )
    set_micro_batch(trainer, max(n for n in range(1, micro // 2 + 1) if micro % n == 0))
    print_main(
        f"out of memory in step {step} with a micro-batch of {micro}: again with {args.per_device_train_batch_size}, "
        f"accumulated {args.gradient_accumulation_steps} times"
    )


def set_micro_batch(trainer: Trainer, rows: int) -> None:
    """Split a step into micro-batches of `rows`, which divide those of before."""
    args = trainer.args
    args.gradient_accumulation_steps *= args.per_device_train_batch_size // rows
    args.per_device_train_batch_size = rows
    args.per_device_eval_batch_size = min(rows, args.per_device_eval_batch_size)
    trainer._update_auto_batch_size(rows)


class Beginning:
    """What a training starts from: the weights that it changes, on the CPU, and all random states."""

    def __init__(self, trainer: Trainer):
        self.weights = {name: tensor.to("cpu", copy=True) for name, tensor in changing(trainer.model)}
        self.random = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self.devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore(self, trainer: Trainer) -> None:
        """Take a trainer back to it, with no optimizer state."""
        for name, tensor in changing(trainer.model):
            tensor.copy_(self.weights[name])
        trainer.optimizer = trainer.lr_scheduler = trainer.callback_handler.optimizer = None
        random.setstate(self.random[0])
        numpy.random.set_state(self.random[1])
        torch.set_rng_state(self.random[2])
        torch.cuda.set_rng_state_all(self.devices)


def changing(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The trained parameters of a model, and its buffers."""
    trained = [(name, parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return trained + list(model.named_buffers())
