"""Variants made equal to the baseline in parameters or FLOPs, over all switches of the model."""

import pytest
import yaml
from transformers import AutoModelForCausalLM

from hf_llm.core.errors import UserError
from hf_llm.experiments.matched_sizes import TOLERANCE, equalised, measures
from hf_llm.experiments.variants import Variant, checked, pretraining_tree, with_changes
from hf_llm.model.summary import flops_per_token
from tests.tiny_recipe import RECIPE
from tests.variants import CHANGES

TREE = pretraining_tree(yaml.safe_load(RECIPE))
BASELINE = Variant("baseline", {}, TREE)


def variant(changes):
    changes = {f"model.{key}": value for key, value in changes.items()}
    return Variant("changed", changes, with_changes(TREE, changes))


def measured(tree):
    found = checked(tree, "here")
    return measures(found.config, found.context)


@pytest.mark.parametrize("equal", ["parameters", "flops"])
@pytest.mark.parametrize("name", CHANGES)
def test_every_switch_is_made_equal_within_one_per_cent(name, equal):
    # Experts' own width is left open, so that it can be fitted.
    changed = variant({key: value for key, value in CHANGES[name].items() if key != "moe_intermediate_size"})
    fitted = equalised(changed, BASELINE, equal)
    assert measured(fitted.tree)[equal] == pytest.approx(measured(TREE)[equal], rel=TOLERANCE)
    for key, value in changed.changes.items():
        assert fitted.tree["model"][key.removeprefix("model.")] == value


def test_what_is_counted_is_what_the_built_model_has():
    fitted = equalised(variant({"use_gated_mlp": False, "positions": "learned"}), BASELINE, "parameters")
    config = checked(fitted.tree, "here").config
    model = AutoModelForCausalLM.from_config(config)
    assert measured(fitted.tree) == {"parameters": model.num_parameters(), "flops": flops_per_token(model, 128)}


def test_the_width_stays_where_the_mlp_can_make_up_for_the_difference():
    fitted = equalised(variant({"use_gated_mlp": False, "hidden_act": "gelu"}), BASELINE, "parameters")
    assert fitted.fitted == {"model.intermediate_size": 96}  # three halves of 64: two matrices instead of three


def test_a_model_of_twice_the_layers_becomes_narrower_its_heads_in_proportion():
    fitted = equalised(variant({"num_hidden_layers": 8}), BASELINE, "flops").tree["model"]
    assert fitted["hidden_size"] < TREE["model"]["hidden_size"]
    assert fitted["num_attention_heads"] == 2 * fitted["num_key_value_heads"]


def test_another_family_is_fitted_under_its_own_names():
    fitted = equalised(gpt2 := variant({"model_type": "gpt2"}), BASELINE, "none")
    assert fitted is gpt2
    tree = {**TREE, "model": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64}}
    deeper = {"model.n_layer": 3}
    found = equalised(
        Variant("deeper", deeper, with_changes(tree, deeper)), Variant("baseline", {}, tree), "parameters"
    )
    assert measured(found.tree)["parameters"] == pytest.approx(measured(tree)["parameters"], rel=TOLERANCE)
    assert set(found.fitted) <= {"model.n_embd", "model.n_inner", "model.n_head"}


def test_where_no_size_fits_the_error_names_the_variant_and_the_nearest():
    changes = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 256}
    with pytest.raises(
        UserError, match=r"changed: .*within 1% of the baseline's [\d,]+ parameters; [\d,]+ \(\+.*nearest"
    ):
        equalised(variant(changes), BASELINE, "parameters")
