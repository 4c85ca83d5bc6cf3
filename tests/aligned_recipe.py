"""The tiny recipe with sections for every way of alignment, and stages run in forked processes: shared by their tests.

The processes are forked from a server that has imported the stages once, so one costs a second or two less.
"""

import gc
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from hf_llm.core.recipe import parse_yaml
from tests.tiny_recipe import ROOT

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
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"hf_llm.{stage}" for stage in STAGES])
    log = folder / f"{stage}.log"
    log.unlink(missing_ok=True)
    process = context.Process(target=_run, args=(stage, ["tiny.yaml", *arguments], folder, log, kill_at))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
    return Ended(process.exitcode, log.read_text())


def _run(stage: str, arguments: list[str], folder: Path, log: Path, kill_at: int | None) -> None:
    gc.freeze()  # Trainer collects garbage before it trains: half a second over all that was imported
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as `python -m` does
    os.environ["HF_HUB_OFFLINE"] = "1"
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    module = importlib.import_module(f"hf_llm.{stage}")
    if kill_at is not None:
        kill_in(kill_at)
    module.main(arguments)


def kill_in(step: int) -> None:
    """Let every Trainer of this process kill it (SIGKILL) when `step` steps are done."""
    from transformers import TrainerCallback, trainer

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.DEFAULT_CALLBACKS.append(Kill)


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["facts"]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, bit for bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
