"""The reward stage as a person runs it, and what is made of it."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import ConversationSource
from hf_llm.model.load import load_reward_model, load_tokenizer
from hf_llm.posttraining.reward_functions import RewardModel, load_reward_functions
from hf_llm.posttraining.reward_trainer import encode_pairs, pair_statistics
from hf_llm.reward import RewardSection
from tests.tiny_recipe import PREPARED, launch, prepare, run_module

TRAINING = (
    "max_steps: 12, learning_rate: 1e-2, per_device_train_batch_size: 8, logging_steps: 1, report_to: none, bf16: false"
)
SECTION = (
    "--reward.data=[{path: preferences.jsonl, license: mit}]",
    "--reward.evaluation_share=0.3",
    "--reward.training={" + TRAINING + "}",
)


def from_life(life: Path, folder: Path) -> Path:
    """A folder where the tiny model is there up to SFT."""
    return prepare(life, folder, (*PREPARED, "base", "sft"))


@pytest.fixture
def tuned(tiny_life, tmp_path):
    return from_life(tiny_life, tmp_path)


@pytest.fixture(scope="module")
def judge(tiny_life, tmp_path_factory):
    """A finished reward folder."""
    folder = from_life(tiny_life, tmp_path_factory.mktemp("judge"))
    done = run_module("hf_llm.reward", "tiny.yaml", *SECTION, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/tiny/reward"


def conversation(answer: str) -> tuple[list, list]:
    return [{"role": "user", "content": "What is it, 7?"}], [{"role": "assistant", "content": answer}]


ANSWERS = ["The red fox sees the golden king.", "no no no", "no", "The blue baker paints the white tower. " * 2, "?"]


def test_it_learns_which_answers_people_prefer(judge):
    manifest = json.loads((judge / "manifest.json").read_text())
    metrics = manifest["facts"]["metrics"]
    assert metrics["eval_pairs"] == manifest["facts"]["rows"]["eval"] == 18
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_accuracy_low"] < metrics["eval_accuracy"] <= metrics["eval_accuracy_high"] <= 1
    assert metrics["eval_margin_low"] <= metrics["eval_margin"] <= metrics["eval_margin_high"]
    assert manifest["inputs"].keys() == {"sft"}
    assert "95% interval" in manifest["headline"]


def test_the_folder_opens_as_a_sequence_classifier_with_one_score(judge):
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == load_tokenizer(judge).pad_token_id
    base = load_file(judge.parent / "sft" / "model.safetensors")
    moved = [name for name, part in model.model.state_dict().items() if (part != base["model." + name]).any()]
    assert len(moved) == len(model.model.state_dict())


def test_its_card_says_what_it_is_and_the_code_on_it_runs(judge):
    card = (judge / "README.md").read_text()
    assert ModelCard(card).data.pipeline_tag == "text-classification"
    code = card.split("```python")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=judge.parent.parent.parent, capture_output=True, text=True)
    assert done.stdout.startswith("tensor([["), done.stderr


def test_an_answers_reward_is_the_same_alone_and_in_a_padded_batch(judge):
    reward = RewardModel(judge, load_tokenizer(judge))
    prompts, completions = zip(*map(conversation, ANSWERS), strict=True)
    together = reward(prompts=list(prompts), completions=list(completions))
    alone = [reward(prompts=[p], completions=[c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(ANSWERS)
    assert together[0] > together[1]


def test_training_and_judging_read_a_conversation_the_same_way(judge):
    """The trainer's own evaluation and the finished folder agree on the held-out pairs."""
    from hf_llm.data.chat.loaders import ConversationSource, load_preferences

    source = ConversationSource(license="mit", path=str(judge.parents[2] / "preferences.jsonl"))
    _, held_out, _ = load_preferences([source], 0.3, 7)
    reward = RewardModel(judge, load_tokenizer(judge))
    scores = [reward(prompts=held_out["prompt"], completions=held_out[side]) for side in ("chosen", "rejected")]
    metrics = json.loads((judge / "manifest.json").read_text())["facts"]["metrics"]
    measured = pair_statistics(torch.tensor(scores).T)
    assert measured["accuracy"] == metrics["eval_accuracy"]
    assert measured["margin"] == pytest.approx(metrics["eval_margin"], abs=1e-4)
    assert measured["mean_reward"] == pytest.approx(metrics["eval_mean_reward"], abs=1e-4)


def test_adapters_are_merged_into_a_folder_of_the_same_kind(tuned):
    lora = "--reward.lora={r: 4, target_modules: all-linear}"
    done = run_module("hf_llm.reward", "tiny.yaml", *SECTION, lora, folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, (prompt, completion) = tuned / "runs/tiny/reward", conversation(ANSWERS[0])
    merged = RewardModel(folder, load_tokenizer(folder))
    torch.manual_seed(3)  # of the base's score, which the adapter brings along
    with_adapter = RewardModel(folder, load_tokenizer(folder))
    base = load_reward_model(tuned / "runs/tiny/sft")
    with_adapter.model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    both = [judge(prompts=[prompt], completions=[completion])[0] for judge in (merged, with_adapter)]
    assert both[0] == pytest.approx(both[1], abs=1e-4)


def test_it_is_not_taken_for_a_model_that_writes(judge, refusal):
    said = refusal("hf_llm.generate", str(judge), "--prompt", "A fox", folder=judge)
    assert "scores texts and writes none" in said


def test_pairs_longer_than_the_context_are_dropped_or_truncated_and_counted(judge):
    question = [{"role": "user", "content": "What?"}]
    answers = ["yes"] * 18 + ["word " * 200] * 2
    chosen = [[{"role": "assistant", "content": answer}] for answer in answers]
    rows = Dataset.from_dict({"prompt": [question] * 20, "chosen": chosen, "rejected": chosen[::-1]})
    source = ConversationSource(license="mit", path="pairs.jsonl")
    for policy, length, counts in (("drop", 16, (4, 0)), ("truncate", 20, (0, 4))):
        section = RewardSection(data=[source], too_long=policy)
        (kept,), counted = encode_pairs([rows], load_tokenizer(judge), 128, section)
        assert (len(kept), counted) == (length, dict(zip(("too_long", "truncated"), counts, strict=True)))
        assert max(len(ids) for ids in kept["chosen_ids"]) <= 128


def test_statistics_of_pairs_by_hand():
    four_pairs = torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, 1.0], [0.0, -1.0]])
    statistics = pair_statistics(four_pairs)
    assert statistics["accuracy"] == 0.75
    assert statistics["margin"] == 1.0
    assert statistics["mean_reward"] == 1.25
    assert statistics["accuracy_low"] == pytest.approx(0.3006, abs=1e-3)  # Wilson, 3 of 4
    assert statistics["accuracy_high"] == pytest.approx(0.9544, abs=1e-3)
    assert "margin_low" not in statistics  # too few for an interval

    statistics = pair_statistics(four_pairs.repeat(5, 1))
    assert statistics["margin"] == 1.0
    assert statistics["margin_low"] < 1 < statistics["margin_high"]


def test_a_reward_model_of_another_tokenizer_is_refused(judge, tmp_path):
    shutil.copytree(judge, tmp_path / "other")
    file = tmp_path / "other" / "chat_template.jinja"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match="has another chat template than the model to be trained"):
        RewardModel(tmp_path / "other", load_tokenizer(judge))
    tokenizer = load_tokenizer(judge)
    tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(UserError, match="has another tokenizer than the model to be trained"):
        RewardModel(judge, tokenizer)
    with pytest.raises(UserError, match="sft is a language model and has no score"):
        RewardModel(judge.parent / "sft", load_tokenizer(judge))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["nowhere_to_be_found:f"], "nowhere_to_be_found:f: No module named"),
        (["math:no_such"], "the module math has no no_such"),
        (["math"], "'math' is not module:function"),
        (["math:pi"], "math:pi is not a function but a float"),
        ([], "nothing gives a reward"),
    ],
)
def test_reward_functions_that_are_none_are_refused_by_name(names, words):
    with pytest.raises(UserError, match=words):
        load_reward_functions(names, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "fsdp2"])
def test_two_processes_train_a_reward_model(tuned, engine):
    done = launch(engine, "hf_llm.reward", "tiny.yaml", *SECTION, folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tuned / "runs/tiny/reward/manifest.json").read_text())["facts"]
    assert facts["processes"] == 2
    assert facts["metrics"]["eval_pairs"] == 18


@pytest.mark.slow
@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="needs the data sets of HF_LLM_DATA")
def test_real_preferences_train_a_reward_model(tuned):
    path = Path(os.environ["HF_LLM_DATA"]) / "alpaca_prefs" / "prefs_part1.jsonl"
    data = (f"--reward.data=[{{path: {path}, license: cc-by-nc-4.0, take: 200}}]", *SECTION[1:])
    done = run_module("hf_llm.reward", "tiny.yaml", *data, "--reward.allow_drop=0.95", folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tuned / "runs/tiny/reward/manifest.json").read_text())["facts"]["metrics"]
    assert math.isfinite(metrics["eval_loss"])
