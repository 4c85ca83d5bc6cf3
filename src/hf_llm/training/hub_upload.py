"""Upload model folders to the Hub. Rights are checked before training; a failed upload costs only the upload."""

import shlex
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._http import default_client_factory
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import STEP_FILE
from hf_llm.training.public_copy import make_public_copy

T = TypeVar("T")

UPLOAD_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError)  # RuntimeError: a large file failed
RETRY_PAUSES_SECONDS = (2, 10, 30)  # before each new try
SILENCE_SECONDS = 120.0  # give up when no byte comes from the Hub for so long; huggingface_hub would wait for ever
IGNORED_FILES = [
    "checkpoint-*",
    "logs/*",
    "rows/*",
    "*.tmp",
    "run_status.json",
    "lock.json*",
    STEP_FILE,
]  # patterns of what is not uploaded
# Files of a checkpoint that only a resume reads.
RESUME_FILES = [
    "optimizer*", "scheduler.pt", "rng_state*", "scaler.pt", "trainer_state.json", "training_args.bin", "manifest.json",
    "global_step*", "latest", "zero_to_fp32.py", "pytorch_model_fsdp*",
]  # fmt: skip


def create_repository(arguments: TrainingArguments, where: str) -> None:
    """Create the repository that `arguments` name, unless it exists, and put its full name into `arguments`.

    Called before training, so that a wrong name or token is known at once. Raises UserError, naming the recipe section
    `where`, where the repository cannot be written to.
    """
    folder = Path(arguments.output_dir)
    name = arguments.hub_model_id or f"{folder.parent.name}-{folder.name}"

    set_client_factory(create_http_client)
    try:
        repository = call_with_retries(
            lambda: HfApi().create_repo(name, private=arguments.hub_private_repo, exist_ok=True)
        )
    except (*UPLOAD_ERRORS, HFValidationError, LocalTokenNotFoundError) as error:
        raise UserError(
            f"{where}.training.hub_model_id: {name} cannot be pushed to: {' '.join(str(error).split())}\n"
            "  Log in with `hf auth login` or set HF_TOKEN (with write access), or take push_to_hub out."
        ) from None
    arguments.hub_model_id = repository.repo_id


def upload_model_folder(repository: str, folder: Path) -> None:
    """Upload a finished model folder, without its checkpoints and without paths of this machine.

    Raises UserError with the command that does it later.
    """
    set_client_factory(create_http_client)
    copy = make_public_copy(folder, IGNORED_FILES)
    try:
        url = call_with_retries(
            lambda: HfApi().upload_folder(
                repo_id=repository,
                folder_path=copy.name,
                commit_message="Finished model",
                delete_patterns=["training_args.bin"],  # older versions pushed it beside each checkpoint
            )
        )
    except UPLOAD_ERRORS as error:
        exclude_options = [option for pattern in IGNORED_FILES for option in ("--exclude", pattern)]
        upload_command = shlex.join(["hf", "upload", repository, str(folder), *exclude_options])
        raise UserError(
            f"the model is finished in {folder}, but its upload to {repository} failed: "
            f"{' '.join(str(error).split())}\n  Upload it later with: {upload_command}"
        ) from None
    finally:
        copy.cleanup()
    print_main(f"pushed: {url}")


def push_checkpoint(trainer: Trainer, checkpoint: str) -> None:
    """Upload the model of a checkpoint in the background, as Trainer does it, but only what anyone may see.

    Trainer would upload the whole output folder, with cached training rows, logs, and a pickle of all settings.
    """
    args = trainer.args
    if not trainer.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
        return
    is_busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if is_busy and not args.hub_always_push:
        return

    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    jobs = [_upload_in_background(trainer, Path(checkpoint), [*IGNORED_FILES, *RESUME_FILES], None)]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        is_last = args.hub_strategy == HubStrategy.CHECKPOINT
        path_in_repo = "last-checkpoint" if is_last else Path(checkpoint).name
        jobs.append(_upload_in_background(trainer, Path(checkpoint), ["training_args.bin"], path_in_repo))

    if is_busy:
        trainer.push_in_progress.jobs.extend(jobs)
    else:
        trainer.push_in_progress = PushInProgress(jobs)


def _upload_in_background(trainer: Trainer, folder: Path, ignored: list[str], path_in_repo: str | None) -> Future:
    copy = make_public_copy(folder, ignored)
    job = HfApi().upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=copy.name,
        path_in_repo=path_in_repo,
        commit_message=f"Training in progress, step {trainer.state.global_step}",
        run_as_future=True,
        revision=trainer.args.hub_revision,
    )
    job.add_done_callback(lambda _: copy.cleanup())
    return job


def wait_for_uploads(trainer: Trainer) -> None:
    """Wait until Trainer has uploaded its checkpoints, which must not arrive after the finished model.

    A failed upload is printed; it is no reason to stop.
    """
    if trainer.push_in_progress is None:
        return
    for job in trainer.push_in_progress.jobs:
        error = job.exception()  # waits for the job's end
        if error is not None:
            print_main(f"the upload of a checkpoint failed, which harms nothing: {' '.join(str(error).split())}")


def create_http_client() -> httpx2.Client:
    """Create huggingface_hub's HTTP client, with a timeout of `SILENCE_SECONDS`."""
    client = default_client_factory()
    client.timeout = httpx2.Timeout(SILENCE_SECONDS)
    return client


def call_with_retries(call: Callable[[], T]) -> T:
    """Return `call()`; after a transient error wait for each of `RETRY_PAUSES_SECONDS` in turn and try again."""
    for pause in RETRY_PAUSES_SECONDS:
        try:
            return call()
        except (httpx2.HTTPError, RuntimeError) as error:
            if not is_transient(error):
                raise
            print_main(f"the Hub does not answer ({' '.join(str(error).split())}); trying again in {pause} s")
            time.sleep(pause)
    return call()


def is_transient(error: Exception) -> bool:
    """Whether a failed request may succeed later: no connection, no answer, too many requests, or a server's error."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    if isinstance(error, httpx2.TransportError):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)
