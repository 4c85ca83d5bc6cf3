"""Make every save end with a valid checkpoint or with none.

The disk is checked first, the manifest is written last, and only then is the oldest checkpoint deleted.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from safetensors import SafetensorError
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_llm.core.console import is_main_process
from hf_llm.core.distributed import run_on_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import MANIFEST_FILE, read_manifest
from hf_llm.parallel.layout import read_layout, restore_class_name
from hf_llm.training.fault_tolerance.checkpoints import (
    checkpoint_step,
    complete_checkpoints,
    delete_checkpoint,
    delete_old_checkpoints,
    estimate_checkpoint_bytes,
    recorded_bytes,
    write_checkpoint_manifest,
)
from hf_llm.training.fault_tolerance.horizon import SCHEDULE_KEY, decay_start, read_schedule
from hf_llm.training.fault_tolerance.loss_spikes import RecentSteps

# How libraries say that the disk or the quota is exhausted.
DISK_FULL_MESSAGES = ("No space left", "os error 28", "Disk quota exceeded", "os error 122")


class AlreadyComplete(Exception):
    """The checkpoint to resume from is that of the last step, so there is nothing to train."""


class SaveGuard(TrainerCallback):
    """Guard every save of a Trainer.

    `identity` and the `recent` steps are written to each checkpoint's manifest, for a resume. `keep` checkpoints are
    kept, two or more. `accept_length` is called before the first step, with the number of steps and the checkpoint that
    the training is resumed from; it raises UserError where that number does not suit the checkpoint.

    Of a warmup_stable_decay schedule the checkpoint before the decay is made and kept too, from which the training can
    be continued for longer.
    """

    def __init__(
        self,
        trainer: Trainer,
        identity: dict[str, Any],
        keep: int,
        recent: RecentSteps,
        accept_length: Callable[[int, Path | None], None] = lambda steps, checkpoint: None,
    ):
        self.trainer = trainer
        self.identity = identity
        self.keep = keep
        self.accept_length = accept_length
        self.recent = recent
        self.resumed_from: Path | None = None  # the checkpoint that the training was resumed from
        self.saving_to: Path | None = None  # the checkpoint that is being written
        self.bytes_needed = 0  # estimated size of the checkpoint that is being written

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        restore_class_name(self.trainer.model)
        self.recent.forget_steps()
        # The resume has overwritten these with the checkpoint's, and the recipe's may be others now.
        state.train_batch_size = args.train_batch_size
        state.compute_steps(args, state.max_steps)
        self.accept_length(state.max_steps, self.resumed_from)
        if self.resumed_from:
            self._restore_loss_since_log(args)
        if state.global_step >= state.max_steps:  # Trainer would make another step
            raise AlreadyComplete

    def _restore_loss_since_log(self, args: TrainingArguments) -> None:
        """Restore the losses since the last log entry, and the steps that outliers are compared with.

        Trainer does not keep them in a checkpoint. With them, the next log entry is the same as without an
        interruption.
        """
        manifest = read_manifest(self.resumed_from)
        self.recent.load_state_dict(manifest["recent steps"])

        saved = manifest["loss since last log"]
        losses = saved["per process"]
        mean_loss = sum(losses) / len(losses)
        has_same_processes = len(losses) == args.world_size
        self.trainer._tr_loss.fill_(losses[args.process_index] if has_same_processes else mean_loss)
        self.trainer._globalstep_last_logged = saved["after step"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if state.global_step == decay_start(args, state.max_steps) and args.save_strategy != SaveStrategy.NO:
            control.should_save = True
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if control.should_save:
            self._prepare_save(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.saving_to = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if args.save_strategy == SaveStrategy.BEST:  # Trainer decides after this event whether to save
            self._prepare_save(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        losses = self.trainer.accelerator.gather(self.trainer._tr_loss.reshape(1)).tolist()
        self.trainer.accelerator.wait_for_everyone()

        if is_main_process():
            folder = Path(args.output_dir)
            entries = {
                **self.identity,
                "loss since last log": {"after step": self.trainer._globalstep_last_logged, "per process": losses},
                "recent steps": self.recent.state_dict(),
                SCHEDULE_KEY: read_schedule(args, state.max_steps),
            }
            write_checkpoint_manifest(folder / f"checkpoint-{state.global_step}", **entries)

            best = None
            if state.best_model_checkpoint:
                best = Path(state.best_model_checkpoint)
            start_of_decay = decay_start(args, state.max_steps)
            delete_old_checkpoints(folder, self.keep, best, pinned=lambda step: step == start_of_decay)
        self.saving_to = None

    def _prepare_save(self, state: TrainerState) -> None:
        """Raise UserError where the next checkpoint would be bad, or would not fit on the disk."""
        if not self._is_all_finite():
            raise UserError(
                f"weights or optimizer states are not finite at step {state.global_step}, so no checkpoint is made of "
                f"them; {self._resume_hint()}"
            )
        self.saving_to = Path(self.trainer.args.output_dir) / f"checkpoint-{state.global_step}"
        run_on_main(self._check_disk_space)

    def _is_all_finite(self) -> bool:
        """Whether all weights and optimizer states are finite, in every process."""
        tensors = list(self.trainer.model.parameters())
        for parameter_state in self.trainer.optimizer.state.values():
            tensors += [value for value in parameter_state.values() if torch.is_tensor(value)]

        norms = []
        for tensor in tensors:
            for part in plain_parts(tensor):
                if part.is_floating_point() and part.numel():
                    norms.append(one_norm(part.detach()).to(self.trainer.args.device))
        is_bad = (~torch.isfinite(torch.stack(norms)).all()).int()
        return not reduce(is_bad, "max").item()

    def _check_disk_space(self) -> None:
        """Raise UserError where the disk has less room than the checkpoint will take."""
        (self.saving_to / MANIFEST_FILE).unlink(missing_ok=True)

        complete = complete_checkpoints(self.saving_to.parent)
        if complete:
            # 5% more than the last one: Trainer's state holds the log, which grows from save to save.
            self.bytes_needed = recorded_bytes(complete[-1]) * 21 // 20
        else:
            self.bytes_needed = estimate_first_checkpoint_bytes(self.trainer)

        if shutil.disk_usage(self.saving_to.parent).free < self.bytes_needed:
            raise UserError(self._disk_full_message())

    def _disk_full_message(self) -> str:
        free = shutil.disk_usage(self.saving_to.parent).free
        return (
            f"no space left for {self.saving_to}: it takes about {self.bytes_needed:,} bytes, and {free:,} are free. "
            "Checkpoints made before are unchanged.\n"
            f"  Free some space, or set save_steps higher; {self._resume_hint()}"
        )

    def explain_write_error(self, error: BaseException) -> UserError | None:
        """Return the UserError for `error`, raised while a checkpoint was written; delete the incomplete checkpoint.

        A full disk comes as OSError, as one of several RuntimeErrors of torch's zip writer, or as safetensors' own
        error. Returns None where nothing was being written, or where the error is another process's.
        """
        if self.saving_to is None or not _is_write_error(error):
            return None
        if not self.saving_to.exists():
            return UserError(self._disk_full_message()) if _is_disk_full_error(error) else None

        delete_checkpoint(self.saving_to)
        is_disk_full = shutil.disk_usage(self.saving_to.parent).free < self.bytes_needed
        if _is_disk_full_error(error) or is_disk_full:
            return UserError(self._disk_full_message())
        return UserError(
            f"{self.saving_to} could not be written: {error}\n  Once that is repaired, {self._resume_hint()}"
        )

    def _resume_hint(self) -> str:
        checkpoints = complete_checkpoints(self.trainer.args.output_dir)
        usable = [path for path in checkpoints if path != self.saving_to]
        if not usable:
            return "there is no checkpoint yet."
        return f"the same command resumes from step {checkpoint_step(usable[-1])}."


def one_norm(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of magnitudes, which is not finite where any number of `tensor` is not finite.

    It is summed in float32 at least: in float16 it would overflow at 65,504, which is fewer numbers than a large model
    has. Unlike the 2-norm it does not overflow in float32; on a CPU the maximum takes twenty times as long.
    """
    if tensor.element_size() == 1:  # of 8 bits, for which there is no norm
        tensor = tensor.float()
    dtype = None if tensor.element_size() > 4 else torch.float32
    return torch.linalg.vector_norm(tensor, ord=1, dtype=dtype)


def plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor is made of.

    A quantised optimizer state is made of codes and scales, a DTensor of a shard.
    """
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    attribute_names, _ = tensor.__tensor_flatten__()
    plain_tensors = []
    for name in attribute_names:
        attribute = getattr(tensor, name)
        if isinstance(attribute, torch.Tensor):  # a DTensor's mesh is not one
            plain_tensors += plain_parts(attribute)
    return plain_tensors


def estimate_first_checkpoint_bytes(trainer: Trainer) -> int:
    """Estimate the bytes of a training's first checkpoint.

    Assumes two float32 moments for each trained parameter, and pipeline stages that are alike.
    """
    from peft import PeftModel

    is_adapter = isinstance(trainer.model, PeftModel)
    trained = 0
    weight_bytes = 0
    for parameter in trainer.model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor in its place
        if parameter.requires_grad:
            trained += count
        if parameter.requires_grad or not is_adapter:
            weight_bytes += count * parameter.element_size()

    engine = ""
    if trainer.is_deepspeed_enabled:
        engine = "deepspeed"
    elif trainer.is_fsdp_enabled:
        engine = "fsdp"
    return read_layout().pipeline * estimate_checkpoint_bytes(weight_bytes, trained, 8 * trained, engine)


def _is_write_error(error: BaseException) -> bool:
    is_of_zip_writer = "inline_container" in str(error)  # the C++ file of torch's zip writer
    return isinstance(error, OSError | SafetensorError) or is_of_zip_writer


def _is_disk_full_error(error: BaseException) -> bool:
    return any(message in str(error) for message in DISK_FULL_MESSAGES)
