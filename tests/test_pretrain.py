"""Pretraining as a person launches it: one process or two, and what is said when something is missing or wrong."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from hf_llm.core.manifest import file_digest
from tests.tiny_recipe import launch, losses, run_module


def test_what_is_missing_is_made_first(tiny_inputs):
    done = run_module("hf_llm.pretrain", "tiny.yaml", "--pretrain.training.max_steps=2", folder=tiny_inputs)
    assert done.returncode == 0, done.stderr
    for folder in ("corpus", "tokenizer", "tokens", "base"):
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
        ("--pretrain.tokens_per_step=1000", "tokens_per_step: 1000 is not a multiple of 128"),
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
def test_wrong_values_are_refused_by_name(prepared, refusal, override, words):
    said = refusal("hf_llm.pretrain", "tiny.yaml", override, folder=prepared)
    assert words in said
    assert "hf_secretsecret" not in said


def test_another_transformers_architecture_trains_from_scratch(prepared):
    model = "--model={model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 4, n_positions: 128}"
    done = run_module("hf_llm.pretrain", "tiny.yaml", model, "--pretrain.training.max_steps=2", folder=prepared)
    assert done.returncode == 0, done.stderr
    assert json.loads((prepared / "runs/tiny/base/config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_killed_and_started_again_it_ends_with_the_same_weights(prepared, bf16):
    """kill -9 from outside at whatever moment after the first save; then the same command."""
    steps = (
        "--pretrain.training.max_steps=40",
        "--pretrain.training.save_steps=10",
        f"--pretrain.training.bf16={bf16}",
    )
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
    process.communicate(timeout=60)
    assert not (base / "manifest.json").exists()

    done = run_module("hf_llm.pretrain", "tiny.yaml", *steps, folder=prepared)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert {file: file_digest(base / file) for file in whole} == whole
    assert losses(base) == whole_losses
