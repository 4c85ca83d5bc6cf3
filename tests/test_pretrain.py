"""Pretraining as a person launches it: one process or two, and what is said when something is missing or wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tiny_recipe import ROOT, launch, run_module

from hf_llm.manifest import file_digest

PREPARED = ("corpus", "tokenizer", "tokens")


@pytest.fixture
def prepared(tiny_life, tmp_path):
    """A folder with the tiny recipe and its corpus, tokenizer and tokens; nothing is trained yet."""
    for item in ("texts", "tiny.yaml", "chats.jsonl", "preferences.jsonl"):
        (tmp_path / item).symlink_to(tiny_life / item)
    for item in ("accelerate_configs", "ds_configs"):
        (tmp_path / item).symlink_to(ROOT / item)
    for item in PREPARED:
        shutil.copytree(tiny_life / "runs/tiny" / item, tmp_path / "runs/tiny" / item)
    return tmp_path


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


TWENTY = (
    "--pretrain.training.max_steps=20",
    "--pretrain.training.logging_steps=1",
    "--pretrain.training.save_steps=10",
)


@pytest.mark.parametrize("engine", ["ddp", "zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(prepared, engine):
    """Same tokens per step, so the same losses, whoever makes the step."""
    base, curves = prepared / "runs/tiny/base", []
    for run in (run_module, partial(launch, engine)):
        done = run("hf_llm.pretrain", "tiny.yaml", *TWENTY, folder=prepared)
        assert done.returncode == 0, done.stdout + done.stderr
        curves.append(losses(base))
        base.rename(prepared / f"base-{len(curves)}")
    one, two = curves
    assert len(one) == 20
    assert two == pytest.approx(one, abs=1e-3)
    assert one[-1] < one[0] - 0.5


def test_what_is_missing_is_made_first(tiny_inputs):
    done = run_module("hf_llm.pretrain", "tiny.yaml", "--pretrain.training.max_steps=2", folder=tiny_inputs)
    assert done.returncode == 0, done.stderr
    for folder in (*PREPARED, "base"):
        assert (tiny_inputs / "runs/tiny" / folder / "manifest.json").exists()


def test_several_processes_stop_before_they_meet_where_something_is_missing(prepared):
    shutil.rmtree(prepared / "runs/tiny/tokens")
    done = launch("ddp", "hf_llm.pretrain", "tiny.yaml", folder=prepared)
    assert done.returncode != 0
    assert "python -m hf_llm.tokenize_corpus tiny.yaml" in done.stderr
    assert not (prepared / "runs/tiny/base").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--pretrain.tokens_per_step=1000", "tokens_per_step: 1000 is no multiple of 128"),
        ("--pretrain.training.gradient_accumulation_steps=4", "gradient_accumulation_steps: leave it out"),
        ("--pretrain.training.hub_token=hf_secretsecret", "hub_token: a recipe is saved with every output"),
        ("--pretrain.training.max_step=4", "max_step: no such key; did you mean max_steps?"),
        ("--pretrain.training.learning_rate=fast", "learning_rate: 'fast' does not fit"),
        ("--pretrain.context=4096", "context: 4096 is more than model.max_position_embeddings, 128"),
        ("--model.num_attention_heads=5", "num_attention_heads"),
        ("--model.model_type=qwen33", "did you mean qwen3"),
        ("--pretrain.training.save_total_limit=1", "save_total_limit"),
    ],
)
def test_wrong_values_are_refused_by_name(prepared, override, words):
    done = run_module("hf_llm.pretrain", "tiny.yaml", override, folder=prepared)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_secretsecret" not in done.stdout + done.stderr


def test_another_transformers_architecture_trains_from_scratch(prepared):
    model = "--model={model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 4, n_positions: 128}"
    done = run_module("hf_llm.pretrain", "tiny.yaml", model, "--pretrain.training.max_steps=2", folder=prepared)
    assert done.returncode == 0, done.stderr
    assert json.loads((prepared / "runs/tiny/base/config.json").read_text())["model_type"] == "gpt2"


def test_killed_and_started_again_it_ends_with_the_same_weights(prepared):
    """kill -9 from outside at whatever moment after the first save; then the same command."""
    steps = ("--pretrain.training.max_steps=40", "--pretrain.training.save_steps=10")
    done = run_module("hf_llm.pretrain", "tiny.yaml", *steps, folder=prepared)
    assert done.returncode == 0, done.stderr
    base = prepared / "runs/tiny/base"
    whole = {file: file_digest(base / file) for file in ("model.safetensors", "samples.jsonl")}
    whole_losses = losses(base)
    base.rename(prepared / "undisturbed")

    command = [sys.executable, "-m", "hf_llm.pretrain", "tiny.yaml", *steps]
    process = subprocess.Popen(
        command, cwd=prepared, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
    )
    while not (base / "checkpoint-20").exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (base / "manifest.json").exists()

    done = run_module("hf_llm.pretrain", "tiny.yaml", *steps, folder=prepared)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert {file: file_digest(base / file) for file in whole} == whole
    assert losses(base) == whole_losses
