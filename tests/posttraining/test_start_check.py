"""Before the first update a model equals its reference, in every stage that has one; otherwise the stage stops."""

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, GRPOConfig, KTOConfig, RLOOConfig

from hf_llm.core.errors import UserError
from hf_llm.model.load import load_model
from hf_llm.posttraining.dpo_trainer import LoggedDPOTrainer
from hf_llm.posttraining.group_trainer import ResumableGRPOTrainer, ResumableRLOOTrainer
from hf_llm.posttraining.kto_trainer import CompletionKTOTrainer
from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer
from hf_llm.posttraining.start_check import StartCheck, check_reference, measure_first_batch
from tests.aligned_recipe import chat_model, history, run_stage
from tests.tiny_models import save_tiny_model, tiny_tokenizer

ARGUMENTS = {
    "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 1,
    "logging_steps": 1, "per_device_train_batch_size": 4, "eval_strategy": "no",
}  # fmt: skip
SAMPLING = {"max_completion_length": 8}


def rows(count: int = 8) -> Dataset:
    def said(role: str, text: str) -> list[dict]:
        return [{"role": role, "content": text}]

    return Dataset.from_list(
        [
            {
                "prompt": said("user", f"What is it, {n}?"),
                "chosen": said("assistant", "The red fox."),
                "rejected": said("assistant", "no no"),
                "completion": said("assistant", "The red fox." if n % 2 else "no no"),
                "label": bool(n % 2),
            }
            for n in range(count)
        ]
    )


def count_letters(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def build(stage: str, start, folder):
    """A trainer of the stage whose reference stands beside the model, so that a test can spoil it."""
    common = {"train_dataset": rows(), "eval_dataset": rows(), "processing_class": tiny_tokenizer()}
    model = load_model(start)
    arguments = {"output_dir": str(folder), **ARGUMENTS}
    if stage == "dpo":
        columns = [name for name in rows().column_names if name not in ("prompt", "chosen", "rejected")]
        data = {name: rows().remove_columns(columns) for name in ("train_dataset", "eval_dataset")}
        return LoggedDPOTrainer(model, args=DPOConfig(max_length=128, **arguments), **{**common, **data})
    if stage == "kto":
        data = {name: rows().remove_columns(["chosen", "rejected"]) for name in ("train_dataset", "eval_dataset")}
        return CompletionKTOTrainer(model, args=KTOConfig(max_length=128, **arguments), **{**common, **data})
    if stage == "ppo":
        config = PPOConfig(num_ppo_epochs=1, eval_on_start=False, **SAMPLING, **arguments)
        return PPOTrainer(model, config, reward_functions=[count_letters], **common)
    classes = {"grpo": (ResumableGRPOTrainer, GRPOConfig), "rloo": (ResumableRLOOTrainer, RLOOConfig)}
    trainer_class, config_class = classes[stage]
    config = config_class(num_generations=4, num_generations_eval=1, beta=0.05, **SAMPLING, **arguments)
    return trainer_class(model, reward_funcs=[count_letters], args=config, **common)


def reference_of(trainer):
    return getattr(trainer, "reference", None) or trainer.ref_model


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("stage", ["dpo", "kto", "grpo", "rloo", "ppo"])
def test_another_reference_stops_the_stage_before_its_first_update(start, tmp_path, stage):
    trainer = build(stage, start, tmp_path)
    trainer.add_callback(StartCheck(trainer, stage, has_reference=True))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reference_of(trainer).parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match=f"{stage}: before the first update the .* where it must be 0"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("stage", ["dpo", "kto", "grpo", "rloo", "ppo"])
def test_the_check_changes_nothing_of_a_sound_training(start, tmp_path, stage):
    trained = []
    for is_checked in (False, True):
        trainer = build(stage, start, tmp_path)
        if is_checked:
            trainer.add_callback(StartCheck(trainer, stage, has_reference=True))
        trainer.train()
        trained.append(trainer)
    first, second = (trainer.model.state_dict() for trainer in trained)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    entries = [[sorted(entry) for entry in trainer.state.log_history] for trainer in trained]
    assert entries[0] == entries[1]


def test_a_batch_is_measured_without_traces(start, tmp_path):
    trainer = build("dpo", start, tmp_path)
    state = torch.random.get_rng_state()
    metrics = measure_first_batch(trainer)
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=1e-6) and metrics["logps/chosen"] < 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(trainer.eval_dataset) == 8 and not trainer._metrics["eval"] and not trainer.state.log_history


@pytest.mark.parametrize(
    ("metrics", "is_sound"),
    [
        ({"rewards/chosen": 0.0, "rewards/rejected": 0.0, "logps/chosen": -50.0, "logps/rejected": -9.0}, True),
        ({"rewards/chosen": 0.1, "rewards/rejected": 0.1, "logps/chosen": -50.0, "logps/rejected": -9.0}, False),
        ({"rewards/rejected": -0.1, "logps/rejected": -9.0}, False),
        ({"rewards/chosen": float("nan"), "logps/chosen": -9.0}, False),
        ({"kl": 1e-6}, True),
        ({"kl": 0.37}, False),
        ({"kl": float("nan")}, False),
        ({"kl_per_completion": 1e-5, "length": 8.0}, True),
        ({"kl_per_completion": 32.7, "length": 40.0}, False),
    ],
)
def test_margin_and_kl_must_be_zero(metrics, is_sound):
    if is_sound:
        check_reference(metrics, "dpo", beta=0.1, half_precision=False)
        return
    with pytest.raises(UserError, match="the reference is not the model that the stage starts from"):
        check_reference(metrics, "dpo", beta=0.1, half_precision=False)


@pytest.fixture
def tuned(tiny_life, tmp_path):
    (tmp_path / "rewards.py").write_text(
        "def letters(completions, **columns):\n    return [float(len(one[0]['content'])) for one in completions]\n"
    )
    return chat_model(tiny_life, tmp_path)


@pytest.mark.parametrize("stage", ["dpo", "kto", "grpo"])
def test_an_adapter_can_be_started_from_and_is_its_own_reference(tuned, stage):
    """With all weights trained: the reference is base and adapter together, not the base."""
    own = ("--grpo.reward_functions=[rewards:letters]",) if stage == "grpo" else ()
    beside = (f"--{stage}.training.precompute_ref_log_probs=false",) if stage != "grpo" else ()
    done = run_stage(stage, f"--{stage}.model=runs/tiny/sft/adapter", *own, *beside, folder=tuned)
    assert done.code == 0, done.output
    folder = tuned / f"runs/tiny/{stage}"
    first = history(folder)[0]
    value = first["eval_kl"] if stage == "grpo" else first["rewards/chosen"]
    assert value == pytest.approx(0, abs=1e-5)
    assert not (folder / "rows").exists() and not (folder / "adapter").exists()
    assert load_model(folder).config.architectures == ["HfLlmForCausalLM"]
