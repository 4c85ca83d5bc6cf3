"""The tiny recipe with sections for every way of alignment, and its stages run or killed: shared by their tests."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from hf_llm.core.recipe import parse_yaml
from tests.fork_server import ROOT, environment, python

TRAINING = {"logging_steps": 1, "save_steps": 2, "report_to": "none", "learning_rate": 1e-2, "bf16": False}
PAIRS = {"data": [{"path": "preferences.jsonl", "license": "mit"}], "evaluation_share": 0.1}
PROMPTS = {"data": [{"path": "chats.jsonl", "license": "mit"}], "evaluation_share": 0.1}
GROUPS = {"max_steps": 4, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8}
SECTIONS = {
    "reward": PAIRS | {"training": TRAINING | {"max_steps": 2, "per_device_train_batch_size": 4}},
    "dpo": PAIRS | {"training": TRAINING | {"max_steps": 4, "per_device_train_batch_size": 4}},
    "kto": PAIRS | {"training": TRAINING | {"max_steps": 4, "per_device_train_batch_size": 4}},
    "grpo": PROMPTS | {"training": TRAINING | GROUPS},
    "rloo": PROMPTS | {"training": TRAINING | GROUPS},
}
STAGES = ("dpo", "kto", "grpo", "rloo")


def chat_model(tiny_life: Path, folder: Path) -> Path:
    """`folder`, where the tiny run has its SFT model and nothing after it, and the recipe a section for every stage."""
    for item in ("texts", "chats.jsonl", "preferences.jsonl"):
        (folder / item).symlink_to(tiny_life / item)
    for item in ("accelerate_configs", "ds_configs"):
        (folder / item).symlink_to(ROOT / item)
    for item in ("corpus", "tokenizer", "tokens", "base", "sft"):
        shutil.copytree(tiny_life / "runs/tiny" / item, folder / "runs/tiny" / item)
    recipe = parse_yaml((tiny_life / "tiny.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe | SECTIONS, sort_keys=False))
    return folder


@dataclass
class Ended:
    """How a stage ended: its exit code (negative: the signal that ended it), and all it printed."""

    code: int
    output: str


def run_stage(stage: str, *arguments: str, folder: Path, kill_at: int | None = None) -> Ended:
    """`python -m hf_llm.<stage> tiny.yaml arguments` in `folder`, killed before its step `kill_at` if that is given."""
    program = [f"hf_llm.{stage}"] if kill_at is None else ["tests.killed_at_step", str(kill_at), f"hf_llm.{stage}"]
    done = subprocess.run(
        [python(), "-m", *program, "tiny.yaml", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return Ended(done.returncode, done.stdout)


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["facts"]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, bit for bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
