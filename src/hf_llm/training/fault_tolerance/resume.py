"""Run any Trainer under guards, so that a failure costs at most the steps since the last save and is always reported.

The guards are Trainer callbacks. docs/reliability.md lists the failures, what happens, and the test of each.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hf_llm.core.console import print_main
from hf_llm.core.distributed import run_on_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.monitoring.callbacks.integrations import set_wandb_run
from hf_llm.pipeline.folder_lock import FolderLock
from hf_llm.pipeline.status import FAILED, FINISHED, PREEMPTED, RUNNING, write_status
from hf_llm.training.fault_tolerance.auto_batch_size import train_with_auto_batch_size
from hf_llm.training.fault_tolerance.checkpoint_callback import AlreadyComplete, SaveGuard
from hf_llm.training.fault_tolerance.checkpoints import (
    MIN_CHECKPOINTS_KEPT,
    UNDONE,
    all_checkpoints,
    check_fingerprint,
    checkpoint_step,
    complete_checkpoints,
    convert_to_json,
    latest_valid_checkpoint,
    quarantine,
    verify_checkpoint,
)
from hf_llm.training.fault_tolerance.determinism import warn_of_random_data
from hf_llm.training.fault_tolerance.horizon import check_horizon, find_continued_checkpoint, saved_schedule
from hf_llm.training.fault_tolerance.loss_spikes import SpikeSection
from hf_llm.training.fault_tolerance.preemption import SignalListener
from hf_llm.training.fault_tolerance.step_guard import StepGuard

# The key of a checkpoint's manifest for the checkpoint that its training was rolled back to, if any.
ROLLED_BACK_TO = "went back to"


@dataclass(frozen=True)
class ResumeTerms:
    """What a training accepts of the checkpoint that it is resumed from, beside an equal fingerprint."""

    former_settings: Sequence[str] = ()
    """Digests by which checkpoints of older versions know the settings."""
    extend: bool = False
    """Continue for another number of steps, even where the learning rate was planned otherwise (`check_horizon`)."""
    section: str = "pretrain"
    """The section of the recipe, for errors."""
    on_begin: Callable[[], None] | None = None
    """Called before the first step, once nothing speaks against it."""


def train_with_guards(
    trainer: Trainer,
    *,
    fingerprint: dict[str, Any],
    keep: int = MIN_CHECKPOINTS_KEPT,
    spikes: SpikeSection | None = None,
    terms: ResumeTerms | None = None,
) -> TrainOutput:
    """Resume from the newest valid checkpoint of `trainer.args.output_dir`, or start, and train to the end.

    No other process may train into that folder meanwhile (`FolderLock`).

    A checkpoint is resumed from only where its fingerprint equals `fingerprint`. `args.save_total_limit` complete
    checkpoints are kept (default: `keep`), never fewer than two. `spikes` says which updates to skip; None skips none.
    `terms` say what else is accepted of a checkpoint.

    After SIGTERM or Ctrl-C it saves and raises SystemExit with 128 + the signal's number, so that the stage does not
    continue as if the training had finished. Raises UserError where the checkpoints are bad or belong to another
    training, the disk is full, or loss or gradient remain not finite.
    """
    args = trainer.args
    folder = Path(args.output_dir)
    check_launch(trainer)
    prepare_arguments(trainer)
    expect_tied_weights(trainer)
    keep = max(MIN_CHECKPOINTS_KEPT, args.save_total_limit or keep)
    args.save_total_limit = None  # SaveGuard deletes old checkpoints

    identity = {
        "fingerprint": convert_to_json(fingerprint),
        "processes": args.world_size,
        "engine": engine_name(trainer),
        ROLLED_BACK_TO: args.resume_from_checkpoint,
    }
    locks = []
    run_on_main(lambda: locks.append(FolderLock(folder).acquire()))
    try:
        return _train_in_locked_folder(trainer, identity, keep, spikes or SpikeSection(sigma=None), terms)
    finally:
        for lock in locks:
            lock.release()


def _train_in_locked_folder(
    trainer: Trainer, identity: dict[str, Any], keep: int, spikes: SpikeSection, terms: ResumeTerms | None
) -> TrainOutput:
    """Do what `train_with_guards` does, in a folder that nobody else writes to."""
    args = trainer.args
    terms = terms or ResumeTerms()
    folder = Path(args.output_dir)
    checkpoint = run_on_main(lambda: select_checkpoint(folder, identity, args, terms))
    check_shared_storage(trainer, checkpoint)
    if checkpoint is not None:
        # A warm-up that is a share of the steps stays as long as it was, also where the training becomes longer.
        args.warmup_steps = saved_schedule(checkpoint, args)["warmup"]
    set_wandb_run(folder, args)

    if checkpoint is None:
        warn_of_random_data(trainer)
        first_step = 0
        print_main(f"starting; checkpoints go to {folder}")
    else:
        first_step = checkpoint_step(checkpoint)
        print_main(f"resuming at step {first_step} from {checkpoint}")

    with SignalListener("saving at the end of this step; a second signal stops at once", die_at_second=True) as signals:

        def accept_length(steps: int, resumed_from: Path | None) -> None:
            if resumed_from is not None:
                check_horizon(resumed_from, args, steps, terms.extend, terms.section)
            if terms.on_begin is not None:
                terms.on_begin()

        step_guard = StepGuard(trainer, signals, spikes)
        save_guard = SaveGuard(trainer, identity, keep, step_guard.recent, accept_length)
        write_status(folder, RUNNING, first_step)

        try:
            train = partial(_run_trainer, trainer, step_guard, save_guard)
            output = train_with_auto_batch_size(trainer, train, checkpoint)
        except (Exception, KeyboardInterrupt) as error:
            error.add_note(failure_context(trainer))
            user_error = save_guard.explain_write_error(error)
            write_status(folder, FAILED, trainer.state.global_step, error=str(user_error or error))
            if user_error:
                raise user_error from error
            raise

        # A signal may have come after the last update, when the processes agreed for the last time.
        stop_signal = step_guard.agree_to_stop()
        signals.ignores_sigterm_at_exit = bool(stop_signal)

    write_status(folder, PREEMPTED if stop_signal else FINISHED, trainer.state.global_step)
    if stop_signal:
        print_main(f"stopped at step {trainer.state.global_step}; the same command resumes from there")
        raise SystemExit(128 + stop_signal)
    return output


def _run_trainer(
    trainer: Trainer, step_guard: StepGuard, save_guard: SaveGuard, checkpoint: Path | None
) -> TrainOutput:
    """Call `trainer.train` from `checkpoint`, with the guards as its last callbacks; remove them afterwards."""
    args = trainer.args
    if checkpoint is not None:
        args.eval_on_start = False  # the checkpoint's log has that evaluation already
    save_guard.resumed_from = checkpoint

    trainer.add_callback(step_guard)
    trainer.add_callback(save_guard)
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except AlreadyComplete:
        return _end_training(trainer)
    finally:
        trainer.remove_callback(step_guard)
        trainer.remove_callback(save_guard)


def _end_training(trainer: Trainer) -> TrainOutput:
    """Do what Trainer does after its last step, for a training that a checkpoint has completed."""
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
        trainer._load_best_model()
    trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    trainer.is_in_train = False

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last_loss = losses[-1] if losses else float("nan")
    return TrainOutput(trainer.state.global_step, last_loss, {})


def failure_context(trainer: Trainer) -> str:
    """Return where a training is, as a note for an error: step, process, and what a timeout may mean."""
    args = trainer.args
    text = f"This was in or after step {trainer.state.global_step + 1}, in process {args.process_index}"
    if args.world_size == 1:
        return f"{text}."
    return (
        f"{text} of {args.world_size}. If it timed out waiting for another process, that one has died, or hangs, or is "
        f"more than ddp_timeout = {args.ddp_timeout} s behind."
    )


def select_checkpoint(
    folder: Path, identity: dict[str, Any], arguments: TrainingArguments, terms: ResumeTerms
) -> Path | None:
    """Return the checkpoint to resume from; None to start from scratch.

    That is `arguments.resume_from_checkpoint` (newer ones are quarantined), otherwise the newest valid one. Where the
    training has already been rolled back to that one and made newer checkpoints since, the newest is resumed from, so
    that the same command can be given again. Where `arguments` ask for another number of steps than the training was
    planned for, it is rolled back to the last checkpoint up to which its learning rate is the same, if there is one.
    """
    requested = arguments.resume_from_checkpoint
    if requested and not has_rolled_back(folder, requested):
        checkpoint = roll_back(folder, Path(requested))
    else:
        checkpoint = latest_valid_checkpoint(folder)

    if checkpoint is None:
        return None
    check_fingerprint(checkpoint, identity["fingerprint"], terms.former_settings)
    check_engine(checkpoint, identity)
    if requested or terms.extend:
        return checkpoint

    continued = find_continued_checkpoint(folder, checkpoint, arguments)
    if continued != checkpoint:
        step = checkpoint_step(continued)
        print_main(f"{continued.name} is the last one whose learning rate is that of {arguments.max_steps:,} steps")
        roll_back(folder, continued, f"the training is continued from step {step}, before the decay of its rate")
    return continued


def has_rolled_back(folder: Path, requested: str) -> bool:
    """Whether the newest valid checkpoint was made since the training was rolled back to `requested`; prints so."""
    for checkpoint in reversed(complete_checkpoints(folder)):
        if verify_checkpoint(checkpoint) is not None:
            continue
        is_newer = read_manifest(checkpoint)[ROLLED_BACK_TO] == requested
        if is_newer:
            print_main(
                f"{checkpoint.name} was made since the rollback to resume_from_checkpoint; resuming from it instead"
            )
        return is_newer
    return False


def roll_back(folder: Path, requested: Path, reason: str = "") -> Path:
    """Quarantine every checkpoint newer than `requested`, for a `reason`, and return `requested`.

    Raises UserError where it is not a valid checkpoint of `folder`.
    """
    known_paths = [path.resolve() for path in all_checkpoints(folder)]
    if requested.resolve() not in known_paths:
        raise UserError(
            f"resume_from_checkpoint: {requested} is not a checkpoint of {folder}; leave it out to resume from the "
            "newest"
        )
    verification_error = verify_checkpoint(requested)
    if verification_error:
        _, reason = verification_error
        raise UserError(f"resume_from_checkpoint: {requested} cannot be resumed from: {reason}")

    step = checkpoint_step(requested)
    for checkpoint in all_checkpoints(folder):
        if checkpoint_step(checkpoint) > step:
            quarantine(checkpoint, UNDONE, reason or f"resume_from_checkpoint rolls back to step {step}")
    return requested


def check_engine(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Raise UserError for a checkpoint in another engine's format; print a note for another number of processes."""
    manifest = read_manifest(checkpoint)
    old_engine = manifest["engine"]
    old_processes = manifest["processes"]
    engine = identity["engine"]
    processes = identity["processes"]
    if (old_engine, old_processes) == (engine, processes):
        return

    if old_engine != engine or engine.startswith("ZeRO"):
        raise UserError(
            f"{checkpoint} was saved by {old_engine} with {old_processes} processes; this launch is {engine} with "
            f"{processes}, which cannot read its optimizer.\n  Launch it as before "
            f"(--num_processes={old_processes}, the same engine), or start another training from the weights in it."
        )
    print_main(
        f"{old_processes} processes saved, {processes} continue: the same data in the same order, other dropout masks"
    )


def engine_name(trainer: Trainer) -> str:
    """Return the name of the engine in whose format a checkpoint holds the optimizer's state.

    It is `ZeRO-n`, `FSDP`, `DCP` (torch.distributed.checkpoint, under tensor and pipeline parallelism), or `torch` (one
    process, or DDP).
    """
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_distributed_loading_by_transformers:
        return "DCP"
    if trainer.is_fsdp_enabled:
        return "FSDP"
    return "torch"


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
            "  or let it see only one of them: CUDA_VISIBLE_DEVICES=0"
        )


def prepare_arguments(trainer: Trainer) -> None:
    """Refuse what would make checkpoints that cannot be resumed, and keep the Hub's token out of them."""
    args = trainer.args
    if args.save_only_model:
        raise UserError(
            "save_only_model: a checkpoint without optimizer and random states cannot be resumed; take it out"
        )
    if args.hub_token:
        # Trainer writes its arguments, token and all, to training_args.bin in every checkpoint.
        os.environ["HF_TOKEN"] = args.hub_token
        args.hub_token = None

    args.logging_nan_inf_filter = False  # the filter would log a NaN as 0, or as the mean of earlier losses

    # At the end of `train` Trainer would wait for the upload of a checkpoint, before the model is saved. Here
    # `hub_upload.wait_for_uploads` waits after that. Replaced on the instance, since the trainer may be TRL's.
    trainer._finish_current_push = lambda: None


def expect_tied_weights(trainer: Trainer) -> None:
    """Let the trainer not call weights missing that a checkpoint holds under the name of those they are tied to.

    Replaced on the instance, since the trainer may be TRL's.
    """
    warn = trainer._issue_warnings_after_load

    @wraps(warn)
    def issue_warnings_after_load(load_result: Any) -> None:
        missing = find_missing_weights(trainer.model, load_result.missing_keys)
        warn(load_result._replace(missing_keys=missing))

    trainer._issue_warnings_after_load = issue_warnings_after_load


def find_missing_weights(model: torch.nn.Module, keys: list[str]) -> list[str]:
    """Return those of `keys`, missing from a state dict, whose tensor has no other name that the state dict has."""
    names_of_tensor: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names_of_tensor.setdefault(id(tensor), set()).add(name)

    missing = []
    for names in names_of_tensor.values():
        if names <= set(keys):
            missing += names
    unknown = set(keys) - set().union(*names_of_tensor.values())
    return sorted([*missing, *unknown])


def check_shared_storage(trainer: Trainer, checkpoint: Path | None) -> None:
    """Raise UserError in every process if one of them, on another machine, does not see the checkpoint."""
    if checkpoint is None or trainer.args.world_size == 1:
        return
    is_missing = torch.tensor(int(not checkpoint.is_dir()), device=trainer.args.device)
    if reduce(is_missing, "sum").item():
        raise UserError(f"{checkpoint} is not seen by every process; the run's folder must lie on shared storage")
