"""A tiny recipe with its text and chats, and how to run a stage on it: shared by the tests of the stages."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fork_server import ROOT, environment, python

RECIPE = """
name: tiny
seed: 7
corpus:
  sources: [{path: texts, license: cc0-1.0}]
  min_chars: 20
tokenizer: {vocab_size: 320}
model:
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  max_position_embeddings: 128
pretrain:
  tokens_per_step: 1024
  evaluation_tokens: 1024
  samples: {prompts: ["The red fox"], max_new_tokens: 8}
  training:
    {max_steps: 12, learning_rate: 3e-3, eval_steps: 6, save_steps: 4, logging_steps: 2, report_to: none, bf16: false}
sft:
  data: [{path: chats.jsonl, license: mit}]
  evaluation_share: 0.1
  lora: {r: 4, target_modules: all-linear}
  training:
    {max_steps: 4, per_device_train_batch_size: 4, logging_steps: 1, save_steps: 2, report_to: none, bf16: false}
dpo:
  data: [{path: preferences.jsonl, license: mit}]
  evaluation_share: 0.1
  training:
    {max_steps: 3, per_device_train_batch_size: 4, logging_steps: 1, save_steps: 2, report_to: none, bf16: false}
evaluate: {tokens: 1024, prompts: ["What is red?"], max_new_tokens: 8}
"""
SUBJECTS = ("fox", "crow", "river", "king", "stone", "child", "baker", "tower")
COLOURS = ("red", "green", "blue", "white", "golden")
VERBS = ("sees", "follows", "forgets", "carries", "answers", "paints")


def sentence(rng: random.Random) -> str:
    first, second = rng.choice(COLOURS), rng.choice(COLOURS)
    return f"The {first} {rng.choice(SUBJECTS)} {rng.choice(VERBS)} the {second} {rng.choice(SUBJECTS)}."


def write_inputs(folder: Path, documents: int = 400) -> Path:
    """The tiny recipe and what it reads, in `folder`. Returns the recipe's path."""
    rng = random.Random(0)
    (folder / "texts").mkdir(parents=True)
    for number in range(documents):
        text = " ".join(sentence(rng) for _ in range(rng.randint(2, 12)))
        (folder / "texts" / f"{number:04}.txt").write_text(text, encoding="utf-8")
    with open(folder / "chats.jsonl", "w", encoding="utf-8") as file:
        for number in range(60):
            question = {"role": "user", "content": f"Tell me about the {rng.choice(SUBJECTS)}, number {number}."}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": sentence(rng)}]}) + "\n")
    with open(folder / "preferences.jsonl", "w", encoding="utf-8") as file:
        for number in range(60):
            row = {"prompt": f"What is it, {number}?", "chosen": sentence(rng), "rejected": "no " * rng.randint(3, 9)}
            file.write(json.dumps(row) + "\n")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "tiny.yaml"


def run_module(
    module: str, *arguments: str, folder: Path, forked: bool = True, **variables: str
) -> subprocess.CompletedProcess:
    """`python -m module arguments` in `folder`, offline, with its output as text.

    It is a fork of the server that has imported the libraries (tests/fork_server.py), unless `forked` is False.
    """
    return subprocess.run(
        [python() if forked else sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def launch_command(config: str, *arguments: str, processes: int = 2, options: tuple[str, ...] = ()) -> list[str]:
    """The command line of `accelerate launch` with a config of ours, `arguments` after `-m`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file=accelerate_configs/{config}.yaml"]
    if not any(option.startswith("--main_process_port") for option in options):
        options = (*options, "--main_process_port=0")
    return [*command, f"--num_processes={processes}", *options, "-m", *map(str, arguments)]


def launch(
    config: str,
    *arguments: str,
    folder: Path,
    processes: int = 2,
    options: tuple[str, ...] = (),
    **variables: str,
) -> subprocess.CompletedProcess:
    """`accelerate launch` with CPU processes, `options` of its own, and `arguments` after `-m`; all of them forks."""
    command = launch_command(config, *arguments, processes=processes, options=options)
    return subprocess.run(
        [python(), *command[1:]],
        cwd=folder,
        env=environment(**{"DS_ACCELERATOR": "cpu"} | variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def losses(folder: Path, key: str = "loss") -> list[float]:
    """What the log in a model's or a checkpoint's folder has under `key`, in order."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for entry in history if key in entry]


PREPARED = ("corpus", "tokenizer", "tokens")


def prepare(life: Path, folder: Path, made: tuple[str, ...] = PREPARED) -> Path:
    """Put into `folder` the tiny recipe with its inputs, what `life` has `made`, and the configs of the launchers."""
    folder.mkdir(exist_ok=True)
    for item in ("texts", "tiny.yaml", "chats.jsonl", "preferences.jsonl"):
        (folder / item).symlink_to(life / item)
    for item in ("accelerate_configs", "ds_configs"):
        (folder / item).symlink_to(ROOT / item)
    for item in made:
        shutil.copytree(life / "runs/tiny" / item, folder / "runs/tiny" / item)
    return folder
