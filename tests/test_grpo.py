"""GRPO: answers rewarded by functions or a reward model; held-out prompts; a kill costs nothing, at any step."""

import json
import re
import shutil
import textwrap

import pytest

from tests.aligned_recipe import chat_model, facts, history, run_stage, same_weights
from tests.tiny_recipe import ROOT, launch

REWARDS = """
def fox(completions, **columns):
    return [float(answer[0]["content"].count("o")) for answer in completions]

def close(prompts, completions, answer, **columns):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts) and all(answer)
    return [-abs(len(one[0]["content"]) - len(other)) for one, other in zip(completions, answer, strict=True)]

def nothing(completions, **columns):
    return [None] * len(completions)
"""
FOX = "--grpo.reward_functions=[rewards:fox]"


@pytest.fixture
def tuned(tiny_life, tmp_path):
    """A folder with a chat model of the tiny run, and some reward functions."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return chat_model(tiny_life, tmp_path)


@pytest.fixture
def judged(tuned):
    """The same with a reward model."""
    done = run_stage("reward", folder=tuned)
    assert done.code == 0, done.output
    return tuned


def test_the_reward_rises_and_the_kl_is_logged_beside_it(tuned):
    settings = ("max_steps=16", "per_device_train_batch_size=32", "num_generations=8", "max_completion_length=12")
    done = run_stage("grpo", FOX, *(f"--grpo.training.{setting}" for setting in settings), folder=tuned)
    assert done.code == 0, done.output
    logged = history(tuned / "runs/tiny/grpo")
    rewards = [entry["reward"] for entry in logged if "loss" in entry]
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5 + 0.5
    before, *_, after = (entry for entry in logged if "eval_loss" in entry)
    assert before["step"] == 0 and before["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert after["eval_reward"] > before["eval_reward"] and after["eval_kl"] > 0
    assert all(entry["tokens_per_second"] > 0 for entry in logged if "loss" in entry)


def test_several_functions_see_the_data_s_own_answers(tuned):
    done = run_stage("grpo", "--grpo.reward_functions=[rewards:fox, rewards:close]", folder=tuned)
    assert done.code == 0, done.output
    metrics = facts(tuned / "runs/tiny/grpo")["metrics"]
    both = metrics["eval_rewards/fox/mean"] + metrics["eval_rewards/close/mean"]
    assert metrics["eval_reward"] == pytest.approx(both)


def test_the_run_s_own_reward_model_judges_where_nothing_else_is_named(judged):
    done = run_stage("grpo", "--grpo.lora={r: 4, target_modules: all-linear}", folder=judged)
    assert done.code == 0, done.output
    manifest = json.loads((judged / "runs/tiny/grpo/manifest.json").read_text())
    assert manifest["inputs"].keys() == {"sft", "reward"}
    assert "eval_rewards/reward_model/mean" in manifest["facts"]["metrics"]


def test_a_reward_model_of_another_tokenizer_is_refused(judged):
    shutil.copytree(judged / "runs/tiny/reward", judged / "other")
    tokenizer = json.loads((judged / "other/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (judged / "other/tokenizer.json").write_text(json.dumps(tokenizer))
    done = run_stage("grpo", "--grpo.reward_model=other", folder=judged)
    assert done.code == 2 and "other has another tokenizer than the model to be trained" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--grpo.reward_functions=[rewards:fix]", "the module rewards has no fix"),
        ("--grpo.reward_functions=[fox]", "'fox' is not module:function"),
        ("--grpo.training.gradient_accumulation_steps=64", "54 prompts are fewer than the 64 that are completed"),
        ("--grpo.training.num_generations=3", "must be divisible by num_generations"),
        ("--grpo.training.max_completion_length=100", "prompts are longer than 28 tokens"),
    ],
)
def test_wrong_values_are_refused_by_name(tuned, override, words):
    done = run_stage("grpo", FOX, override, folder=tuned)
    assert done.code == 2 and words in done.output, done.output
    assert "Traceback" not in done.output


def test_killed_between_two_steps_on_the_same_answers_it_ends_with_the_same_weights(tuned):
    """In the second epoch, with answers half learnt from; held-out prompts are answered every other step."""
    settings = {
        "max_steps": 10, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "per_device_train_batch_size": 8, "num_generations": 2, "num_iterations": 2,
    }  # fmt: skip
    arguments = [FOX, "--grpo.data=[{path: chats.jsonl, license: mit, take: 12}]"]
    arguments += [f"--grpo.training.{name}={value}" for name, value in settings.items()]
    assert run_stage("grpo", *arguments, folder=tuned).code == 0
    (tuned / "runs/tiny/grpo").rename(tuned / "undisturbed")
    for step in (3, 7):
        assert run_stage("grpo", *arguments, folder=tuned, kill_at=step).code == -9
    done = run_stage("grpo", *arguments, folder=tuned)
    assert "resuming at step 7" in done.output, done.output
    assert max(entry["epoch"] for entry in history(tuned / "undisturbed")) > 2
    assert same_weights(tuned / "undisturbed", tuned / "runs/tiny/grpo")


@pytest.mark.slow
def test_how_often_it_is_evaluated_changes_nothing(tuned):
    for name, value in (("never", "no"), ("always", "steps")):
        often = (f"--grpo.training.eval_strategy={value}", "--grpo.training.eval_steps=1")
        assert run_stage("grpo", FOX, *often, folder=tuned).code == 0
        (tuned / "runs/tiny/grpo").rename(tuned / name)
    assert same_weights(tuned / "never", tuned / "always")


def test_the_reward_function_of_the_documentation_works():
    text = (ROOT / "docs/alignment.md").read_text(encoding="utf-8")
    function = re.search(r"^    def is_right.*\n(?:     .*\n)+", text, re.MULTILINE).group()
    names = {}
    exec(textwrap.dedent(function), names)
    answers = [[{"role": "assistant", "content": "It is 4"}], [{"role": "assistant", "content": "It is 5"}]]
    assert names["is_right"]([], answers, ["2 + 2 = 4", "2 + 2 = 4"], source=[0, 0]) == [1.0, 0.0]


@pytest.mark.slow
def test_two_processes_train_under_zero2(tuned):
    done = launch("zero2", "hf_llm.grpo", "tiny.yaml", FOX, folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(tuned / "runs/tiny/grpo")["processes"] == 2
