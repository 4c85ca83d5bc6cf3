"""Variants made equal to the baseline in parameters or FLOPs, over all switches of the model."""

import pytest
import yaml
from transformers import AutoModelForCausalLM

from hf_llm.core.errors import UserError
from hf_llm.experiments.matched_sizes import TOLERANCE, match_baseline, measure_model
from hf_llm.experiments.variants import Variant, plan_pretraining, select_pretraining_keys, set_keys
from hf_llm.model.summary import flops_per_token
from tests.tiny_recipe import RECIPE
from tests.variants import CHANGES

TREE = select_pretraining_keys(yaml.safe_load(RECIPE))
BASELINE = Variant("baseline", {}, TREE)


def make_variant(changes):
    changes = {f"model.{key}": value for key, value in changes.items()}
    return Variant("changed", changes, set_keys(TREE, changes))


def measure_recipe(tree):
    pretraining = plan_pretraining(tree, "recipe")
    return measure_model(pretraining.config, pretraining.context)


@pytest.mark.parametrize("equal", ["parameters", "flops"])
@pytest.mark.parametrize("name", CHANGES)
def test_every_switch_is_made_equal_within_one_per_cent(name, equal):
    # Experts' own width is left open, so that it can be fitted.
    changed = make_variant({key: value for key, value in CHANGES[name].items() if key != "moe_intermediate_size"})
    fitted = match_baseline(changed, BASELINE, equal)
    assert measure_recipe(fitted.tree)[equal] == pytest.approx(measure_recipe(TREE)[equal], rel=TOLERANCE)
    for key, value in changed.changes.items():
        assert fitted.tree["model"][key.removeprefix("model.")] == value


def test_what_is_counted_is_what_the_built_model_has():
    fitted = match_baseline(make_variant({"use_gated_mlp": False, "positions": "learned"}), BASELINE, "parameters")
    config = plan_pretraining(fitted.tree, "recipe").config
    model = AutoModelForCausalLM.from_config(config)
    assert measure_recipe(fitted.tree) == {"parameters": model.num_parameters(), "flops": flops_per_token(model, 128)}


def test_the_width_stays_where_the_mlp_can_make_up_for_the_difference():
    fitted = match_baseline(make_variant({"use_gated_mlp": False, "hidden_act": "gelu"}), BASELINE, "parameters")
    assert fitted.fitted == {"model.intermediate_size": 96}  # three halves of 64: two matrices instead of three


def test_a_model_of_twice_the_layers_becomes_narrower_its_heads_in_proportion():
    fitted = match_baseline(make_variant({"num_hidden_layers": 8}), BASELINE, "flops").tree["model"]
    assert fitted["hidden_size"] < TREE["model"]["hidden_size"]
    assert fitted["num_attention_heads"] == 2 * fitted["num_key_value_heads"]


def test_another_family_is_fitted_under_its_own_names():
    gpt2 = make_variant({"model_type": "gpt2"})
    assert match_baseline(gpt2, BASELINE, "none") is gpt2
    tree = {**TREE, "model": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64}}
    deeper = {"model.n_layer": 3}
    fitted = match_baseline(
        Variant("deeper", deeper, set_keys(tree, deeper)), Variant("baseline", {}, tree), "parameters"
    )
    assert measure_recipe(fitted.tree)["parameters"] == pytest.approx(measure_recipe(tree)["parameters"], rel=TOLERANCE)
    assert set(fitted.fitted) <= {"model.n_embd", "model.n_inner", "model.n_head"}


def test_where_no_size_fits_the_error_names_the_variant_and_the_closest():
    changes = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 256}
    with pytest.raises(
        UserError, match=r"changed: .*within 1% of the baseline's [\d,]+ parameters; [\d,]+ \(\+.*closest"
    ):
        match_baseline(make_variant(changes), BASELINE, "parameters")
