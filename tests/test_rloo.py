"""RLOO: what it shares with GRPO is tested there; here that it learns, and that a kill costs nothing."""

import pytest

from tests.aligned_recipe import chat_model, facts, history, run_stage, same_weights
from tests.tiny_recipe import launch

REWARDS = """
def fox(completions, **columns):
    return [float(answer[0]["content"].count("o")) for answer in completions]
"""
FOX = "--rloo.reward_functions=[rewards:fox]"


@pytest.fixture
def tuned(tiny_life, tmp_path):
    """A folder with a chat model of the tiny run, and a reward function."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return chat_model(tiny_life, tmp_path)


def test_the_reward_rises_and_the_kl_is_logged_beside_it(tuned):
    settings = ("max_steps=16", "per_device_train_batch_size=32", "num_generations=8", "max_completion_length=12")
    done = run_stage("rloo", FOX, *(f"--rloo.training.{setting}" for setting in settings), folder=tuned)
    assert done.code == 0, done.output
    logged = history(tuned / "runs/tiny/rloo")
    rewards = [entry["reward"] for entry in logged if "loss" in entry]
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5 + 0.5
    before, *_, after = (entry for entry in logged if "eval_loss" in entry)
    assert before["eval_kl"] == pytest.approx(0, abs=1e-6) and after["eval_kl"] > 0


def test_killed_and_started_again_it_ends_with_the_same_weights(tuned):
    arguments = (FOX, "--rloo.training.num_iterations=2", "--rloo.training.save_steps=1")
    assert run_stage("rloo", *arguments, folder=tuned).code == 0
    (tuned / "runs/tiny/rloo").rename(tuned / "undisturbed")
    assert run_stage("rloo", *arguments, folder=tuned, kill_at=3).code == -9
    done = run_stage("rloo", *arguments, folder=tuned)
    assert "resuming at step 3" in done.output, done.output
    assert same_weights(tuned / "undisturbed", tuned / "runs/tiny/rloo")


@pytest.mark.slow
def test_two_processes_train_under_ddp(tuned):
    done = launch("ddp", "hf_llm.rloo", "tiny.yaml", FOX, folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts(tuned / "runs/tiny/rloo")["processes"] == 2
