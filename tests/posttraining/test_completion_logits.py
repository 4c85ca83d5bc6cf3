"""Scoring answers alone gives what TRL's own head gives, with its gradients, on models of ours and with adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.posttraining.completion_logits import score_completions_only

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def model_of(adapter: bool):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = HfLlmForCausalLM(HfLlmConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    if adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    add_fused_lm_head(model.get_base_model() if adapter else model, temperature=0.7, outputs=OUTPUTS)
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 96, (3, 20), generator=generator)
    mask = (torch.arange(20) < torch.tensor([[20], [15], [11]])).long()
    labels = ids.masked_fill((mask == 0) | (torch.arange(20) < 7), IGNORE_INDEX)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "lora"])
def test_every_output_and_gradient_is_that_of_the_whole_head(adapter):
    whole, narrow = model_of(adapter), model_of(adapter)
    score_completions_only(narrow)
    score_completions_only(narrow)  # a second time changes nothing
    one, other = (model(**batch(), fused_lm_head=True) for model in (whole, narrow))
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert one.log_probs.shape == (3, 19) and (one.label_mask == other.label_mask).all()
    for found in (one, other):
        (found.log_probs * torch.linspace(-1, 1, 19)).sum().backward()
    for (name, first), (_, second) in zip(whole.named_parameters(), narrow.named_parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None), name
        if first.grad is not None:
            torch.testing.assert_close(first.grad, second.grad)


def test_without_a_fused_head_or_labels_the_forward_is_the_model_s_own():
    model = model_of(adapter=False)
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    before = model(**inputs).logits
    score_completions_only(model)
    assert (model(**inputs).logits == before).all()
    generated = model.generate(inputs["input_ids"][:, :5], max_new_tokens=3, do_sample=False)
    assert generated.shape == (3, 8)


def test_a_batch_in_which_nothing_is_scored_still_has_gradients():
    model = model_of(adapter=False)
    score_completions_only(model)
    inputs = batch() | {"labels": torch.full((3, 20), IGNORE_INDEX)}
    model(**inputs, fused_lm_head=True).log_probs.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters() if parameter.grad is not None)
