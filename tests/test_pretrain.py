"""Pretraining as a person launches it: one process or two, and what is said when something is missing or wrong."""

import json
import shutil
import subprocess
import time

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm.core.manifest import file_digest, read_manifest, write_json, write_manifest
from hf_llm.data.tokens.token_shards import Documents, smallest_id_dtype, tokenize_documents, write_shards
from hf_llm.pipeline.run import Run
from tests.fork_server import environment, python
from tests.odd_tokenizers import with_other_words
from tests.tiny_models import tiny_config
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

    command = [python(), "-m", "hf_llm.pretrain", "tiny.yaml", *steps]
    process = subprocess.Popen(command, cwd=prepared, env=environment(), stderr=subprocess.PIPE)
    while not (base / "checkpoint-20").exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert not (base / "manifest.json").exists()

    # In a new interpreter, whose sets have another order.
    done = run_module("hf_llm.pretrain", "tiny.yaml", *steps, folder=prepared, forked=False)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert {file: file_digest(base / file) for file in whole} == whole
    assert losses(base) == whole_losses


@pytest.fixture
def others(prepared):
    """The same folder with the tokens and the tokenizer of another run, `theirs`: other text, as many tokens."""
    tokenizer = with_other_words()
    tokenizer.save_pretrained(prepared / "runs/theirs/tokenizer")
    folder = prepared / "runs/theirs/tokens"
    folder.mkdir()
    documents = Documents.from_texts([f"wombat bilby {number} dugong quokka numbat" for number in range(400)])
    index = {"dtype": "uint16", "vocab_size": 320, "eos_token_id": 1, "prefix": [], "files": {}, "splits": {}}
    index["tokenizer"] = file_digest(prepared / "runs/theirs/tokenizer/tokenizer.json")
    for split in ("train", "validation", "test"):
        batches = tokenize_documents([documents], tokenizer.backend_tokenizer, 1, smallest_id_dtype(320))
        *_, index["splits"][split] = write_shards(folder, f"{split}-00000", batches)
    write_json(folder / "index.json", index)
    write_manifest(folder, folder="tokens", licenses=["their-licence"], settings={}, inputs={}, facts={})
    return prepared


def test_tokens_of_another_tokenizer_are_refused_though_the_sizes_agree(others, refusal):
    said = refusal(
        "hf_llm.pretrain",
        "tiny.yaml",
        "--pretrain.tokens=runs/theirs/tokens",
        "--pretrain.tokenizer=runs/tiny/tokenizer",
        folder=others,
    )
    assert "runs/theirs/tokens was encoded by runs/theirs/tokenizer" in said and "runs/tiny/tokenizer" in said


def test_a_model_of_another_tokenizer_is_not_trained_further(others, refusal):
    config = tiny_config(bos_token_id=None, pad_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(others / "runs/theirs/base")
    with_other_words().save_pretrained(others / "runs/theirs/base")
    model = "--model={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, "
    model += "num_key_value_heads: 2, max_position_embeddings: 128}"
    start = "--pretrain.start_from=runs/theirs/base"
    said = refusal("hf_llm.pretrain", "tiny.yaml", start, model, folder=others)
    assert "pretrain.start_from: runs/theirs/base has another tokenizer than runs/tiny/tokenizer" in said


def test_tokens_bring_their_tokenizer_and_nothing_else_is_made(others):
    """The recipe has a corpus and a tokenizer section; both stay unread."""
    shutil.rmtree(others / "runs/tiny")
    arguments = ("tiny.yaml", "--pretrain.tokens=runs/theirs/tokens", "--pretrain.training.max_steps=2")
    done = run_module("hf_llm.pretrain", *arguments, folder=others)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [folder.name for folder in (others / "runs/tiny").iterdir()] == ["base"]
    theirs = AutoTokenizer.from_pretrained(others / "runs/theirs/tokenizer")
    base = others / "runs/tiny/base"
    assert AutoTokenizer.from_pretrained(base, trust_remote_code=False).get_vocab() == theirs.get_vocab()
    assert read_manifest(base)["licenses"] == ["their-licence"]

    run = Run([str(others / "tiny.yaml"), *arguments[1:]])
    assert not any(run.is_requested(folder) for folder in ("corpus", "tokenizer", "tokens"))
    assert run.is_requested("base") and run.is_requested("evaluation")
