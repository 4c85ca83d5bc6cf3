"""The `lora` section is checked before any work: its values, its names, the reference, and that it can be merged."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_llm.core.errors import UserError
from hf_llm.dpo import DpoSection
from hf_llm.grpo import GrpoSection
from hf_llm.kto import KtoSection
from hf_llm.model.adapters import largest_logit_difference, probe_tokens
from hf_llm.posttraining.lora import check_lora_fits
from hf_llm.posttraining.lora_settings import MOVING_STARTS, NEUTRAL_STARTS, check_lora_settings
from hf_llm.ppo import PpoSection
from hf_llm.reward import RewardSection
from hf_llm.rloo import RlooSection
from hf_llm.sft import SftSection
from tests.tiny_models import tiny_config, tiny_model

TOKENS = probe_tokens(320, 128)
WITH_REFERENCE = [DpoSection, KtoSection, GrpoSection, RlooSection, PpoSection]
WITHOUT_REFERENCE = [SftSection, RewardSection]

# What the reference (the model with its adapter switched off) does not survive.
OTHER_REFERENCE = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": False},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"kasa_config": {}},
]


@pytest.mark.parametrize("start", NEUTRAL_STARTS)
def test_a_neutral_start_changes_neither_the_model_nor_its_reference(start):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=start)
    model = get_peft_model(tiny_model(), config)
    assert largest_logit_difference(tiny_model(), model, TOKENS)[0] < 1e-5
    with model.disable_adapter():
        assert largest_logit_difference(tiny_model(), model, TOKENS)[0] == 0


@pytest.mark.parametrize("start", MOVING_STARTS)
def test_a_moving_start_makes_another_reference(start):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=start)
    model = get_peft_model(tiny_model(), config)
    with model.disable_adapter():
        assert largest_logit_difference(tiny_model(), model, TOKENS)[0] > 0.1


@pytest.mark.parametrize("section", WITH_REFERENCE)
@pytest.mark.parametrize("settings", OTHER_REFERENCE, ids=str)
def test_every_stage_with_a_reference_refuses_what_changes_it(section, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=f"lora.{key}: .*reference.*leave it out"):
        section(data=["anything"], lora={"target_modules": "all-linear", **settings})


@pytest.mark.parametrize("section", WITHOUT_REFERENCE)
@pytest.mark.parametrize("settings", OTHER_REFERENCE, ids=str)
def test_stages_without_a_reference_take_them(section, settings):
    section(data=["anything"], lora={"target_modules": "all-linear", **settings})


@pytest.mark.parametrize("section", [GrpoSection, RlooSection])
def test_without_a_weight_for_the_kl_there_is_no_reference(section):
    section(data=["anything"], lora={"init_lora_weights": "pissa"}, training={"beta": 0.0})


@pytest.mark.parametrize(
    "start", ["eva", "corda", "lora_ga", "loftq", "pissa_niter_4", "pissa_niter_[number of iters]"]
)
@pytest.mark.parametrize("section", [*WITH_REFERENCE, *WITHOUT_REFERENCE])
def test_starts_that_need_a_pass_before_or_cannot_be_repeated_are_refused(section, start):
    with pytest.raises(ValueError, match=r"lora.init_lora_weights: .*write"):
        section(data=["anything"], lora={"init_lora_weights": start})


@pytest.mark.parametrize("start", MOVING_STARTS)
def test_weights_in_few_bits_cannot_be_moved(start):
    with pytest.raises(ValueError, match="leave one of the two out"):
        check_lora_settings({"init_lora_weights": start}, has_reference=False, quantize="4bit")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ["qproj"]}, "target_modules: the model has no qproj; did you mean q_proj?"),
        (
            {"target_modules": ["c_attn"]},
            "the model has no c_attn; c_attn is a layer of gpt2, gpt_bigcode, btlm (layers of",
        ),
        ({"target_modules": ["Wqkv"]}, "Wqkv is a layer of mpt (layers of this model that take an adapter: down_proj"),
        ({"target_modules": ["strange"]}, "no strange; layers of this model that take an adapter: down_proj, embed"),
        ({"target_modules": ["q_proj", "vproj"]}, "target_modules: the model has no vproj; did you mean v_proj?"),
        ({"target_modules": "all-linear", "modules_to_save": ["head"]}, "modules_to_save: the model has no head"),
        ({"target_modules": "all-linear", "target_parameters": ["x"]}, "target_parameters: the model has no x"),
        ({"target_modules": "all-linear", "exclude_modules": ["x"]}, "exclude_modules: the model has no x"),
        ({"target_modules": "nothing.*"}, "layers of this model that take an adapter: down_proj"),
        ({"target_modules": "(("}, "unterminated subpattern"),
        ({}, "Please specify `target_modules`"),
        ({"target_modules": "all-linear", "r": 0}, "`r` should be a positive integer"),
        ({"target_modules": "all-linear", "lora_bias": True}, "the base layer has no bias"),
        ({"target_modules": "all-linear", "use_bdlora": {}}, "block-diagonal"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "cannot be used when"),
        ({"target_modules": ["q_proj", "lm_head"]}, "output layer"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "output layer"),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "output layer"),
    ],
    ids=str,
)
def test_an_adapter_that_does_not_fit_the_model_is_refused_without_its_weights(settings, words):
    with pytest.raises(UserError) as error:
        check_lora_fits(settings, tiny_config(), "sft")
    assert words in str(error.value) and "sft.lora" in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ".*q_proj"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": "all-linear", "init_lora_weights": "pissa"},
        {"target_modules": "all-linear", "init_lora_weights": False},
        {"target_modules": "all-linear", "kasa_config": {}},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
    ],
    ids=str,
)
def test_an_adapter_that_fits_is_taken(settings):
    check_lora_fits(settings, tiny_config(), "sft")
    if not settings.get("modules_to_save"):
        check_lora_fits(settings, tiny_config(), "reward", "SEQ_CLS")


def test_a_copy_of_the_output_layer_is_switched_off_with_the_adapter():
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model(), config)
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1)
    assert largest_logit_difference(tiny_model(), model, TOKENS)[0] > 0.1
    with model.disable_adapter():
        assert largest_logit_difference(tiny_model(), model, TOKENS)[0] == 0
        assert torch.equal(model.get_output_embeddings().weight, tiny_model().get_output_embeddings().weight)
