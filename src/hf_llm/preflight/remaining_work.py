"""What of a run is still to be made."""

from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import STAGES


def has_tokenizer(run: Run) -> bool:
    """Whether the run has its tokenizer, so that tokens of rows can be counted."""
    return read_manifest(run.folder("tokenizer")) is not None


def list_folders(run: Run) -> list[str]:
    """List the folders that the recipe asks for and that are not complete."""
    return [folder for folder in STAGES if run.is_requested(folder) and read_manifest(run.folder(folder)) is None]
