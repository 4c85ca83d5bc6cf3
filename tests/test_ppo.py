"""The ppo stage as a person runs it: with the run's reward model, with functions, with adapters, on two processes."""

import json
import math

import pytest
from safetensors.torch import load_file

from hf_llm.core.errors import UserError
from hf_llm.model.load import load_model
from hf_llm.pipeline.run import Run
from hf_llm.ppo import Recipe
from tests.test_reward import SECTION as REWARD
from tests.test_reward import from_life
from tests.tiny_recipe import launch, run_module

TRAINING = (
    "max_steps: 6, num_ppo_epochs: 2, num_mini_batches: 2, per_device_train_batch_size: 4, max_completion_length: 12, "
    "learning_rate: 1e-2, logging_steps: 1, save_steps: 3, report_to: none, bf16: false"
)
SECTION = (
    "--ppo.data=[{path: preferences.jsonl, license: mit}]",
    "--ppo.rows=preferences",
    "--ppo.evaluation_share=0.2",
    "--ppo.training={" + TRAINING + "}",
)
FUNCTION = """
def brief(prompts, completions, completion_ids, chosen, **columns):
    assert len(chosen) == len(prompts) and chosen[0][0]["role"] == "assistant"
    return [-len(ids) / 12 for ids in completion_ids]
"""


@pytest.fixture
def tuned(tiny_life, tmp_path):
    (tmp_path / "my_rewards.py").write_text(FUNCTION)
    return from_life(tiny_life, tmp_path)


def history(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_the_runs_own_reward_model_is_made_first_and_judges(tuned):
    done = run_module("hf_llm.ppo", "tiny.yaml", *REWARD, *SECTION, folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tuned / "runs/tiny/ppo"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"].keys() == {"sft", "reward"}
    assert "KL to the reference" in manifest["headline"]
    entries = history(folder)
    logged = {key for entry in entries for key in entry}
    named = (
        "reward kl_per_completion length entropy explained_variance clip_fraction value_clip_fraction "
        "ended kl_coef tokens_per_second"
    )
    assert set(named.split()) <= logged
    assert all(math.isfinite(value) for entry in entries for value in entry.values())
    assert entries[0]["eval_kl_per_completion"] == pytest.approx(0, abs=1e-3)  # before training
    before, after = (load_file(tuned / "runs/tiny" / name / "model.safetensors") for name in ("sft", "ppo"))
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)
    assert not [item for item in folder.iterdir() if "critic" in item.name or "rollout" in item.name]


def test_functions_judge_and_adapters_are_merged(tuned):
    lora = ("--ppo.lora={r: 4, target_modules: all-linear}", "--ppo.reward_functions=[my_rewards:brief]")
    done = run_module("hf_llm.ppo", "tiny.yaml", *SECTION, *lora, folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tuned / "runs/tiny/ppo"
    assert json.loads((folder / "manifest.json").read_text())["inputs"].keys() == {"sft"}
    assert (folder / "adapter" / "adapter_config.json").exists()
    assert load_file(folder / "model.safetensors").keys() == load_file(tuned / "runs/tiny/sft/model.safetensors").keys()
    assert history(folder)[0]["eval_reward"] == pytest.approx(-history(folder)[0]["eval_length"] / 12)


def test_without_a_reward_nothing_is_trained(tuned, refusal):
    assert "nothing gives a reward" in refusal("hf_llm.ppo", "tiny.yaml", *SECTION, folder=tuned)


def test_prompts_that_do_not_fit_at_all_are_refused(tuned, refusal):
    given = ("--ppo.reward_functions=[my_rewards:brief]", "--ppo.training.max_completion_length=100")
    said = refusal("hf_llm.ppo", "tiny.yaml", *SECTION, *given, folder=tuned)
    assert "prompts are longer than 28 tokens" in said and "write `too_long: truncate`" in said


def test_a_misspelt_setting_is_refused_by_name(tiny_life):
    with pytest.raises(UserError, match=r"ppo.training.kl_coeff: no such key; did you mean kl_coef\?"):
        Run([str(tiny_life / "tiny.yaml"), *SECTION, "--ppo.training.kl_coeff=1"]).read(Recipe)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_two_processes_roll_out_and_learn(tuned, engine):
    functions = "--ppo.reward_functions=[my_rewards:brief]"
    done = launch(engine, "hf_llm.ppo", "tiny.yaml", *SECTION, functions, "--ppo.training.use_cpu=true", folder=tuned)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tuned / "runs/tiny/ppo"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["facts"]["processes"] == 2
    assert all(math.isfinite(value) for entry in history(folder) for value in entry.values())
    before, after = (load_model(tuned / "runs/tiny" / name).state_dict() for name in ("sft", "ppo"))
    assert all((before[name] != after[name]).any() for name in before)
    assert not [item for item in folder.iterdir() if "critic" in item.name or "rollout" in item.name]
