"""Samples during training: there to read, and without any effect on the training."""

import json
import random
from types import SimpleNamespace

import numpy
import pytest
import torch

from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks import samples as sampling
from hf_llm.monitoring.callbacks.samples import SampleCallback, SamplesSection, weights_are_sharded
from tests.monitoring.tiny_training import NumberDrawer, Rows

PROMPTS = ["w1 w2", "w3"]


def train_with_samples(make_trainer, tokenizer, samples):
    rows = Rows([8] * 8, 8)
    trainer = make_trainer(rows, rows, tokenizer=tokenizer, max_steps=6, eval_strategy="steps", eval_steps=2)
    draws = NumberDrawer()
    trainer.add_callback(draws)
    attach_callbacks(trainer, samples=samples)
    trainer.train()
    losses = [entry["loss"].hex() for entry in trainer.state.log_history if "loss" in entry]
    return losses, draws.drawn, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_a_run_is_bit_equal_with_and_without_samples(make_trainer, tokenizer, monkeypatch):
    def write_with_noise(*args, **kwargs):
        random.random(), numpy.random.rand(), torch.rand(1)  # as sampling at a temperature would
        return write(*args, **kwargs)

    write = sampling.complete_or_infill
    monkeypatch.setattr(sampling, "complete_or_infill", write_with_noise)
    plain, sampled = (
        train_with_samples(make_trainer, tokenizer, s) for s in (None, SamplesSection(PROMPTS, max_new_tokens=5))
    )
    assert plain[0] == sampled[0]
    assert plain[1] == sampled[1]
    assert all(torch.equal(plain[2][name], sampled[2][name]) for name in plain[2])


def test_samples_of_every_prompt_are_recorded_and_printed(make_trainer, tokenizer, tmp_path, capsys):
    train_with_samples(make_trainer, tokenizer, SamplesSection(PROMPTS, every=2, max_new_tokens=5))
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(step, prompt) for step in (2, 6) for prompt in PROMPTS]
    assert all(row["text"].split() and "w1 w2" not in row["text"][:5] for row in rows)
    assert capsys.readouterr().out.count("[step 2] ") == 2


def test_the_mode_of_the_model_is_restored(make_trainer, tokenizer):
    trainer = make_trainer(Rows([8] * 2, 8), tokenizer=tokenizer)
    callback = SampleCallback(trainer, SamplesSection(PROMPTS, max_new_tokens=2))
    for mode in (True, False):
        trainer.model.train(mode)
        callback._complete_prompts(trainer.model)
        assert trainer.model.training is mode


def test_an_evaluation_outside_training_makes_no_samples(make_trainer, tokenizer, tmp_path):
    rows = Rows([8] * 2, 8)
    trainer = make_trainer(rows, rows, tokenizer=tokenizer)
    attach_callbacks(trainer, samples=SamplesSection(PROMPTS))
    trainer.evaluate()
    assert not (tmp_path / "out" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("stage", "fsdp", "sharded"), [(2, False, False), (3, False, True), (None, True, True), (None, False, False)]
)
def test_weights_are_sharded_under_zero_3_and_fsdp_only(stage, fsdp, sharded):
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    trainer = SimpleNamespace(
        is_deepspeed_enabled=stage is not None,
        is_fsdp_enabled=fsdp,
        is_distributed_loading_by_transformers=False,
        accelerator=SimpleNamespace(state=plugin),
    )
    assert weights_are_sharded(trainer) is sharded


def test_settings_below_one_are_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        SamplesSection(["a"], every=0)
