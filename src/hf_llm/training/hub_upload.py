"""Model folders to the Hub. Rights are checked before training, and a failed upload costs nothing but the upload."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._http import default_client_factory
from transformers import Trainer, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError

T = TypeVar("T")

FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError)  # the last is what a failed large file raises
PAUSES = (2, 10, 30)  # seconds before each new try
SILENCE_SECONDS = 120.0  # without a byte from the Hub; huggingface_hub would wait for ever
LEFT_HERE = ["checkpoint-*", "logs/*", "rows/*", "*.tmp", "run_status.json"]


def create_repository(arguments: TrainingArguments, where: str) -> None:
    """Create the repository that `arguments` name, or find it there: so a wrong name or token is known at once."""
    name = arguments.hub_model_id or f"{Path(arguments.output_dir).parent.name}-{Path(arguments.output_dir).name}"
    set_client_factory(impatient_client)
    try:
        repository = retried(lambda: HfApi().create_repo(name, private=arguments.hub_private_repo, exist_ok=True))
    except (*FAILURES, HFValidationError, LocalTokenNotFoundError) as error:
        raise UserError(
            f"{where}.training.hub_model_id: {name} cannot be pushed to: {' '.join(str(error).split())}\n"
            "  Log in with `hf auth login` or set HF_TOKEN (with write access), or take push_to_hub out."
        ) from None
    arguments.hub_model_id = repository.repo_id


def push(repository: str, folder: Path) -> None:
    """Upload a finished model folder, without its checkpoints. Raises UserError with the command that does it later."""
    set_client_factory(impatient_client)
    try:
        url = retried(
            lambda: HfApi().upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Finished model",
                ignore_patterns=list(LEFT_HERE),
                delete_patterns=["training_args.bin"],  # pushed by Trainer beside each checkpoint
            )
        )
    except FAILURES as error:
        excluded = " ".join(f"--exclude '{pattern}'" for pattern in LEFT_HERE)
        raise UserError(
            f"the model is finished in {folder}, but its upload to {repository} failed: "
            f"{' '.join(str(error).split())}\n  Upload it later with: hf upload {repository} {folder} {excluded}"
        ) from None
    print_main(f"pushed: {url}")


def put_off_waiting(trainer: Trainer) -> None:
    """Let the end of a training not wait for the upload of a checkpoint: nothing is saved yet that has to be."""
    trainer._finish_current_push = lambda: None


def end_uploads(trainer: Trainer) -> None:
    """Wait for the checkpoint that Trainer is still uploading, which must not come after the finished model."""
    if trainer.push_in_progress is None:
        return
    for job in trainer.push_in_progress.jobs:
        error = job.exception()
        if error is not None:
            print_main(f"the upload of a checkpoint failed, which harms nothing: {' '.join(str(error).split())}")


def impatient_client() -> httpx2.Client:
    """huggingface_hub's HTTP client, with an end to waiting."""
    client = default_client_factory()
    client.timeout = httpx2.Timeout(SILENCE_SECONDS)
    return client


def retried(call: Callable[[], T]) -> T:
    """`call()`, tried again after each of `PAUSES` where the Hub could not be reached or was out of order."""
    for pause in PAUSES:
        try:
            return call()
        except (httpx2.HTTPError, RuntimeError) as error:
            if not may_pass(error):
                raise
            print_main(f"the Hub does not answer ({' '.join(str(error).split())}); trying again in {pause} s")
            time.sleep(pause)
    return call()


def may_pass(error: Exception) -> bool:
    """Whether a failed request may succeed later: no connection, no answer, too many requests, or a server's fault."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError) or (error.__cause__ is not None and may_pass(error.__cause__))
