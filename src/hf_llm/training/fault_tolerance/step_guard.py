"""Check every optimizer update: drop it where loss or gradient is bad, and stop where a process received a signal."""

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
from hf_llm.training.fault_tolerance.loss_spikes import RecentSteps, SpikeSection
from hf_llm.training.fault_tolerance.preemption import SignalListener, let_workers_exit_quietly

MAX_BAD_UPDATES_IN_A_ROW = 5

# In fp16 the loss scaler halves its scale after each update whose gradients are not finite, from 65,536 at first: about
# 16 updates bring it to 1. After so many in a row it has found no scale at which they are finite.
MAX_OVERFLOWS_IN_A_ROW = 30


class StepGuard(TrainerCallback):
    """Drop an update that is not finite or is an outlier; save and stop once any process has received a signal.

    A step may make several updates, each from a part of its micro-batches (`hf_llm.training.batch_rampup`); each update
    is tested. All processes agree on it in one all-reduce of five numbers, read in one device synchronisation.

    To drop an update is to remove all gradients, so that the optimizer changes neither weights nor moments. The step
    still counts for schedule and data. After `patience` updates in a row that are not finite the training stops with a
    UserError.

    DeepSpeed has made its update, or skipped it by itself, before this callback is called. So there a skipped update is
    only counted, and outliers are not tested for.
    """

    def __init__(
        self, trainer: Trainer, signals: SignalListener, spikes: SpikeSection, patience: int = MAX_BAD_UPDATES_IN_A_ROW
    ):
        self.trainer = trainer
        self.signals = signals
        self.patience = patience
        self.recent = RecentSteps(SpikeSection(sigma=None) if trainer.is_deepspeed_enabled else spikes)
        self.stop_signal = 0  # the signal that all processes agreed to stop for
        self.skipped = 0  # updates dropped since the training began
        self.bad_in_a_row = 0  # how many updates in a row were not finite, up to now
        self.overflows_in_a_row = 0  # how many updates in a row the loss scaler has dropped, up to now

        self._drop_reason = ""  # why this step's update is dropped; empty where it is not
        self._log_is_due = False  # whether the log entry of a dropped step was postponed to the next step
        self._heartbeat = Heartbeat(Path(trainer.args.output_dir))
        self._grad_norm: torch.Tensor | float = 0.0  # this update's, before clipping
        self._micro_batches = 0  # micro-batches since the last update
        self._loss_scale = 0.0  # of fp16's loss scaler, after the last update

        # Callbacks see neither the gradient norm before clipping nor the micro-batches, and the trainer may be anyone's
        # (TRL's too), so these two methods are replaced on the instance. docs/reliability.md lists what replaces what.
        trainer._get_grad_norm = self._keep_grad_norm(trainer._get_grad_norm)
        trainer.training_step = self._count_micro_batches(trainer.training_step)

    def _keep_grad_norm(self, get_norm: Callable) -> Callable:
        @wraps(get_norm)
        def get_grad_norm(*args: Any, **kwargs: Any) -> torch.Tensor | float | None:
            norm = get_norm(*args, **kwargs)
            if norm is None:
                self._grad_norm = 0.0
            elif isinstance(norm, DTensor):
                self._grad_norm = norm.full_tensor()
            else:
                self._grad_norm = norm
            return norm

        return get_grad_norm

    def _count_micro_batches(self, run_step: Callable) -> Callable:
        @wraps(run_step)
        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            self._micro_batches += 1
            return run_step(*args, **kwargs)

        return training_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.skipped = max((entry.get("skipped_steps", 0) for entry in state.log_history), default=0)
        self.bad_in_a_row = 0
        self.overflows_in_a_row = 0
        scaler = self.trainer.accelerator.scaler
        self._loss_scale = 0.0 if scaler is None else scaler.get_scale()
        self._drop_reason = ""
        self._log_is_due = False
        let_workers_exit_quietly(kwargs["train_dataloader"])

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._drop_reason = ""
        self._begin_update()

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._heartbeat.write_if_due(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        share_of_step = self._micro_batches / self.trainer.current_gradient_accumulation_steps
        is_bad, loss, grad_norm = self._reduce_checks()

        if is_bad:
            self.bad_in_a_row += 1
            reason = "loss or gradient not finite"
        else:
            self.bad_in_a_row = 0
            reason = self.recent.find_outlier(loss / share_of_step, grad_norm)
        if reason:
            self._drop_reason = reason
            self._drop_update(state, share_of_step)

        self._begin_update()

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Count the updates that the loss scaler drops; raise UserError after too many in a row."""
        if not self._has_overflowed(args):
            self.overflows_in_a_row = 0
            return

        self.overflows_in_a_row += 1
        if self.overflows_in_a_row >= MAX_OVERFLOWS_IN_A_ROW:
            raise UserError(
                f"the gradients were not finite in {self.overflows_in_a_row} updates in a row, up to step "
                f"{state.global_step + 1}, however small the scale of the loss; none of them changed the weights. "
                f"{self._last_good_checkpoint()}\n"
                "  float16 holds no number above 65,504: train in bf16 where the device can, or in float32 "
                "(fp16: false), or lower the learning rate."
            )

    def _has_overflowed(self, args: TrainingArguments) -> bool:
        """Return whether the loss scaler has dropped this update; False without one.

        It lowers its scale then. (accelerate does not see it with a fused optimizer, which drops the update itself.)
        """
        accelerator = self.trainer.accelerator
        if self.trainer.is_deepspeed_enabled:
            return bool(args.fp16 and accelerator.optimizer_step_was_skipped)
        if accelerator.scaler is None:
            return False
        scale_before = self._loss_scale
        self._loss_scale = accelerator.scaler.get_scale()
        return self._loss_scale < scale_before

    def _begin_update(self) -> None:
        self._loss_before = self.trainer._tr_loss.clone()
        self._micro_batches = 0

    def _reduce_checks(self) -> tuple[bool, float, float]:
        """Let all processes agree on this update, and on whether to stop (`stop_signal`).

        Returns whether the update is not finite in any process, its part of the step's loss, and its gradient norm.
        """
        loss = self.trainer._tr_loss - self._loss_before
        checks = [
            self._is_not_finite(),
            float(self.signals.received == signal.SIGTERM),
            float(self.signals.received == signal.SIGINT),
            loss,
            self._grad_norm,
        ]
        checks = torch.stack([torch.as_tensor(value, dtype=loss.dtype, device=loss.device) for value in checks])
        bad_share, sigterm_share, sigint_share, loss, grad_norm = reduce(checks, "mean").tolist()

        self.stop_signal = 0
        if sigterm_share:
            self.stop_signal = int(signal.SIGTERM)
        elif sigint_share:
            self.stop_signal = int(signal.SIGINT)
        return bool(bad_share), loss, grad_norm

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self._drop_reason:
            self._report_dropped_update(state, control)
        elif self._log_is_due:
            control.should_log = True
            self._log_is_due = False

        self._heartbeat.write_if_due(state.global_step)
        if self.stop_signal:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        # Trainer calls this also where the training stops within an epoch, which then continues after the resume.
        is_inside_epoch = state.epoch % 1 != 0
        if self.stop_signal and is_inside_epoch:
            control.should_log = False
            control.should_evaluate = False
            control.should_save = False

    def agree_to_stop(self) -> int:
        """Return the signal that any process has received so far, 0 for none; all processes call this together."""
        own_signal = max(self.stop_signal, self.signals.received)
        received = torch.tensor(own_signal, device=self.trainer.args.device)
        return reduce(received, "max").item()

    def _is_not_finite(self) -> torch.Tensor:
        """Return a 0-dimensional int tensor on the device: 1 where this process's loss or gradient is not finite."""
        trainer = self.trainer
        bad = ~torch.isfinite(trainer._tr_loss)

        if trainer.is_deepspeed_enabled:
            if not trainer.args.fp16:
                bad = bad | trainer.accelerator.optimizer_step_was_skipped
        elif trainer.accelerator.scaler is None:  # with fp16, the loss scaler tests gradients and expects overflows
            gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
            gradients = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
            # The 2-norm: on a CPU the maximum takes twenty times as long.
            norm = torch.nn.utils.get_total_norm(gradients)
            bad = bad | ~torch.isfinite(norm).to(bad.device)
        return bad.int()

    def _drop_update(self, state: TrainerState, share_of_step: float) -> None:
        """Remove the update's gradient and loss. Raises UserError where DeepSpeed has applied the update already."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled and not trainer.accelerator.optimizer_step_was_skipped:
            raise UserError(
                f"the loss of step {state.global_step + 1} is not finite, but DeepSpeed has made the step, so the "
                f"weights are lost. {self._last_good_checkpoint()}"
            )

        for parameter in trainer.model.parameters():
            parameter.grad = None

        # Trainer logs a sum of losses, divided by the number of steps. If this update's loss stayed in the sum, the
        # mean would be NaN from here on; if its steps stayed in the number, its loss would count as 0.
        trainer._tr_loss.copy_(self._loss_before)
        trainer._globalstep_last_logged += share_of_step
        trainer._initial_global_step += share_of_step
        self.skipped += 1

    def _report_dropped_update(self, state: TrainerState, control: TrainerControl) -> None:
        """Log `skipped_steps`, and postpone this step's own log entry, whose gradient norm may not be finite.

        Raises UserError after too many updates in a row that are not finite.
        """
        self._log_is_due = self._log_is_due or control.should_log
        Trainer.log(self.trainer, {"skipped_steps": self.skipped})  # TRL's `log` would add its collected metrics to it
        control.should_log = False
        print_main(f"step {state.global_step}: {self._drop_reason}, update dropped ({self.skipped} so far)")

        if self.bad_in_a_row >= self.patience:
            raise UserError(
                f"loss or gradient was not finite in {self.bad_in_a_row} steps in a row, up to step "
                f"{state.global_step}; none of them changed the weights. {self._last_good_checkpoint()}\n"
                "  Look at the data of these steps, lower the learning rate or max_grad_norm, or leave fp16 for bf16."
            )

    def _last_good_checkpoint(self) -> str:
        complete = complete_checkpoints(self.trainer.args.output_dir)
        if not complete:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {complete[-1]}."
