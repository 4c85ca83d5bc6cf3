"""An unmodified Trainer, trained so that no fault costs more than the steps since the last save, and none goes unseen.

The guards are Trainer callbacks. docs/reliability.md lists the faults, what happens, and the test of
each.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from hf_llm.core.console import print_main
from hf_llm.core.distributed import on_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.status import FAILED, FINISHED, PREEMPTED, RUNNING, write_status
from hf_llm.training.auto_batch_size import fitted
from hf_llm.training.fault_tolerance.checkpoint_callback import NothingLeft, SaveGuard
from hf_llm.training.fault_tolerance.checkpoints import (
    UNDONE,
    as_json,
    check_fingerprint,
    checkpoints,
    complete_checkpoints,
    fault,
    newest_whole,
    set_aside,
    step_of,
)
from hf_llm.training.fault_tolerance.determinism import check_repeatable
from hf_llm.training.fault_tolerance.loss_spikes import Spikes
from hf_llm.training.fault_tolerance.preemption import StopSignals
from hf_llm.training.fault_tolerance.step_guard import StepGuard
from hf_llm.training.hub_upload import put_off_waiting


def train(trainer: Trainer, *, fingerprint: dict[str, Any], keep: int = 2, spikes: Spikes | None = None) -> TrainOutput:
    """Resume from the newest whole checkpoint of `trainer.args.output_dir`, or start; train to the end, guarded.

    `fingerprint` names what must be the same for a checkpoint to be gone on from. `args.save_total_limit`, or `keep`,
    complete checkpoints are kept, never fewer than two. `spikes` says which updates to skip, none where it is left out.
    Told to stop (SIGTERM, Ctrl-C) it saves and raises SystemExit with 128 + the signal's number, so that nothing
    follows as if the training were finished. Raises UserError where the checkpoints are bad, or another training's, the
    disk is full, or loss or gradient stay other than finite.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    check_launch(trainer)
    prepare_arguments(trainer)
    keep, args.save_total_limit = max(2, args.save_total_limit or keep), None
    identity = {
        "fingerprint": as_json(fingerprint),
        "processes": args.world_size,
        "engine": engine(trainer),
        "went back to": args.resume_from_checkpoint,
    }
    checkpoint = on_main(lambda: choose(folder, identity, args.resume_from_checkpoint))
    check_shared(trainer, checkpoint)
    if checkpoint is None:
        check_repeatable(trainer)
    step = step_of(checkpoint) if checkpoint else 0
    print_main(f"resuming at step {step} from {checkpoint}" if checkpoint else f"starting; checkpoints go to {folder}")

    with StopSignals() as signals:
        steps = StepGuard(trainer, signals, spikes or Spikes(sigma=None))
        saves = SaveGuard(trainer, identity, keep, steps.recent)
        write_status(folder, RUNNING, step)
        try:
            output = fitted(trainer, partial(guarded, trainer, steps, saves), checkpoint)
        except (Exception, KeyboardInterrupt) as error:
            error.add_note(place(trainer))
            told = saves.after_failure(error)
            write_status(folder, FAILED, trainer.state.global_step, error=str(told or error))
            if told:
                raise told from error
            raise
        # A signal that came after the last step's agreement is in no process's books yet.
        stopping = steps.agree_to_stop()
        signals.granted = bool(stopping)
    write_status(folder, PREEMPTED if stopping else FINISHED, trainer.state.global_step)
    if stopping:
        print_main(f"stopped at step {trainer.state.global_step}; the same command goes on from there")
        raise SystemExit(128 + stopping)
    return output


def guarded(trainer: Trainer, steps: StepGuard, saves: SaveGuard, checkpoint: Path | None) -> TrainOutput:
    """`trainer.train` from `checkpoint` with the guards added behind all other callbacks, and taken away after."""
    saves.resumed, args = checkpoint, trainer.args
    args.eval_on_start = args.eval_on_start and checkpoint is None  # or a resume would log that evaluation anew
    for guard in (steps, saves):
        trainer.add_callback(guard)
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NothingLeft:
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        trainer.is_in_train = False
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return TrainOutput(trainer.state.global_step, losses[-1] if losses else float("nan"), {})
    finally:
        for guard in (steps, saves):
            trainer.remove_callback(guard)


def place(trainer: Trainer) -> str:
    """Where a training is, to be told beside an error."""
    args = trainer.args
    where = f"This was in or after step {trainer.state.global_step + 1}, in process {args.process_index}"
    if args.world_size == 1:
        return f"{where}."
    return (
        f"{where} of {args.world_size}. If it waited for another in vain, that one has died, or hangs, or is more than "
        f"ddp_timeout = {args.ddp_timeout} s behind."
    )


def choose(folder: Path, identity: dict[str, Any], wanted: str | None) -> Path | None:
    """The checkpoint to go on from: `wanted` (newer ones are set aside), or the newest whole one; None for a start.

    A newest one that was made after going back to `wanted` is gone on from: the same command may be given again.
    """
    if wanted and not has_gone_back(folder, wanted):
        checkpoint = roll_back(folder, Path(wanted))
    else:
        checkpoint = newest_whole(folder)
    if checkpoint:
        check_fingerprint(checkpoint, identity["fingerprint"])
        check_engine(checkpoint, identity)
    return checkpoint


def has_gone_back(folder: Path, wanted: str) -> bool:
    """Whether the newest good checkpoint was made since the training went back to `wanted`; says so."""
    for checkpoint in reversed(complete_checkpoints(folder)):
        if fault(checkpoint) is None:
            since = read_manifest(checkpoint)["went back to"] == wanted
            if since:
                print_main(f"{checkpoint.name} was made since resume_from_checkpoint went back, and is gone on from")
            return since
    return False


def roll_back(folder: Path, wanted: Path) -> Path:
    """Set every checkpoint newer than `wanted` aside, once it is known to be whole."""
    if wanted.resolve() not in [path.resolve() for path in checkpoints(folder)]:
        raise UserError(
            f"resume_from_checkpoint: {wanted} is no checkpoint of {folder}; leave it out to go on from the newest"
        )
    found = fault(wanted)
    if found:
        raise UserError(f"resume_from_checkpoint: {wanted} cannot be gone on from: {found[1]}")
    for newer in checkpoints(folder):
        if step_of(newer) > step_of(wanted):
            set_aside(newer, UNDONE, f"resume_from_checkpoint goes back to step {step_of(wanted)}")
    return wanted


def check_engine(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse a checkpoint in another engine's format; say what a changed number of processes means."""
    was = read_manifest(checkpoint)
    old, new = (was["engine"], was["processes"]), (identity["engine"], identity["processes"])
    if old[0] != new[0] or (old != new and new[0].startswith("ZeRO")):
        raise UserError(
            f"{checkpoint} was saved by {old[0]} with {old[1]} processes; this launch is {new[0]} with {new[1]}, which "
            f"cannot read its optimizer.\n  Launch it as before (--num_processes={old[1]}, the same engine), or start "
            "another training from the weights in it."
        )
    if old != new:
        print_main(f"{old[1]} processes saved, {new[1]} go on: the same data in the same order, other dropout masks")


def engine(trainer: Trainer) -> str:
    """Who lays out the optimizer's state in a checkpoint: `ZeRO-n`, `FSDP`, `DCP` (torch.distributed.checkpoint, under
    tensor and pipeline parallelism) or `torch` (one process, or DDP)."""
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_distributed_loading_by_transformers:
        return "DCP"
    return "FSDP" if trainer.is_fsdp_enabled else "torch"


def check_launch(trainer: Trainer) -> None:
    """Raise UserError where the processes do not know of each other, or one process would split itself over GPUs."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != trainer.accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, and each believes to be one of {trainer.accelerator.num_processes}; "
            "they would write over each other's files.\n  On a CPU, set training.use_cpu=true; on GPUs, see that "
            "there is one for each process (nvidia-smi, CUDA_VISIBLE_DEVICES)."
        )
    if trainer.args.n_gpu > 1:
        raise UserError(
            f"{trainer.args.n_gpu} GPUs and one process: nn.DataParallel is slow and not guarded. Launch one "
            "process per GPU:\n"
            f"  accelerate launch --multi_gpu --num_processes={trainer.args.n_gpu} -m hf_llm.<stage> <recipe>\n"
            "  or show it one of them: CUDA_VISIBLE_DEVICES=0"
        )


def prepare_arguments(trainer: Trainer) -> None:
    """Refuse what would make checkpoints that cannot be gone on from, and keep the Hub's token out of them."""
    args = trainer.args
    if args.save_only_model:
        raise UserError(
            "save_only_model: a checkpoint without optimizer and random states cannot be gone on from; take it out"
        )
    if args.hub_token:  # Trainer writes its arguments, token and all, to training_args.bin in every checkpoint
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    put_off_waiting(trainer)
    args.logging_nan_inf_filter = False  # it logs a NaN as 0 or as the mean of the losses before


def check_shared(trainer: Trainer, checkpoint: Path | None) -> None:
    """Raise UserError in every process where one of them, on another machine, does not see the checkpoint."""
    if checkpoint and trainer.args.world_size > 1:
        blind = torch.tensor(int(not checkpoint.is_dir()), device=trainer.args.device)
        if reduce(blind, "sum").item():
            raise UserError(f"{checkpoint} is not seen by every process; the run's folder must lie on shared storage")
