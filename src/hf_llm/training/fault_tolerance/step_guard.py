"""What is asked at every optimizer step: are loss and gradient finite and usual, has any process been told to stop?"""

import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.pipeline.status import Heartbeat
from hf_llm.training.fault_tolerance.checkpoints import complete_checkpoints
from hf_llm.training.fault_tolerance.loss_spikes import RecentSteps, Spikes
from hf_llm.training.fault_tolerance.preemption import StopSignals, outlive_by_workers


class StepGuard(TrainerCallback):
    """Drops an update that is not finite or stands out, and saves and stops where any process has been told to stop.

    A step may make several updates, each of a part of its micro-batches (`hf_llm.training.batch_rampup`); each is
    judged.

    All processes agree on it in one all-reduce of five numbers before each optimizer step, and read it in one device
    synchronisation. Dropping means no gradient: the optimizer leaves weights, moments and weight decay alone, while the
    step counts for schedule and data. After `patience` steps in a row that are not finite the training stops with a
    UserError. DeepSpeed has stepped, or skipped the step by itself, before Trainer asks; then the skip is counted only,
    and `spikes` are not looked for.
    """

    def __init__(self, trainer: Trainer, signals: StopSignals, spikes: Spikes, patience: int = 5):
        self.trainer, self.signals, self.patience = trainer, signals, patience
        self.recent = RecentSteps(Spikes(sigma=None) if trainer.is_deepspeed_enabled else spikes)
        self.stopping = 0  # the signal all processes agreed on
        self.skipped = self.in_a_row = 0
        self._dropped, self._log_is_due = "", False  # why this step's update is dropped
        self._heartbeat = Heartbeat(Path(trainer.args.output_dir))
        self._norm: torch.Tensor | float = 0.0  # of this update's gradients, before clipping
        self._batches = 0  # micro-batches since the last update
        # Callbacks never see it, and afterwards it is clipped.
        trainer._get_grad_norm = self._kept(trainer._get_grad_norm)
        trainer.training_step = self._counted(trainer.training_step)

    def _kept(self, norm_of: Callable) -> Callable:
        @wraps(norm_of)
        def get_grad_norm(*args: Any, **kwargs: Any) -> torch.Tensor | float | None:
            norm = norm_of(*args, **kwargs)
            self._norm = 0.0 if norm is None else norm.full_tensor() if isinstance(norm, DTensor) else norm
            return norm

        return get_grad_norm

    def _counted(self, step: Callable) -> Callable:
        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            self._batches += 1
            return step(*args, **kwargs)

        return training_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.skipped = max((entry.get("skipped_steps", 0) for entry in state.log_history), default=0)
        self.in_a_row, self._dropped, self._log_is_due = 0, "", False
        outlive_by_workers(kwargs["train_dataloader"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._loss_before, self._batches, self._dropped = self.trainer._tr_loss.clone(), 0, ""

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._heartbeat.beat(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        part = self._batches / self.trainer.current_gradient_accumulation_steps  # of the step
        bad, loss, norm = self._agree()
        self.in_a_row = self.in_a_row + 1 if bad else 0
        reason = "loss or gradient not finite" if bad else self.recent.judge(loss / part, norm)
        if reason:
            self._dropped = reason
            self._drop(state, part)
        self._loss_before, self._batches = self.trainer._tr_loss.clone(), 0

    def _agree(self) -> tuple[bool, float, float]:
        """Whether this update is finite in every process, its part of the step's loss, its gradient norm; sets
        `stopping`."""
        told = [float(self.signals.received == number) for number in (signal.SIGTERM, signal.SIGINT)]
        loss = self.trainer._tr_loss - self._loss_before
        known = [self._not_finite(), *told, loss, self._norm]
        known = torch.stack([torch.as_tensor(value, dtype=loss.dtype, device=loss.device) for value in known])
        bad, terminate, interrupt, loss, norm = reduce(known, "mean").tolist()
        self.stopping = int(signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0)
        return bool(bad), loss, norm

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self._dropped:
            self._report(state, control)
        elif self._log_is_due:
            control.should_log, self._log_is_due = True, False
        self._heartbeat.beat(state.global_step)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.stopping and state.epoch % 1:  # Trainer ends the epoch although it goes on after the resume
            control.should_log = control.should_evaluate = control.should_save = False

    def agree_to_stop(self) -> int:
        """The signal any process has received so far, 0 for none; all processes call it together."""
        wish = torch.tensor(max(self.stopping, self.signals.received), device=self.trainer.args.device)
        return reduce(wish, "max").item()

    def _not_finite(self) -> torch.Tensor:
        """0-dimensional int tensor on the device: 1 where this process's loss or gradient is not finite, else 0."""
        trainer = self.trainer
        bad = ~torch.isfinite(trainer._tr_loss)
        if trainer.is_deepspeed_enabled:
            if not trainer.args.fp16:
                bad = bad | trainer.accelerator.optimizer_step_was_skipped
        elif trainer.accelerator.scaler is None:  # fp16's loss scaler finds its scale by overflowing
            gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
            gradients = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
            # The 2-norm: on a CPU the maximum takes twenty times as long.
            norm = torch.nn.utils.get_total_norm(gradients)
            bad = bad | ~torch.isfinite(norm).to(bad.device)
        return bad.int()

    def _drop(self, state: TrainerState, part: float) -> None:
        trainer = self.trainer
        if trainer.is_deepspeed_enabled and not trainer.accelerator.optimizer_step_was_skipped:
            raise UserError(
                f"the loss of step {state.global_step + 1} is not finite, and DeepSpeed made the step all the same, so "
                f"the weights are lost. {self._last_good()}"
            )
        for parameter in trainer.model.parameters():
            parameter.grad = None
        # Trainer means the loss over the steps made: it would stay NaN for good, and a dropped one count as 0
        trainer._tr_loss.copy_(self._loss_before)
        trainer._globalstep_last_logged += part
        trainer._initial_global_step += part
        self.skipped += 1

    def _report(self, state: TrainerState, control: TrainerControl) -> None:
        """Log `skipped_steps`; put off this step's own log, which would hold the gradient norm that is not finite."""
        self._log_is_due = self._log_is_due or control.should_log
        Trainer.log(self.trainer, {"skipped_steps": self.skipped})  # not TRL's, which empties its metrics into it
        control.should_log = False
        print_main(f"step {state.global_step}: {self._dropped}, update dropped ({self.skipped} so far)")
        if self.in_a_row >= self.patience:
            raise UserError(
                f"loss or gradient was not finite in {self.in_a_row} steps in a row, up to step {state.global_step}; "
                f"none of them changed the weights. {self._last_good()}\n"
                "  Look at the data of these steps, lower the learning rate or max_grad_norm, or leave fp16 for bf16."
            )

    def _last_good(self) -> str:
        sealed = complete_checkpoints(self.trainer.args.output_dir)
        return f"The last good checkpoint is {sealed[-1]}." if sealed else "There is no checkpoint yet."
