"""Reward functions are tried on some rows before any work; GRPO, RLOO and PPO say the same of the same mistake."""

import asyncio
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_llm.core.errors import UserError
from hf_llm.posttraining.reward_functions import (
    CheckedReward,
    load_reward_functions,
    score_completions,
    try_reward_functions,
)
from tests.aligned_recipe import chat_model, facts, run_stage
from tests.tiny_models import tiny_tokenizer

ROWS = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": f"{n} + 1?"}], "answer": str(n + 1), "number": n, "tests": ["a", "b"]}
        for n in range(6)
    ]
)


def count_letters(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


async def count_letters_slowly(completions, **columns):
    await asyncio.sleep(0)
    return count_letters(completions)


class LetterCounter:
    def __call__(self, prompts, completions, completion_ids, **columns):
        return count_letters(completions)


def is_right(completions, answer, number, tests, trainer_state, log_metric, log_extra, **columns):
    assert tests[0] == ["a", "b"] and number[0] == 0 and trainer_state.global_step == 0
    log_metric("mean", 1.0)
    log_extra("answer", answer)
    return [completion[0]["content"] == right for completion, right in zip(completions, answer, strict=True)]


GOOD = {
    "a function": count_letters,
    "an async function": count_letters_slowly,
    "an object": LetterCounter(),
    "every column": is_right,
    "a generator": lambda completions, **columns: (1 for _ in completions),
    "an array": lambda completions, **columns: np.ones(len(completions)),
    "a tensor": lambda completions, **columns: torch.ones(len(completions)),
    "numbers of numpy": lambda completions, **columns: [np.float32(1)] * len(completions),
    "every keyword": lambda **columns: [0] * len(columns["completions"]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_sound_function_passes(name):
    try_reward_functions([CheckedReward(GOOD[name], name)], ROWS, tiny_tokenizer())
    try_reward_functions([CheckedReward(GOOD[name], name)], ROWS)  # before there is a tokenizer


def raising(completions, **columns):
    return [1 / 0 for _ in completions]


async def raising_slowly(completions, **columns):
    raise KeyError("answer")


def leaving(completions, **columns):
    raise UserError("my own words")


BAD = {
    "one number too few": (lambda completions, **columns: [1.0] * (len(completions) - 1), "returned 3 numbers for 4"),
    "one number": (lambda completions, **columns: 1.0, "returned float 1.0; return a list"),
    "nothing": (lambda completions, **columns: None, "returned NoneType None; return a list"),
    "None for all": (lambda completions, **columns: [None] * len(completions), "None for 4 of 4 completions"),
    "infinity": (lambda completions, **columns: [math.inf] * len(completions), r"4 of them not finite \(inf\)"),
    "minus infinity": (lambda completions, **columns: [0, 0, 0, -math.inf], r"1 of them not finite \(-inf\)"),
    "not a number": (lambda completions, **columns: [math.nan] * len(completions), r"4 of them not finite \(nan\)"),
    "beyond float32": (lambda completions, **columns: [1e300] * len(completions), "too large for float32"),
    "texts": (lambda completions, **columns: ["1.0"] * len(completions), "returned no list of numbers: '1.0' is text"),
    "a text": (lambda completions, **columns: "good", "returned str 'good'"),
    "a dictionary": (lambda completions, **columns: {"reward": [1, 2, 3, 4]}, "returned dict"),
    "a matrix": (lambda completions, **columns: np.ones((len(completions), 2)), "returned no list of numbers"),
    "lists": (lambda completions, **columns: [[1.0]] * len(completions), "returned no list of numbers"),
    "an unknown argument": (lambda completions, rubric, **columns: [1.0], "missing a required argument: 'rubric'"),
    "no columns": (lambda completions: [1.0], "write those that it needs and `\\*\\*columns`"),
    "no arguments": (lambda: [1.0], "cannot be called"),
    "an error": (raising, "ZeroDivisionError: .*test_reward_functions.py, line"),
    "an error while waiting": (raising_slowly, "raised KeyError: 'answer'"),
    "an error in words": (leaving, "my own words"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_before_any_work_and_in_training_alike(name):
    function, words = BAD[name]
    said = []
    prompts = ROWS[:4]["prompt"]
    completions = [[{"role": "assistant", "content": "Yes."}]] * 4
    columns = {"completion_ids": [[1]] * 4, "answer": ROWS[:4]["answer"]}
    for run in (
        lambda: try_reward_functions([CheckedReward(function, "mine:f")], ROWS),
        lambda: score_completions([CheckedReward(function, "mine:f")], prompts, completions, columns),
    ):
        with pytest.raises(UserError, match=words) as error:
            run()
        said.append(str(error.value).split("It gets")[0])
    assert said[0] == said[1]


def test_a_function_may_not_apply_where_another_does():
    def even(completions, number, **columns):
        return [1.0 if n % 2 == 0 else None for n in number]

    def odd(completions, number, **columns):
        return [2.0 if n % 2 else None for n in number]

    functions = [CheckedReward(even, "even"), CheckedReward(odd, "odd")]
    try_reward_functions(functions, ROWS)
    with pytest.raises(UserError, match="None for 2 of 4"):
        try_reward_functions(functions[:1], ROWS)
    prompts = ROWS[:2]["prompt"]
    scores = score_completions(functions, prompts, prompts, {"number": [0, 1]})
    assert scores.nansum(0).tolist() == [1.0, 2.0] and scores.isnan().sum() == 2


def test_a_module_that_cannot_be_imported_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "spoilt_rewards.py").write_text("import math\nmath.no_such\n")
    (tmp_path / "unfinished_rewards.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"spoilt_rewards cannot be imported: AttributeError.*line 2"):
        load_reward_functions(["spoilt_rewards:f"], None, None)
    with pytest.raises(UserError, match="unfinished_rewards cannot be imported: SyntaxError"):
        load_reward_functions(["unfinished_rewards:f"], None, None)


REWARDS = """
import math

def infinite(completions, **columns):
    return [math.inf] * len(completions)

def nothing(completions, **columns):
    return [None] * len(completions)

def no_columns(completions):
    return [1.0] * len(completions)

def constant(completions, **columns):
    return [0.5] * len(completions)

async def slowly(completions, **columns):
    return [float(completion[0]["content"].count("o")) for completion in completions]
"""
PPO = (
    "--ppo.data=[{path: preferences.jsonl, license: mit}]",
    "--ppo.rows=preferences",
    "--ppo.evaluation_share=0.1",
    "--ppo.training={max_steps: 2, num_ppo_epochs: 1, per_device_train_batch_size: 4, max_completion_length: 8, "
    "logging_steps: 1, report_to: none, bf16: false, critic: head, learning_rate: 1e-3}",
)


@pytest.fixture
def tuned(tiny_life, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    return chat_model(tiny_life, tmp_path)


@pytest.mark.parametrize("stage", ["grpo", "rloo", "ppo"])
def test_every_stage_tries_the_functions_first(tuned, stage):
    own = PPO if stage == "ppo" else ()
    for function, words in (
        ("infinite", "rewards:infinite returned 4 numbers for 4 completions, 4 of them not finite (inf)"),
        ("nothing", "None for 4 of 4 completions"),
        ("no_columns", "rewards:no_columns(completions) cannot be called"),
    ):
        done = run_stage(stage, *own, f"--{stage}.reward_functions=[rewards:{function}]", folder=tuned)
        assert done.code == 2 and words in done.output, done.output
        assert "Traceback" not in done.output and "starting;" not in done.output


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_constant_reward_is_noticed_and_an_async_one_is_waited_for(tuned, stage):
    own = PPO if stage == "ppo" else ("--grpo.training.max_steps=2",)
    done = run_stage(stage, *own, f"--{stage}.reward_functions=[rewards:constant]", folder=tuned)
    assert done.code == 0, done.output
    warning = facts(tuned / f"runs/tiny/{stage}")["metrics"]["reward_warning"]
    assert warning in done.output and "the reward (constant) was the same for all completions" in warning
    (tuned / f"runs/tiny/{stage}").rename(tuned / "constant")
    done = run_stage(stage, *own, f"--{stage}.reward_functions=[rewards:slowly]", folder=tuned)
    assert done.code == 0, done.output
    assert "reward_warning" not in facts(tuned / f"runs/tiny/{stage}")["metrics"]
