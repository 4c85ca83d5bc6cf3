"""Hours, evaluations and disk of the stages, before they run."""

from types import SimpleNamespace

import pytest

from hf_llm.hardware.devices import parse_device
from hf_llm.planning.cost import disk_bytes
from hf_llm.planning.memory_estimate import count_parameters
from hf_llm.planning.stage_plans import HardwarePlan, StagePlan, count_evaluations, plan_pretraining, plan_tuning
from tests.tiny_models import tiny_config


@pytest.mark.parametrize(
    ("training", "evaluations"),
    [
        ({}, 60),
        ({"logging_steps": 50}, 12),
        ({"eval_steps": 250}, 3),  # after 250, 500 and at the end
        ({"eval_steps": 0.1}, 10),
        ({"eval_steps": None, "logging_steps": 0.5}, 2),
        ({"eval_strategy": "no"}, 1),
    ],
)
def test_evaluations_are_counted_as_trainer_makes_them(training, evaluations):
    assert count_evaluations(training, 600) == evaluations


def plan_on_eight_cards(engine: str, bf16: bool = False) -> HardwarePlan:
    return HardwarePlan(tiny_config(), engine, 1e6, 8, parse_device("h100"), bf16)


def plan_hundred_steps(engine: str, bf16: bool = False) -> StagePlan:
    settings = {"max_steps": 100, "save_total_limit": 2}
    section = SimpleNamespace(training=settings, tokens_per_step=1000, evaluation_tokens=0)
    optimizer_bytes = 8 * count_parameters(tiny_config()).trained
    return plan_pretraining(section, 0, optimizer_bytes, plan_on_eight_cards(engine, bf16))


def test_the_disk_holds_the_states_of_all_devices_and_what_the_engine_adds():
    count = count_parameters(tiny_config()).trained
    assert plan_hundred_steps("DDP").disk == disk_bytes(12 * count, {}, 4 * count)
    assert plan_hundred_steps("FSDP2").disk == disk_bytes(16 * count, {}, 4 * count)
    assert plan_hundred_steps("ZeRO-3, offload").disk == disk_bytes(20 * count, {}, 4 * count)
    assert plan_hundred_steps("ZeRO-1", bf16=True).disk == disk_bytes(16 * count, {}, 2 * count)


def test_the_disk_holds_checkpoints_of_the_adapters_alone():
    section = {"lora": {"r": 4, "target_modules": "all-linear"}, "training": {"max_steps": 10}}
    counts = count_parameters(tiny_config(), section["lora"])
    stage = plan_tuning("sft", section, 0, plan_on_eight_cards("DDP"))
    assert stage.disk == disk_bytes(12 * counts.trained, {}, 4 * (counts.trained + counts.frozen))
