"""What TRL's trainers of answers lack."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from hf_llm.posttraining.group_trainer import add_position_ids
from tests.tiny_models import tiny_model


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


def adapted():
    return get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)).eval()


@pytest.mark.parametrize("make", [gpt2, adapted, tiny_model])
@torch.no_grad()
def test_padding_on_the_left_takes_no_positions(make):
    model, tokens = make(), torch.randint(0, 250, (1, 12))
    padded = torch.nn.functional.pad(tokens, (6, 0))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (6, 0))
    alone = model(input_ids=tokens).logits
    if make is not tiny_model:
        assert (model(input_ids=padded, attention_mask=mask).logits[:, 6:] - alone).abs().max() > 0.1
    model.register_forward_pre_hook(add_position_ids, with_kwargs=True)
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, 6:], alone, rtol=0, atol=1e-4)
