"""A training that gained nothing which its held-out rows can show says so."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from hf_llm.posttraining.gain_check import describe_no_gain
from hf_llm.posttraining.kto_trainer import standard_error
from tests.aligned_recipe import chat_model, facts, run_stage
from tests.posttraining.test_reward_functions import PPO
from tests.tiny_recipe import sentence


def rewards(mean: float, deviation: float, count: int) -> dict:
    return {"eval_reward": mean, "eval_reward_std": deviation, "eval_completions": count}


def pairs(share: float, count: int, margin: float) -> dict:
    return {"eval_rewards/accuracies": share, "eval_pairs": count, "eval_rewards/margins": margin}


def answers(margin: float, error: float) -> dict:
    return {"eval_rewards/margins": margin, "eval_rewards/margins_error": error, "eval_completions": 40}


GAINS = {
    "reward": (rewards(0.5, 0.5, 100), rewards(0.7, 0.5, 100)),
    "reward without noise": (rewards(0.0, 0.0, 4), rewards(0.1, 0.0, 4)),
    "pairs": ({}, pairs(0.7, 50, 0.2)),
    "answers": ({}, answers(0.3, 0.1)),
    "of a stage that has neither": ({}, {"eval_loss": 3.0}),
    "reward of an older version, without its count": ({"eval_reward": 0.5}, rewards(0.5, 0.5, 100)),
    "nothing measured before": (None, rewards(0.5, 0.5, 100)),
}
NO_GAINS = {
    "reward": (rewards(0.5, 0.5, 20), rewards(0.65, 0.5, 20), "0.500 before and 0.650 after it, a difference of 0.150"),
    "lower reward": (rewards(0.5, 0.1, 100), rewards(0.1, 0.1, 100), "a difference of -0.400"),
    "the same reward": (rewards(0.5, 0.0, 9), rewards(0.5, 0.0, 9), "on 9 held-out completions"),
    "few pairs": ({}, pairs(0.6, 20, 0.2), "in 60% of 20 held-out pairs (95% interval 39% to 78%; by chance half)"),
    "falling margin": ({}, pairs(0.7, 100, -0.2), "on average to -0.200 from 0"),
    "answers": ({}, answers(0.1, 0.1), "is 0.100 (95% interval -0.096 to 0.296) on 40 held-out answers"),
}  # fmt: skip


def describe(start: dict | None, end: dict) -> str | None:
    log = [] if start is None else [{"step": 0, **start}]
    trainer = SimpleNamespace(state=SimpleNamespace(log_history=[*log, {"step": 9, **end}]))
    return describe_no_gain(trainer, end)


@pytest.mark.parametrize("case", GAINS)
def test_describe_no_gain_is_silent_where_something_was_gained_or_it_is_not_known(case):
    assert describe(*GAINS[case]) is None


@pytest.mark.parametrize("case", NO_GAINS)
def test_describe_no_gain_gives_the_numbers_and_the_remedy(case):
    start, end, words = NO_GAINS[case]
    warning = describe(start, end)
    assert words in warning and "evaluation_share" in warning


def test_standard_error_is_that_of_the_mean():
    values = torch.randn(50, dtype=torch.float64)
    whole = torch.ones(50, dtype=torch.float64)
    assert standard_error(values, whole) == pytest.approx((values.std() / 50**0.5).item())
    # Each value twice, counted half each time, as two processes that have the same rows do.
    assert standard_error(values.repeat(2), whole.repeat(2) / 2) == pytest.approx(standard_error(values, whole))


LUCK = """
import hashlib

def luck(completions, **columns):
    return [hashlib.md5(repr(completion).encode()).digest()[0] / 255 for completion in completions]
"""
EVEN = "data=[{path: even.jsonl, license: mit}]"
LEARNS_NOTHING = {
    "dpo": (f"--dpo.{EVEN}", "--dpo.training.max_steps=2"),
    "kto": (f"--kto.{EVEN}", "--kto.training.max_steps=2"),
    "grpo": ("--grpo.reward_functions=[luck:luck]", "--grpo.training.max_steps=2"),
    "ppo": (*PPO, "--ppo.reward_functions=[luck:luck]"),
}


@pytest.mark.parametrize("stage", LEARNS_NOTHING)
def test_a_stage_that_learns_nothing_of_use_says_so_once(tiny_life, tmp_path, stage):
    folder = chat_model(tiny_life, tmp_path)
    (folder / "luck.py").write_text(LUCK)
    rng = random.Random(0)
    with open(folder / "even.jsonl", "w") as file:  # which answer is the better one cannot be known
        for number in range(60):
            row = {"prompt": f"What is it, {number}?", "chosen": sentence(rng), "rejected": sentence(rng)}
            file.write(json.dumps(row) + "\n")

    done = run_stage(stage, *LEARNS_NOTHING[stage], folder=folder)
    assert done.code == 0, done.output
    metrics = facts(folder / f"runs/tiny/{stage}")["metrics"]
    assert "change_warning" not in metrics
    assert done.output.count("*** WARNING") == done.output.count(f"*** WARNING: {metrics['gain_warning']}") == 1
