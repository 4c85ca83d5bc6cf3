"""How long a training will take, said before it: from steps of a copy of its model, on the shapes of its batches."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from hf_llm.training.training_time import (
    UNKNOWN,
    BatchShape,
    StepSeconds,
    TrainingTime,
    average_shape,
    count_evaluations,
    describe_training_time,
    estimate_training_time,
    time_step,
)
from tests.tiny_models import tiny_model
from tests.training.test_pretraining_trainer import Rows, trained


@pytest.fixture(autouse=True)
def alone_on_a_cpu(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_step_is_its_micro_batches_and_one_update():
    seconds = StepSeconds(forward_and_backward=0.3, update=0.1)
    assert seconds.of_step(4) == pytest.approx(1.3)
    assert seconds.of_step(1, reference_passes=1) == pytest.approx(0.5)


def test_the_time_is_said_with_its_parts():
    assert TrainingTime(600, 0.146, 1.2).describe() == (
        "about 1 min 29 s on this machine: 600 steps of 146 ms, evaluations 1.2 s"
    )
    assert TrainingTime(3, 2.5, 0.0).describe() == "about 7.5 s on this machine: 3 steps of 2.5 s"


def test_the_mean_shape_has_the_mean_tokens():
    shape = average_shape([(8, 10), (8, 30)])
    assert shape == BatchShape(8, 20)
    assert shape.tokens == 160


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"eval_strategy": "steps", "eval_steps": 5}, 4),
        ({"eval_strategy": "steps", "eval_steps": 0.25}, 4),
        ({"eval_strategy": "epoch"}, 2),
        ({"eval_strategy": "no"}, 1),
    ],
)
def test_evaluations_are_counted_with_the_last_one(settings, evaluations, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)
    assert count_evaluations(arguments, steps=20, steps_of_epoch=12.5) == evaluations


def test_timing_leaves_the_model_and_the_random_state_alone(tmp_path):
    model = tiny_model(attention_dropout=0.1)
    weights = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    seconds = time_step(model, arguments, BatchShape(4, 16), None)
    assert seconds.forward_and_backward > 0
    assert seconds.update > 0
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weight, parameter) for weight, parameter in zip(weights, model.parameters(), strict=True))


def test_what_is_left_counts_in_a_resumed_training(tmp_path):
    trainer = trained(tmp_path, "hf_llm", accumulation=2, max_steps=4)
    trainer.eval_dataset = Rows(16)
    whole = estimate_training_time(trainer, "base")
    assert whole is not None
    assert whole.steps == 4
    assert whole.evaluation_seconds > 0
    (tmp_path / "checkpoint-3").mkdir()
    left = estimate_training_time(trainer, "base")
    assert left is not None
    assert left.steps == 1


def test_what_is_not_known_is_said(monkeypatch):
    assert describe_training_time(SimpleNamespace(), "grpo").startswith(UNKNOWN)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert describe_training_time(SimpleNamespace(), "base") == UNKNOWN


def test_what_was_timed_a_moment_ago_is_not_timed_again(tmp_path, monkeypatch):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    seconds = time_step(tiny_model(), arguments, BatchShape(4, 16), None)
    assert time_step(tiny_model(), arguments, BatchShape(4, 16), None) == seconds
    assert time_step(tiny_model(), arguments, BatchShape(4, 17), None) != seconds
    monkeypatch.setattr("hf_llm.training.training_time.MAX_AGE_SECONDS", -1.0)
    assert time_step(tiny_model(), arguments, BatchShape(4, 16), None) != seconds
