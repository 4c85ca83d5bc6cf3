"""Model folders to the Hub. Rights are checked before training, and a failed upload costs nothing but the upload."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from transformers import TrainingArguments

from hf_llm.errors import UserError
from hf_llm.lifecycle import say

FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError)  # the last is what a failed large file raises
LEFT_HERE = ["checkpoint-*", "logs/*", "rows/*", "*.tmp", "run_status.json"]


def create_repository(arguments: TrainingArguments, where: str) -> None:
    """Create the repository that `arguments` name, or find it there: so a wrong name or token is known at once."""
    name = arguments.hub_model_id or f"{Path(arguments.output_dir).parent.name}-{Path(arguments.output_dir).name}"
    try:
        repository = HfApi().create_repo(name, private=arguments.hub_private_repo, exist_ok=True)
    except (*FAILURES, HFValidationError, LocalTokenNotFoundError) as error:
        raise UserError(
            f"{where}.training.hub_model_id: {name} cannot be pushed to: {' '.join(str(error).split())}\n"
            "  Log in with `hf auth login` or set HF_TOKEN (with write access), or take push_to_hub out."
        ) from None
    arguments.hub_model_id = repository.repo_id


def push(repository: str, folder: Path) -> None:
    """Upload a finished model folder, without its checkpoints. Raises UserError with the command that does it later."""
    try:
        url = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Finished model",
            ignore_patterns=list(LEFT_HERE),
            delete_patterns=["training_args.bin"],  # pushed by Trainer beside each checkpoint
        )
    except FAILURES as error:
        excluded = " ".join(f"--exclude '{pattern}'" for pattern in LEFT_HERE)
        raise UserError(
            f"the model is finished in {folder}, but its upload to {repository} failed: "
            f"{' '.join(str(error).split())}\n  Upload it later with: hf upload {repository} {folder} {excluded}"
        ) from None
    say(f"pushed: {url}")
