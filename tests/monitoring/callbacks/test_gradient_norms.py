"""Gradient norms by part of the model: what they add up to, whatever clips, accumulates or splits them."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks import gradient_norms
from hf_llm.monitoring.callbacks.gradient_norms import PARTS, model_part
from tests.monitoring.tiny_training import Rows

SETTINGS = {"max_steps": 4, "gradient_accumulation_steps": 2}


class NormRecorder(TrainerCallback):
    """The norms as they stand before the optimizer's step, one parameter at a time."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        squares = {}
        for name, parameter in model.named_parameters():
            part = model_part(name)
            squares[part] = squares.get(part, 0.0) + parameter.grad.square().sum().item()
        self.norms.append({part: math.sqrt(square) for part, square in squares.items()})


def train_with_norms(make_trainer, **settings):
    trainer = make_trainer(Rows([8] * 8, 8), **{**SETTINGS, **settings})
    recorder = NormRecorder()
    attach_callbacks(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{part: entry[f"grad_norm/{part}"] for part in PARTS} for entry in entries], entries, recorder.norms


def test_logged_norms_are_those_of_the_accumulated_gradients(make_trainer):
    logged, entries, by_hand = train_with_norms(make_trainer, max_grad_norm=0)
    assert len(logged) == 4
    for norms, entry, expected in zip(logged, entries, by_hand, strict=True):
        assert norms == pytest.approx(expected, rel=1e-4)
        assert math.hypot(*norms.values()) == pytest.approx(entry["grad_norm"], rel=1e-4)


def test_logged_norms_are_from_before_clipping(make_trainer):
    unclipped, _, _ = train_with_norms(make_trainer, max_grad_norm=0, learning_rate=0.0)
    clipped, _, after = train_with_norms(make_trainer, max_grad_norm=0.01, learning_rate=0.0)
    assert math.hypot(*after[0].values()) == pytest.approx(0.01, rel=1e-3)
    for one, other in zip(unclipped, clipped, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_norms_are_computed_only_in_steps_that_are_logged(make_trainer, monkeypatch):
    calls = []
    measure = gradient_norms.gradient_norm
    monkeypatch.setattr(gradient_norms, "gradient_norm", lambda parameters: calls.append(1) or measure(parameters))
    logged, _, _ = train_with_norms(make_trainer, max_steps=9, logging_steps=4)
    assert len(logged) == 2
    assert len(calls) == 2 * len(PARTS)


def test_a_part_that_is_frozen_has_no_norm(make_trainer):
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=1)
    trainer.model.model.embed_tokens.requires_grad_(False)
    attach_callbacks(trainer)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert "grad_norm/embeddings" not in entry
    assert entry["grad_norm/mlp"] > 0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "bert", "modernbert", "t5", "mixtral", "gpt_neox", "opt"])
def test_every_parameter_of_an_architecture_has_its_part(kind):
    with torch.device("meta"):
        config = AutoConfig.for_model(kind)
        if kind == "t5":
            from transformers import AutoModelForSeq2SeqLM as Model
        elif kind in ("bert", "modernbert"):
            Model = AutoModelForSequenceClassification
        else:
            Model = AutoModelForCausalLM
        config.tie_word_embeddings = False
        small = {"num_hidden_layers": 1, "n_layer": 1, "num_layers": 1, "num_decoder_layers": 1, "num_local_experts": 2}
        for key, value in small.items():
            if getattr(config, key, None):
                setattr(config, key, value)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
        parts = {name: model_part(name) for name, _ in Model.from_config(config).named_parameters()}
    assert [name for name, part in parts.items() if part == "other"] == []
    assert {"embeddings", "attention", "mlp", "norms", "head"} == set(parts.values())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("model.layers.0.post_attention_layernorm.weight", "norms"),
        ("model.layers.0.mlp.experts.gate_up_proj", "mlp"),
        ("policy.lm_head.weight", "head"),
        ("critic.score.weight", "head"),
        ("transformer.wpe.weight", "embeddings"),
        ("something.new", "other"),
    ],
)
def test_model_part_follows_from_the_parameters_name(name, part):
    assert model_part(name) == part
