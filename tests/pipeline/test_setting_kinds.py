"""Which settings may change while a training is under way: every one of them is in the table."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RLOOConfig, SFTConfig

from hf_llm.core.errors import UserError
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.setting_kinds import (
    BATCH_ARGUMENTS,
    DEFAULT_ACCUMULATION,
    DEFAULT_EPOCHS,
    DEFAULT_MICRO_BATCH,
    FIXED_ARGUMENTS,
    FREE_ARGUMENTS,
    HORIZON_ARGUMENTS,
    is_longer,
    kind_of,
    list_changes,
)
from hf_llm.posttraining.ppo.trainer import PPOConfig
from hf_llm.ppo import PpoSection
from hf_llm.pretrain import PretrainSection

CLASSES = (TrainingArguments, SFTConfig, RewardConfig, DPOConfig, KTOConfig, GRPOConfig, RLOOConfig, PPOConfig)
LISTS = (FREE_ARGUMENTS, FIXED_ARGUMENTS, BATCH_ARGUMENTS, HORIZON_ARGUMENTS)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_argument_of_a_training_is_in_exactly_one_list(cls):
    counts = {field.name: sum(field.name in names for names in LISTS) for field in fields(cls)}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_no_list_names_an_argument_that_no_class_has():
    known = {field.name for cls in CLASSES for field in fields(cls)}
    assert set().union(*LISTS) - known == set()


@pytest.mark.parametrize("cls", CLASSES)
def test_the_defaults_of_the_table_are_those_of_every_class(cls):
    defaults = {field.name: field.default for field in fields(cls)}
    assert defaults["per_device_train_batch_size"] == DEFAULT_MICRO_BATCH
    assert defaults["gradient_accumulation_steps"] == DEFAULT_ACCUMULATION
    assert defaults["num_train_epochs"] == DEFAULT_EPOCHS


FREE_FIELDS = {"evaluation_tokens", "samples", "evaluate_tasks", "extend", "allow_drop"}
INPUT_FIELDS = {"start_from", "tokens", "tokenizer", "model", "reward_model"}


@pytest.mark.parametrize(("section", "cls"), [("pretrain", PretrainSection), ("ppo", PpoSection)])
def test_every_field_of_a_section_is_of_the_kind_that_is_meant(section, cls):
    names = {field.name for field in fields(cls)}
    assert {name for name in names if kind_of(f"{section}.{name}") == "free"} == names & FREE_FIELDS
    assert {name for name in names if kind_of(f"{section}.{name}") == "input"} == names & INPUT_FIELDS
    others = names - FREE_FIELDS - INPUT_FIELDS  # a new one too: nothing is free that nobody has called so
    assert {name for name in names if kind_of(f"{section}.{name}") == "fixed"} == others


# What people change after a fault, as (key, old, new).
HELPS_AFTER_A_FAULT = [
    ("pretrain.training.per_device_train_batch_size", 16, 4),
    ("pretrain.training.per_device_eval_batch_size", 8, 1),
    ("sft.training.gradient_checkpointing", False, True),
    ("pretrain.training.activation_checkpointing", False, True),
    ("pretrain.training.auto_find_batch_size", False, True),
    ("pretrain.training.ddp_timeout", 1800, 7200),
    ("pretrain.training.torch_compile", True, False),
    ("pretrain.training.optim", "adamw_torch_fused", "adamw_torch"),
    ("pretrain.training.use_liger_kernel", True, False),
    ("pretrain.training.dataloader_num_workers", 4, 0),
    ("pretrain.evaluation_tokens", 1 << 20, 1 << 16),
    ("model.attn_implementation", "sdpa", "eager"),
]


@pytest.mark.parametrize(("key", "old", "new"), HELPS_AFTER_A_FAULT)
def test_what_helps_after_a_fault_and_leaves_a_step_what_it_is_may_change(key, old, new):
    for before, after in (({key: old}, {key: new}), ({}, {key: new}), ({key: old}, {})):
        if (before.get(key) == "adamw_torch_fused" and not after) or (key.endswith("optim") and not before):
            continue  # another default
        assert {change.kind for change in list_changes(before, after)} <= {"free"}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ((8, 4), (4, 8), "free"),
        ((8, None), (4, 2), "free"),
        ((None, None), (2, 4), "free"),
        ((8, 4), (4, 4), "fixed"),
        ((None, 2), (4, 2), "fixed"),
    ],
)
@pytest.mark.parametrize("section", ["sft", "dpo", "reward", "grpo", "rloo"])
def test_micro_batch_and_accumulation_may_change_where_their_product_does_not(section, old, new, kind):
    def settings(values):
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        pairs = zip(names, values, strict=True)
        return {f"{section}.training.{name}": value for name, value in pairs if value is not None}

    assert {change.kind for change in list_changes(settings(old), settings(new))} == {kind}


@pytest.mark.parametrize("section", ["kto", "ppo"])
def test_they_may_not_where_the_loss_of_a_step_depends_on_the_micro_batch(section):
    changes = list_changes(
        {f"{section}.training.per_device_train_batch_size": 8},
        {
            f"{section}.training.per_device_train_batch_size": 4,
            f"{section}.training.gradient_accumulation_steps": 2,
        },
    )
    assert {change.kind for change in changes} == {"fixed"}


@pytest.mark.parametrize(
    ("old", "new", "longer"),
    [
        ({"max_steps": 10}, {"max_steps": 20}, True),
        ({"max_steps": 20}, {"max_steps": 10}, False),
        ({"max_steps": 20}, {}, False),
        ({"num_train_epochs": 1}, {}, True),
        ({}, {"num_train_epochs": 5}, True),
        ({}, {"num_train_epochs": 1}, False),
    ],
)
def test_a_longer_training_is_told_from_a_shorter_one(old, new, longer):
    def settings(values):
        return {f"sft.training.{name}": value for name, value in values.items()}

    changes = list_changes(settings(old), settings(new))
    assert {change.kind for change in changes} == {"horizon"}
    assert is_longer(changes) == longer


def test_a_folder_under_way_opens_with_free_changes_and_names_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text("sft: {training: {per_device_train_batch_size: 8, learning_rate: 1e-4}}\n")
    with Run(["small.yaml"]).open_stage("sft"):
        pass
    free = ("--sft.training.gradient_checkpointing=true", "--sft.allow_drop=0.5", "--sft.training.ddp_timeout=9")
    with Run(["small.yaml", *free]).open_stage("sft"):
        pass
    split = ("--sft.training.per_device_train_batch_size=2", "--sft.training.gradient_accumulation_steps=4")
    with Run(["small.yaml", *split]).open_stage("sft"):
        pass
    assert "per_device_train_batch_size: was 8, is 2; a step is the same, though not to the last bit" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"(?s)sft\.training\.learning_rate: was 0\.0001, is 0\.01") as error:
        Run(["small.yaml", *split, "--sft.training.learning_rate=0.01", "--sft.training.fp16=true"]).open_stage("sft")
    assert "sft.training.fp16: was not set, is True" in str(error.value)
    assert "accumulation_steps: was" not in str(error.value)
