"""A save that ends with a whole checkpoint or with none: room asked for first, sealed last, the oldest deleted then."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from safetensors import SafetensorError
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_llm.core.console import is_main_process
from hf_llm.core.distributed import on_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import FILE, read_manifest
from hf_llm.parallel.layout import keep_own_class, launched_layout
from hf_llm.training.fault_tolerance.checkpoints import (
    checkpoint_bytes,
    complete_checkpoints,
    delete,
    rotate,
    seal,
    size_of,
    step_of,
)
from hf_llm.training.fault_tolerance.loss_spikes import RecentSteps


class NothingLeft(Exception):
    """The checkpoint to go on from is that of the last step."""


class SaveGuard(TrainerCallback):
    """Guards every save of a Trainer. `identity` goes into each manifest, and what the `recent` steps were, for a
    resume; `keep` checkpoints are kept, two or more."""

    def __init__(self, trainer: Trainer, identity: dict[str, Any], keep: int, recent: RecentSteps):
        self.trainer, self.identity, self.keep, self.recent = trainer, identity, keep, recent
        self.resumed: Path | None = None  # the checkpoint that is gone on from
        self.saving: Path | None = None  # the checkpoint under way
        self.needed = 0  # bytes it will take

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        keep_own_class(self.trainer.model)
        self.recent.clear()
        state.train_batch_size = args.train_batch_size  # which a resume takes from the checkpoint
        if self.resumed:
            # Trainer forgets the losses since its last log entry; with them, the next entry is what it would have been.
            manifest = read_manifest(self.resumed)
            self.recent.recall(manifest["recent steps"])
            window = manifest["loss since last log"]
            losses, rank = window["per process"], args.process_index
            mean = sum(losses) / len(losses)
            self.trainer._tr_loss.fill_(losses[rank] if len(losses) == args.world_size else mean)
            self.trainer._globalstep_last_logged = window["after step"]
        if state.global_step >= state.max_steps:  # Trainer would make one step too many
            raise NothingLeft

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if control.should_save:
            self._prepare(state)

    on_epoch_end = on_step_end

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.saving = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if args.save_strategy == SaveStrategy.BEST:  # which decides after this whether to save
            self._prepare(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        losses = self.trainer.accelerator.gather(self.trainer._tr_loss.reshape(1)).tolist()
        self.trainer.accelerator.wait_for_everyone()
        if is_main_process():
            window = {"after step": self.trainer._globalstep_last_logged, "per process": losses}
            folder = Path(args.output_dir)
            entries = {**self.identity, "loss since last log": window, "recent steps": self.recent.state()}
            seal(folder / f"checkpoint-{state.global_step}", **entries)
            rotate(folder, self.keep, state.best_model_checkpoint and Path(state.best_model_checkpoint))
        self.saving = None

    def _prepare(self, state: TrainerState) -> None:
        folder = Path(self.trainer.args.output_dir)
        if not self._all_finite():
            raise UserError(
                f"weights or optimizer states are not finite at step {state.global_step}, so no checkpoint is made of "
                f"them; {self._remedy()}"
            )
        self.saving = folder / f"checkpoint-{state.global_step}"
        on_main(self._check_room)

    def _all_finite(self) -> bool:
        states = [value for values in self.trainer.optimizer.state.values() for value in values.values()]
        tensors = [*self.trainer.model.parameters(), *(value for value in states if torch.is_tensor(value))]
        tensors = [part.detach() for tensor in tensors for part in parts_of(tensor)]
        tensors = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        size = torch.nn.utils.get_total_norm(tensors, norm_type=1)  # of which, unlike the 2-norm, nothing overflows
        bad = (~torch.isfinite(size)).int().to(self.trainer.args.device)
        return not reduce(bad, "max").item()

    def _check_room(self) -> None:
        """Raise UserError where the disk has less room than the checkpoint will take."""
        (self.saving / FILE).unlink(missing_ok=True)
        sealed = complete_checkpoints(self.saving.parent)
        # The state of the Trainer, with its history, grows a little from save to save.
        self.needed = size_of(sealed[-1]) * 21 // 20 if sealed else first_size(self.trainer)
        if shutil.disk_usage(self.saving.parent).free < self.needed:
            raise UserError(self.no_room())

    def no_room(self) -> str:
        """What to tell the user when the checkpoint under way does not fit."""
        free = shutil.disk_usage(self.saving.parent).free
        return (
            f"no space left for {self.saving}: it takes about {self.needed:,} bytes, and {free:,} are free. "
            f"Checkpoints made before are as they were.\n  Free some space, or set save_steps higher; {self._remedy()}"
        )

    def after_failure(self, error: BaseException) -> UserError | None:
        """The UserError that tells what `error`, raised while writing a checkpoint, means; the half one is deleted.

        The full disk comes as OSError, as several RuntimeErrors of torch's zip writer, or as safetensors' own error.
        None where nothing was being written, or where another process was waited for in vain.
        """
        if self.saving is None or not _is_of_writing(error):
            return None
        if not self.saving.exists():
            return UserError(self.no_room()) if _says_full(error) else None
        delete(self.saving)
        if _says_full(error) or shutil.disk_usage(self.saving.parent).free < self.needed:
            return UserError(self.no_room())
        return UserError(f"{self.saving} could not be written: {error}\n  Once that is mended, {self._remedy()}")

    def _remedy(self) -> str:
        sealed = [path for path in complete_checkpoints(self.trainer.args.output_dir) if path != self.saving]
        return f"the same command goes on from step {step_of(sealed[-1])}." if sealed else "there is no checkpoint yet."


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that one is made of: a quantised optimizer state of codes and scales, a DTensor of a shard."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # a DTensor's mesh is among them
    return [plain for part in parts if isinstance(part, torch.Tensor) for plain in parts_of(part)]


def first_size(trainer: Trainer) -> int:
    """Bytes that the first checkpoint will take, estimated: with two moments for each trained parameter, and stages of
    a pipeline that are alike."""
    from peft import PeftModel

    trained = weights = 0
    for parameter in trainer.model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor in its place
        trained += count * parameter.requires_grad
        if parameter.requires_grad or not isinstance(trainer.model, PeftModel):
            weights += count * parameter.element_size()
    engine = "deepspeed" if trainer.is_deepspeed_enabled else "fsdp" if trainer.is_fsdp_enabled else ""
    return launched_layout().pipeline * checkpoint_bytes(weights, trained, 8 * trained, engine)


def _is_of_writing(error: BaseException) -> bool:
    return isinstance(error, OSError | SafetensorError) or "inline_container" in str(error)  # torch's zip writer


def _says_full(error: BaseException) -> bool:
    return any(text in str(error) for text in ("No space left", "os error 28", "Disk quota exceeded", "os error 122"))
