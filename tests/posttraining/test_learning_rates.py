import pytest
import trl

from hf_llm.pipeline.stages import STAGES
from hf_llm.posttraining.learning_rates import RATES, default_learning_rate, describe_learning_rate
from tests.aligned_recipe import chat_model, facts, history, run_stage

SIZES = (1e5, 5e6, 60e6, 125e6, 360e6, 1.7e9, 3e9, 8e9, 70e9, 400e9)


@pytest.mark.parametrize("stage", RATES)
def test_a_rate_never_grows_with_the_size_and_one_for_lora_is_never_lower(stage):
    assert stage in STAGES
    for uses_lora in (False, True):
        rates = [default_learning_rate(stage, int(size), uses_lora) for size in SIZES]
        assert rates == sorted(rates, reverse=True)
    for size in SIZES:
        assert default_learning_rate(stage, int(size), True) >= default_learning_rate(stage, int(size), False)


@pytest.mark.parametrize(
    ("stage", "parameters", "uses_lora", "expected"),
    [
        ("sft", 360e6, False, 1e-3),  # SmolLM2-360M
        ("sft", 1.7e9, False, 3e-4),  # SmolLM2-1.7B
        ("sft", 7.2e9, False, 2e-5),  # Zephyr
        ("sft", 3e9, False, 2e-5),  # SmolLM3
        ("sft", 7e9, True, 2e-4),  # QLoRA
        ("sft", 65e9, True, 1e-4),  # QLoRA
        ("sft", 70e9, False, 2e-6),  # Tulu 3
        ("dpo", 8e9, False, 5e-7),  # Tulu 3
        ("dpo", 70e9, False, 2e-7),  # Tulu 3
        ("grpo", 7e9, False, 1e-6),  # DeepSeekMath
        ("grpo", 3e9, True, 1e-5),  # TRL, with SmolLM3
        ("ppo", 6.9e9, False, 3e-6),  # Huang et al. 2024
        ("ppo", 70e9, False, 1e-7),  # Tulu 3
        ("reward", 8e9, False, 3e-6),  # Tulu 3
        ("dpo", 1.7e9, False, 1e-6),  # SmolLM2
        ("dpo", 7.2e9, False, 5e-7),  # Zephyr
        ("dpo", 7.2e9, True, 5e-6),  # Zephyr, QLoRA
        ("sft", 5e6, True, 2e-3),  # recipes/examples/documentation.yaml
        ("dpo", 5e6, True, 2e-4),  # recipes/examples/documentation.yaml
        ("dpo", 5.5e6, False, 5e-5),  # recipes/examples/alignment.yaml
    ],
)
def test_the_rates_are_those_of_published_recipes(stage, parameters, uses_lora, expected):
    assert default_learning_rate(stage, int(parameters), uses_lora) == expected
    assert f"{expected:g}" in describe_learning_rate(stage, int(parameters), uses_lora)


@pytest.mark.parametrize(
    ("config", "stage", "parameters", "uses_lora"),
    [
        ("DPOConfig", "dpo", 1.7e9, False),
        ("KTOConfig", "kto", 1.7e9, False),
        ("GRPOConfig", "grpo", 7e9, False),
        ("RLOOConfig", "rloo", 7e9, False),
        ("SFTConfig", "sft", 7e9, False),
        ("RewardConfig", "reward", 7e9, True),
    ],
)
def test_the_rates_that_are_called_defaults_of_trl_are_those(config, stage, parameters, uses_lora):
    default = getattr(trl, config).__dataclass_fields__["learning_rate"].default
    assert default_learning_rate(stage, int(parameters), uses_lora) == default


@pytest.fixture
def tuned(tiny_life, tmp_path):
    return chat_model(tiny_life, tmp_path)


def test_a_recipe_without_a_rate_gets_one_that_is_printed_and_changes_the_model(tuned):
    training = "{max_steps: 6, logging_steps: 1, report_to: none, bf16: false, per_device_train_batch_size: 4}"
    done = run_stage("dpo", f"--dpo.training={training}", folder=tuned)
    assert done.code == 0, done.output
    assert "dpo.training.learning_rate 5e-05: usual for dpo" in done.output
    made = facts(tuned / "runs/tiny/dpo")
    assert made["arguments"]["learning_rate"] == 5e-5
    assert "change_warning" not in made["metrics"]


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward"])
def test_a_stage_that_changes_nothing_measurable_says_so_and_names_the_rate(tuned, stage):
    (tuned / "runs/tiny/sft").rename(tuned / "chat")
    own = (f"--{stage}.model=chat",)
    done = run_stage(stage, *own, f"--{stage}.training.learning_rate=1e-12", folder=tuned)
    assert done.code == 0, done.output
    warning = facts(tuned / f"runs/tiny/{stage}")["metrics"]["change_warning"]
    assert "nothing measurable" in warning and "learning rate of 1e-12" in warning
    assert f"WARNING: {warning}" in done.output
    assert not (tuned / f"runs/tiny/{stage}/rows").exists()
    assert all("start" not in entry for entry in history(tuned / f"runs/tiny/{stage}"))
