from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from hf_llm.core.errors import UserError
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.posttraining.packing_check import can_packed_examples_attend, check_packing

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HfLlmForCausalLM(HfLlmConfig(**SIZES, **HEADS, head_dim=8))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_examples_of_a_packed_row_do_not_see_each_other(model, attention):
    model.set_attn_implementation(attention)
    assert not can_packed_examples_attend(model)


def test_a_packed_example_has_the_logits_it_has_alone(model):
    model.eval()
    first, second = torch.arange(9), torch.arange(20, 31)
    packed = model(
        input_ids=torch.cat([first, second])[None], position_ids=torch.cat([torch.arange(9), torch.arange(11)])[None]
    ).logits[0]
    torch.testing.assert_close(packed[:9], model(input_ids=first[None]).logits[0])
    torch.testing.assert_close(packed[9:], model(input_ids=second[None]).logits[0])


def leaky(model):
    """The model with an attention mask of its own making, all ones: transformers then sees one text."""
    forward = model.forward

    def without_positions(input_ids, position_ids=None, **kwargs):
        return forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **kwargs)

    model.forward = without_positions
    return model


def test_a_leak_is_seen(model):
    assert can_packed_examples_attend(leaky(model))


def trainer_of(model, **arguments):
    return SimpleNamespace(
        args=SimpleNamespace(**{"packing": True, "packing_strategy": "bfd", **arguments}),
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        is_distributed_loading_by_transformers=False,
    )


def test_packing_that_leaks_is_refused(model):
    check_packing(trainer_of(model))
    with pytest.raises(UserError, match="wrapped cuts conversations anywhere"):
        check_packing(trainer_of(model, packing_strategy="wrapped"))
    with pytest.raises(UserError, match="attend to each other; set packing: false"):
        check_packing(trainer_of(leaky(model)))
    check_packing(trainer_of(model, packing=False))


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SIZES, **HEADS), GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)]
)
def test_other_architectures_are_tried_too(config):
    torch.manual_seed(0)
    assert not can_packed_examples_attend(AutoModelForCausalLM.from_config(config))
