"""SFT and DPO as a person runs them: with and without adapters, packed, on rows that are not all usable."""

import json
import math
import re
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from hf_llm.model.load import load_tokenizer
from tests.tiny_models import tiny_model
from tests.tiny_recipe import ROOT, launch, run_module


@pytest.fixture
def pretrained(tiny_life, tmp_path):
    """A folder where the tiny base model is ready and nothing after it."""
    for item in ("texts", "tiny.yaml", "chats.jsonl", "preferences.jsonl"):
        (tmp_path / item).symlink_to(tiny_life / item)
    for item in ("accelerate_configs", "ds_configs"):
        (tmp_path / item).symlink_to(ROOT / item)
    for item in ("corpus", "tokenizer", "tokens", "base"):
        shutil.copytree(tiny_life / "runs/tiny" / item, tmp_path / "runs/tiny" / item)
    return tmp_path


def history(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_full_fine_tuning_on_packed_rows_moves_every_parameter(pretrained):
    full = ("--sft.lora=null", "--sft.training.packing=true", "--sft.training.learning_rate=1e-2")
    done = run_module("hf_llm.sft", "tiny.yaml", *full, folder=pretrained)
    assert done.returncode == 0, done.stdout + done.stderr
    before = load_file(pretrained / "runs/tiny/base/model.safetensors")
    after = load_file(pretrained / "runs/tiny/sft/model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)
    assert not (pretrained / "runs/tiny/sft/adapter").exists()


def test_without_an_sft_section_dpo_starts_from_the_base_with_no_margin(pretrained):
    recipe = (pretrained / "tiny.yaml").read_text()
    (pretrained / "tiny.yaml").unlink()
    (pretrained / "tiny.yaml").write_text(recipe[: recipe.index("sft:")] + recipe[recipe.index("dpo:") :])
    lora = "--dpo.lora={r: 4, target_modules: all-linear}"
    done = run_module("hf_llm.dpo", "tiny.yaml", lora, folder=pretrained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert history(pretrained / "runs/tiny/dpo")[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert (pretrained / "runs/tiny/dpo/adapter/adapter_config.json").exists()


@pytest.mark.parametrize(
    "engine", ["zero2", pytest.param("zero3", marks=pytest.mark.slow), pytest.param("fsdp2", marks=pytest.mark.slow)]
)
def test_two_processes_tune_and_align(pretrained, engine):
    base = load_file(pretrained / "runs/tiny/base/model.safetensors")
    for stage in ("sft", "dpo"):  # the one with adapters, the other without
        done = launch(engine, f"hf_llm.{stage}", "tiny.yaml", folder=pretrained)
        assert done.returncode == 0, done.stdout + done.stderr
        folder = pretrained / "runs/tiny" / stage
        assert json.loads((folder / "manifest.json").read_text())["facts"]["processes"] == 2
        assert all(math.isfinite(entry["loss"]) for entry in history(folder) if "loss" in entry)
        assert not (folder / "rows").exists()
        assert load_file(folder / "model.safetensors").keys() >= base.keys()  # FSDP2 saves a tied head as well
        assert "modeling_hf_llm.HfLlmForCausalLM" in (folder / "config.json").read_text()


def test_rows_without_an_answer_are_counted_and_refused_above_the_share_allowed(pretrained):
    rows = (pretrained / "chats.jsonl").read_text().splitlines()
    question = {"messages": [{"role": "user", "content": "Is anybody there?"}]}
    (pretrained / "some.jsonl").write_text("\n".join([*rows, *[json.dumps(question)] * 6]))
    data = "--sft.data=[{path: some.jsonl, license: mit}]"
    done = run_module("hf_llm.sft", "tiny.yaml", data, folder=pretrained)
    assert done.returncode == 2
    assert "6 of 66 rows cannot be used (6 no answer)" in done.stderr
    done = run_module("hf_llm.sft", "tiny.yaml", data, "--sft.allow_drop=0.1", folder=pretrained)
    assert done.returncode == 0, done.stderr
    facts = json.loads((pretrained / "runs/tiny/sft/manifest.json").read_text())["facts"]
    assert facts["rows"]["dropped"] == {"no answer": 6}


def edit_template(base):
    path = base / "chat_template.jinja"
    path.write_text(re.sub(r"{%-? (end)?generation %}", "", path.read_text()))


def edit_pad(base):
    """Let the end of text be the padding, and leave no special token that could be used instead."""
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = token["content"] in (config["eos_token"], "<|im_start|>", "<|im_end|>")
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("edit", "words"),
    [(edit_template, "marks no assistant text"), (edit_pad, "pad_token and eos_token are both")],
    ids=["no generation marks", "pad is eos"],
)
def test_a_tokenizer_that_teaches_the_wrong_thing_is_refused(pretrained, refusal, edit, words):
    edit(pretrained / "runs/tiny/base")
    assert words in refusal("hf_llm.sft", "tiny.yaml", folder=pretrained)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--sft.data=[{path: nowhere.jsonl, license: mit}]", "nowhere.jsonl"),
        ("--sft.data=[{path: texts, license: mit}]", "texts"),
        ("--sft.data=[]", "sft: data is empty"),
        ("--sft.evaluation_share=0", "sft: evaluation_share is 0.0; hold out a share"),
        ("--sft.data=[{path: chats.jsonl}]", "sft.data[0].license: missing"),
        ("--sft.model=runs/tiny/bass", "runs/tiny/bass"),
        ("--sft.lora.rank=8", "sft.lora.rank: no such key"),
    ],
)
def test_wrong_values_are_refused_by_name(pretrained, refusal, override, words):
    assert words in refusal("hf_llm.sft", "tiny.yaml", override, folder=pretrained)


@pytest.mark.slow
@pytest.mark.parametrize(("balancing", "processes"), [("loss", 1), ("bias", 2)])
def test_experts_are_tuned_by_the_loss_of_the_tokens_alone(pretrained, balancing, processes):
    model = tiny_model(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, expert_balancing=balancing)
    tokenizer = load_tokenizer(pretrained / "runs/tiny/base")
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.save_pretrained(pretrained / "experts")
    tokenizer.save_pretrained(pretrained / "experts")
    command = ("hf_llm.sft", "tiny.yaml", "--sft.model=experts", "--sft.lora=null")
    done = (partial(launch, "ddp") if processes > 1 else run_module)(*command, folder=pretrained)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = pretrained / "runs/tiny/sft"
    assert not any("aux_loss" in entry for entry in history(folder))
    assert not json.loads((folder / "config.json").read_text())["output_router_logits"]
    before, after = model.state_dict(), load_file(folder / "model.safetensors")
    still = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert still == {name for name in before if name.endswith("e_score_correction_bias")}
