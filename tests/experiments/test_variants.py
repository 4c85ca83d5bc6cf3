"""What `--vary` means: recipes that differ in something, checked all together, with names and data of their own."""

from pathlib import Path

import pytest
import yaml

from hf_llm.core.errors import UserError
from hf_llm.experiments.experiment import Experiment
from hf_llm.experiments.variants import BASELINE, combine_factors, parse_factor, select_pretraining_keys
from hf_llm.pipeline.run import Run
from tests.tiny_recipe import RECIPE

TREE = select_pretraining_keys(yaml.safe_load(RECIPE))


def combine(*factors):
    return combine_factors(TREE, dict(parse_factor(factor) for factor in factors), "ablation")


def combined_names(*factors):
    return [variant.name for variant in combine(*factors)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model.positions=rope,alibi", ["rope", "alibi"]),
        ("pretrain.training.learning_rate=1e-3, 2e-3", [1e-3, 2e-3]),
        ("model.sliding_window=null,64", [None, 64]),
        ("model.layer_types=[[full_attention],[sliding_attention]]", [["full_attention"], ["sliding_attention"]]),
        ("model.layer_types=[full_attention],[sliding_attention]", [["full_attention"], ["sliding_attention"]]),
        ("corpus.split={train: 0.8},{train: 0.9}", [{"train": 0.8}, {"train": 0.9}]),
    ],
)
def test_values_are_yaml(text, values):
    assert parse_factor(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.positions", "write --vary"),
        ("model.positions=", "write --vary"),
        ("params=1M,2M", "hf_llm.scaling"),
        ("sft.lora.r=1,2", "below corpus, tokenizer, model, pretrain"),
        ("model.positions=[rope", "cannot parse"),
    ],
)
def test_what_cannot_be_varied_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_factor(text)


def test_the_recipe_is_the_baseline_and_its_own_values_are_no_variants():
    assert combined_names("model.positions=rope,alibi,learned") == [BASELINE, "positions-alibi", "positions-learned"]
    assert combined_names("model.hidden_size=32,48") == [BASELINE, "hidden_size-48"]
    assert combined_names("tokenizer.sample_bytes=200000000,1000") == [BASELINE, "sample_bytes-1000"]
    # null means as many as there are heads: 4.
    assert combined_names("model.num_key_value_heads=2,4,null") == [BASELINE, "num_key_value_heads-4"]


def test_several_keys_are_a_grid_named_by_what_differs():
    variant_names = combined_names("model.positions=rope,alibi", "pretrain.training.learning_rate=3e-3,1e-3")
    assert variant_names == [BASELINE, "learning_rate-0.001", "positions-alibi", "positions-alibi_learning_rate-0.001"]


def test_values_that_fit_only_together_are_a_variant():
    variants = combine("model.layer_types=[[sliding_attention]]", "model.sliding_window=16")
    assert len(variants) == 2
    assert variants[1].tree["model"]["sliding_window"] == 16


def test_every_wrong_value_is_named_before_anything_is_made():
    with pytest.raises(UserError) as error:
        combine("model.positions=alibi,rotary,circular", "pretrain.tokens_per_step=1024,1000")
    message = str(error.value)
    assert "rotary" in message and "circular" in message and "1000 is not a multiple" in message


def test_sizes_that_contradict_each_other_are_named():
    with pytest.raises(UserError, match="sliding_window-1:"):
        combine("model.sliding_window=1")


def test_nothing_that_differs_is_an_error():
    with pytest.raises(UserError, match="no value differs"):
        combine("model.positions=rope")


def test_long_values_get_names_that_stay_apart():
    variant_names = combined_names(
        "model.rope_parameters={rope_type: linear, factor: 2.0, rope_theta: 10000.0},"
        "{rope_type: linear, factor: 4.0, rope_theta: 10000.0}"
    )
    assert len(set(variant_names)) == 3
    assert all(len(name) < 80 and "/" not in name and " " not in name for name in variant_names)


def test_variants_share_their_data_unless_what_varies_makes_it():
    same, other, like_other = combine("tokenizer.vocab_size=320,384", "model.positions=rope,alibi")[1:]
    assert [variant.name for variant in (same, other, like_other)] == [
        "positions-alibi",
        "vocab_size-384",
        "vocab_size-384_positions-alibi",
    ]
    assert same.tree["name"] == "tiny"
    assert other.tree["name"] == like_other.tree["name"]
    assert other.tree["name"].startswith("tiny/ablation/data/")


def test_nothing_of_a_variant_is_uploaded_or_fixes_its_seed():
    training = {"push_to_hub": True, "hub_model_id": "a/b", "seed": 3, "data_seed": 4, "max_steps": 2}
    recipe = {"name": "x", "pretrain": {"tokens_per_step": 1024, "training": training}, "sft": {}}
    tree = select_pretraining_keys(recipe)
    assert tree["pretrain"]["training"] == {"max_steps": 2}
    assert "sft" not in tree


def over_two_tokenizers(tree):
    variants = combine_factors(tree, dict([parse_factor("tokenizer.vocab_size=320,384")]), "ablation")
    Path("r.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return Experiment(Run(["r.yaml"]), "ablation", variants, 1, "none", True)


def test_causal_models_are_compared_over_other_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len({training.variant.tree["name"] for training in over_two_tokenizers(TREE).trainings}) == 2


def test_models_without_bits_per_byte_are_not_compared_over_other_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bert = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}
    with pytest.raises(UserError, match="masked models have none"):
        over_two_tokenizers({**TREE, "model": bert})
