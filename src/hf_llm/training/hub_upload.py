"""Upload model folders to the Hub. Rights are checked before training; a failed upload costs only the upload."""

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
]  # patterns of what is not uploaded


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
    """Upload a finished model folder, without its checkpoints. Raises UserError with the command that does it later."""
    set_client_factory(create_http_client)
    try:
        url = call_with_retries(
            lambda: HfApi().upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Finished model",
                ignore_patterns=list(IGNORED_FILES),
                delete_patterns=["training_args.bin"],  # pushed by Trainer beside each checkpoint
            )
        )
    except UPLOAD_ERRORS as error:
        exclude_options = " ".join(f"--exclude '{pattern}'" for pattern in IGNORED_FILES)
        raise UserError(
            f"the model is finished in {folder}, but its upload to {repository} failed: "
            f"{' '.join(str(error).split())}\n  Upload it later with: hf upload {repository} {folder} {exclude_options}"
        ) from None
    print_main(f"pushed: {url}")


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
