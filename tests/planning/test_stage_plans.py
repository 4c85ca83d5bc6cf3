"""Hours, evaluations and disk of the stages, before they are made."""

from types import SimpleNamespace

import pytest

from hf_llm.hardware.devices import device_named
from hf_llm.planning.cost import disk_bytes
from hf_llm.planning.memory_estimate import sizes
from hf_llm.planning.stage_plans import Place, evaluations, pretraining, tuning
from tests.tiny_models import tiny_config


@pytest.mark.parametrize(
    ("training", "times"),
    [
        ({}, 60),
        ({"logging_steps": 50}, 12),
        ({"eval_steps": 250}, 3),  # after 250, 500 and at the end
        ({"eval_steps": 0.1}, 10),
        ({"eval_steps": None, "logging_steps": 0.5}, 2),
        ({"eval_strategy": "no"}, 1),
    ],
)
def test_evaluations_are_counted_as_trainer_makes_them(training, times):
    assert evaluations(training, 600) == times


def place(engine: str, bf16: bool = False) -> Place:
    return Place(tiny_config(), engine, 1e6, 8, device_named("h100"), bf16, {})


def trained(engine: str, bf16: bool = False, **training):
    settings = {"max_steps": 100, "save_total_limit": 2, **training}
    section = SimpleNamespace(training=settings, tokens_per_step=1000, evaluation_tokens=0)
    return pretraining(section, 0, 8 * sizes(tiny_config()).trained, place(engine, bf16))


def test_the_disk_holds_the_states_of_all_devices_and_what_the_engine_adds():
    count = sizes(tiny_config()).trained
    assert trained("DDP").disk == disk_bytes(12 * count, 2, 4 * count)
    assert trained("FSDP2").disk == disk_bytes(16 * count, 2, 4 * count)
    assert trained("ZeRO-3, offload").disk == disk_bytes(20 * count, 2, 4 * count)
    assert trained("ZeRO-1", bf16=True).disk == disk_bytes(16 * count, 2, 2 * count)


def test_adapters_take_little_of_it():
    section = {"lora": {"r": 4, "target_modules": "all-linear"}, "training": {"max_steps": 10}}
    amount = sizes(tiny_config(), section["lora"])
    found = tuning("sft", section, 0, place("DDP"))
    assert found.disk == disk_bytes(12 * amount.trained, 0, 4 * (amount.trained + amount.frozen))
