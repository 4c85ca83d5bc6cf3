"""Check the disk that a run writes to, and the right to push to the Hub."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_llm.model.load import build_untrained_model
from hf_llm.planning.cost import disk_bytes
from hf_llm.preflight.findings import Findings
from hf_llm.training.fault_tolerance.checkpoints import estimate_checkpoint_bytes

BYTES_PER_PARAMETER = 4
OPTIMIZER_BYTES_PER_PARAMETER = 8  # two moments of AdamW
LORA_SHARE = 0.05  # of the parameters that adapters have at most, about


def find_existing_folder(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def estimate_model_bytes(config: PreTrainedConfig, section: Any) -> int:
    """Estimate the bytes of a stage's folder at its fullest: the checkpoints that are kept, and the model."""
    with torch.device("meta"):
        parameters = build_untrained_model(config).num_parameters()
    weights = BYTES_PER_PARAMETER * parameters
    trained = parameters
    saved = weights
    if getattr(section, "lora", None) is not None:
        trained = int(parameters * LORA_SHARE)
        saved = BYTES_PER_PARAMETER * trained
    checkpoint = estimate_checkpoint_bytes(saved, trained, OPTIMIZER_BYTES_PER_PARAMETER * trained, "")
    return disk_bytes(checkpoint, section.training, weights)


def check_disk(root: Path, needed: dict[str, int], findings: Findings) -> None:
    """Check that the checkpoints and models of all stages (bytes by folder) have space below `root`."""
    total = sum(needed.values())
    free = shutil.disk_usage(find_existing_folder(root)).free
    if total > free:
        largest = max(needed, key=lambda name: needed[name])
        findings.add_problem(
            f"{largest}.training" if largest != "base" else "pretrain.training",
            f"checkpoints and models of {', '.join(needed)} take about {format_size(total)}, and {root.absolute()} has "
            f"{format_size(free)} free; free some space, run from a folder on a larger disk, or keep fewer checkpoints "
            "(save_total_limit)",
        )


def format_size(size: int) -> str:
    """Return bytes in GB, or in MB where that says more."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
