"""Sizing: what follows from a sizing key, what overrides it, and what is refused."""

import math

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hf_llm.core.errors import UserError
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.summary import flops_per_token
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.sizing import (
    DATA_SHEET_UTILISATION,
    apply_sizing,
    best_tokens_per_step,
    choose_heads,
    choose_vocabulary,
    format_quantity,
    parse_quantity,
    read_shape,
    round_up_to_heads,
)
from hf_llm.pipeline.stages import STAGES
from hf_llm.pretrain import Recipe as Pretrain
from hf_llm.train_tokenizer import Recipe as TrainTokenizer

TEXTS = {"corpus": {"sources": [{"path": "texts", "license": "cc0-1.0"}]}}


def build_model(tree):
    """Build the model that a sized tree describes, without memory for its weights."""
    sizes = {**tree["model"], "vocab_size": tree["model"].get("vocab_size") or tree["tokenizer"]["vocab_size"]}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(HfLlmConfig(**sizes))


def write_recipe(folder, **tree):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**TEXTS, **tree}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("wanted", ["5M", "8M", "12.3M", "30M", "60M", "125M", "350M", "774M", "1.3B", "3B"])
def test_the_model_has_the_parameters_asked_for(wanted):
    tree, _ = apply_sizing({"params": wanted})
    model = build_model(tree)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(parse_quantity(wanted, "params"), rel=0.05)
    assert parameters == read_shape(tree).parameters
    context = tree["model"]["max_position_embeddings"]
    assert read_shape(tree).flops_per_token(context) == flops_per_token(model, context)


def test_every_size_from_5m_to_3b_is_met_within_5_percent():
    for step in range(200):
        wanted = 5e6 * 600 ** (step / 199)
        shape = read_shape(apply_sizing({"params": wanted})[0])
        assert shape.parameters == pytest.approx(wanted, rel=0.05)
        assert 32 <= shape.width / shape.layers <= 128
        assert shape.width % shape.heads == 0 and shape.head_dim % 8 == 0


def test_shape_counts_untied_and_grouped_models_exactly():
    model = {"tie_word_embeddings": False, "num_key_value_heads": 2}
    tree, _ = apply_sizing({"depth": 4, "model": model})
    assert sum(p.numel() for p in build_model(tree).parameters()) == read_shape(tree).parameters
    context = tree["model"]["max_position_embeddings"]
    assert flops_per_token(build_model(tree), context) == read_shape(tree).flops_per_token(context)


def test_depth_twelve_is_the_shape_of_gpt_2_with_a_vocabulary_that_fits_it():
    tree, reasons = apply_sizing({"depth": 12})
    sizes = tree["model"]
    assert (sizes["num_hidden_layers"], sizes["hidden_size"], sizes["num_attention_heads"]) == (12, 768, 12)
    assert sizes["intermediate_size"] == 2048

    shape = read_shape(tree)
    training = tree["pretrain"]["training"]
    tokens = training["max_steps"] * tree["pretrain"]["tokens_per_step"]
    assert tokens == pytest.approx(20 * shape.parameters, rel=0.001)
    # The formulas as printed in https://arxiv.org/abs/2503.04715: N without embeddings, D in tokens.
    assert training["learning_rate"] == pytest.approx(1.79 * shape.inner_parameters**-0.713 * tokens**0.307, rel=0.02)
    assert 2**-0.5 <= tree["pretrain"]["tokens_per_step"] / (0.58 * tokens**0.571) <= 2**0.5
    assert training["weight_decay"] == 0.1
    assert all(reasons.values())

    derived = {f"tokenizer.{key}" for key in tree["tokenizer"]}
    derived |= {f"model.{key}" for key in sizes}
    derived |= {f"pretrain.{key}" for key in tree["pretrain"] if key != "training"}
    derived |= {f"pretrain.training.{key}" for key in training}
    assert set(reasons) == derived


def test_the_scaling_rules_give_what_their_papers_print():
    # https://arxiv.org/abs/2407.13623, approach 2: 6,144 for 33M at width 512, about 40K for 2.87B at 3,200.
    assert choose_vocabulary(33_000_000, 512) == 6144
    assert choose_vocabulary(2_870_000_000, 3200) == pytest.approx(41_000, rel=0.03)
    # https://arxiv.org/abs/2503.04715: about a million tokens a step for 100B.
    assert best_tokens_per_step(1e11) == pytest.approx(1.1e6, rel=0.05)
    assert [round_up_to_heads(width) for width in (65, 512, 513, 2049)] == [128, 512, 640, 2176]
    assert [choose_heads(width) for width in (64, 768, 2048, 96)] == [1, 12, 16, 2]


def test_flops_are_spent_on_twenty_tokens_for_each_parameter():
    for budget in (1e15, 1e17, 1e19, 1e21):
        tree, _ = apply_sizing({"flops": budget})
        shape = read_shape(tree)
        context = tree["model"]["max_position_embeddings"]
        tokens = tree["pretrain"]["training"]["max_steps"] * tree["pretrain"]["tokens_per_step"]
        assert tokens * shape.flops_per_token(context) == pytest.approx(budget, rel=0.01)
        assert tokens / shape.parameters == pytest.approx(20, rel=0.15)


def test_hours_are_converted_to_flops_on_named_or_measured_hardware():
    named, reasons = apply_sizing({"hours": 24, "machine": "4xrtx4090"})
    spent, _ = apply_sizing({"flops": 24 * 3600 * 4 * 165.2e12 * DATA_SHEET_UTILISATION})
    assert named["model"] == spent["model"]
    for key in ("max_steps", "learning_rate"):
        assert named["pretrain"]["training"][key] == spent["pretrain"]["training"][key]
    assert "24 hours" in reasons["pretrain.training.max_steps"]
    measured, _ = apply_sizing({"hours": 1, "machine": 1e11})
    assert measured["model"] == apply_sizing({"flops": 3600 * 1e11})[0]["model"]


def test_a_step_divides_evenly_among_the_devices_of_machine():
    tree, _ = apply_sizing({"params": "125M", "machine": "6xh100"})
    assert tree["pretrain"]["tokens_per_step"] % (6 * tree["model"]["max_position_embeddings"]) == 0


def test_hours_beside_a_size_decide_how_long_it_is_trained():
    tree, reasons = apply_sizing({"params": "125M", "machine": "1xh100"}, hours=2)
    tokens = tree["pretrain"]["training"]["max_steps"] * tree["pretrain"]["tokens_per_step"]
    per_token = read_shape(tree).flops_per_token(tree["model"]["max_position_embeddings"])
    assert tokens * per_token == pytest.approx(2 * 3600 * DATA_SHEET_UTILISATION * 989.4e12, rel=0.01)
    assert read_shape(tree).parameters == pytest.approx(125e6, rel=0.05)
    assert "2 hours" in reasons["pretrain.training.max_steps"]


def test_what_the_recipe_says_stays_and_the_rest_follows_it():
    model = {"hidden_size": 512, "max_position_embeddings": 256}
    training = {"max_steps": 100, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    tree, reasons = apply_sizing({"depth": 12, "model": model, "pretrain": {"training": training}})
    assert (tree["model"]["hidden_size"], tree["model"]["num_attention_heads"]) == (512, 8)
    assert tree["model"]["max_position_embeddings"] == 256
    assert tree["pretrain"]["training"]["max_steps"] == 100
    assert tree["pretrain"]["training"]["warmup_steps"] == 5
    assert tree["pretrain"]["training"]["learning_rate"] == 1e-3
    assert "lr_scheduler_kwargs" not in tree["pretrain"]["training"]
    assert not {"model.hidden_size", "pretrain.training.max_steps", "pretrain.training.learning_rate"} & set(reasons)


def test_auto_is_derived_and_epochs_need_no_steps():
    tree, _ = apply_sizing({"depth": 4, "pretrain": {"training": {"learning_rate": "auto", "num_train_epochs": 2}}})
    training = tree["pretrain"]["training"]
    assert training["learning_rate"] > 0
    assert "max_steps" not in training
    assert training["warmup_steps"] == 0.05


def test_the_learning_rate_stays_within_what_was_tried():
    assert apply_sizing({"depth": 2})[0]["pretrain"]["training"]["learning_rate"] == pytest.approx(2**-7, rel=0.01)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"depth": 12, "params": "125M"}, "depth and params: one sizing key at a time"),
        ({"params": "many"}, "params: 'many' does not fit"),
        ({"params": "0"}, "a positive number"),
        ({"depth": True}, "depth: True does not fit"),
        ({"depth": 2.5}, "a number of layers"),
        ({"depth": 500}, "from 1 to 128"),
        ({"params": "1K"}, "is the nearest"),
        ({"params": "900T"}, "is the nearest"),
        ({"hours": 2}, "needs `machine:`"),
        ({"hours": 2, "machine": "4xrtx409"}, "did you mean rtx4090"),
        ({"hours": 2, "machine": "apple-m3"}, "publishes no FLOP/s"),
        ({"machine": "4xrtx4090"}, "machine: is read with one of depth"),
        ({"depth": 4, "model": {"model_type": "gpt2"}}, "model.model_type is 'gpt2'"),
        ({"depth": 4, "tokenizer": {"use": "gpt2"}}, "add model.vocab_size"),
        ({"depth": 4, "model": 3}, "model: 3 does not fit"),
        ({"depth": 4, "model": {"hidden_size": "wide"}}, "model.hidden_size: 'wide' does not fit"),
        ({"params": "125M", "model": {"hidden_size": 64}}, "is the nearest"),
    ],
)
def test_sizing_that_cannot_be_applied_says_why(tree, words):
    with pytest.raises(UserError) as error:
        apply_sizing(tree)
    assert words in str(error.value)


def test_an_existing_tokenizer_keeps_its_vocabulary():
    tree, _ = apply_sizing({"depth": 4, "tokenizer": {"use": "gpt2"}, "model": {"vocab_size": 50304}})
    assert "vocab_size" not in tree["tokenizer"]
    assert read_shape(tree).vocabulary == 50304


def test_a_tree_without_a_sizing_key_comes_back_unchanged():
    tree = {"name": "x", "model": {"hidden_size": 64}}
    assert apply_sizing(tree) == (tree, {})
    assert apply_sizing({"name": "x", "depth": None}) == ({"name": "x", "depth": None}, {})


def test_apply_sizing_does_not_change_its_argument():
    tree = {"depth": 4, "pretrain": {"training": {"seed": 1}}}
    apply_sizing(tree)
    assert tree == {"depth": 4, "pretrain": {"training": {"seed": 1}}}


def test_sizing_acts_in_every_stage_that_reads_its_sections(tmp_path):
    path = write_recipe(tmp_path, depth=4)
    sized, _ = apply_sizing({"depth": 4})
    assert Run([path]).read(TrainTokenizer).tokenizer.vocab_size == sized["tokenizer"]["vocab_size"]

    pretrain = Run([path, "--pretrain.training.learning_rate=1e-3"]).read(Pretrain)
    assert pretrain.model["num_hidden_layers"] == 4
    assert pretrain.pretrain.training["learning_rate"] == 1e-3
    assert pretrain.pretrain.training["max_steps"] > 1000
    assert Run([path, "--depth=6"]).read(Pretrain).model["num_hidden_layers"] == 6
    assert Run([path, "--depth=null", "--params=5M"]).read(Pretrain).model["hidden_size"] == 256


def test_a_misspelt_sizing_key_gets_a_hint(tmp_path):
    with pytest.raises(UserError, match="dept: no such key; did you mean depth"):
        Run([write_recipe(tmp_path, dept=4)]).read(Pretrain)


def test_another_sizing_is_another_run_and_the_same_values_written_out_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, depth=4)
    Run([path]).open_stage("tokenizer")
    printed = capsys.readouterr().out
    assert printed.count("tokenizer.vocab_size 2,048: ") == 1
    assert "pretrain." not in printed
    Run([path]).open_stage("base")
    printed = capsys.readouterr().out
    reasons = apply_sizing({"depth": 4})[1]
    for key in reasons:
        assert printed.count(f"{key} ") == (key != "tokenizer.vocab_size")
    Run([path]).open_stage("base")
    assert capsys.readouterr().out == ""  # printed once
    with pytest.raises(UserError, match=r"model\.num_hidden_layers: was 4, is 6"):
        Run([path, "--depth=6"]).open_stage("base")
    written, _ = apply_sizing({"depth": 4})
    del written["depth"]
    path = write_recipe(tmp_path, **written)
    Run([path]).open_stage("base")


def test_the_settings_of_a_stage_hold_the_resolved_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = Run([write_recipe(tmp_path, params="5M")]).open_stage("base")
    assert stage.settings["model.hidden_size"] == 256
    assert stage.settings["pretrain.training.learning_rate"] > 0
    assert not {"params", "depth"} & {key.split(".")[0] for key in stage.settings}
    assert "model" in STAGES["base"].sections


@pytest.mark.parametrize(
    ("text", "number"),
    [("125M", 125e6), ("1.3b", 1.3e9), ("1e18", 1e18), (12, 12), ("2T", 2e12), (" 350 m", 350e6), ("1_000", 1000)],
)
def test_parse_quantity_reads_numbers_as_people_write_them(text, number):
    assert parse_quantity(text, "params") == number
    assert parse_quantity(format_quantity(number), "params") == pytest.approx(number, rel=0.01)


@pytest.mark.parametrize("text", ["", "M", "-5M", "5Q", "inf", math.nan, None, "1..2", False])
def test_parse_quantity_refuses_other_values(text):
    with pytest.raises(UserError, match="params"):
        parse_quantity(text, "params")
