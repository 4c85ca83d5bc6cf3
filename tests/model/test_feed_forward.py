"""Mixtures of experts: routing, and shares kept even."""

from pydoc_data.topics import topics

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from hf_llm.model.feed_forward import HfLlmMixtureOfExperts, balancing_loss
from tests.tiny_models import tiny_config, tiny_model

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def some_tokens(rows: int = 4, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_token_gets_the_weighted_sum_of_its_experts_and_the_shared_one():
    torch.manual_seed(0)
    block = tiny_model(**EXPERTS, n_shared_experts=1).model.layers[0].mlp
    assert isinstance(block, HfLlmMixtureOfExperts)
    x = torch.randn(1, 5, 32)
    scores = (x[0] @ block.gate.weight.T).softmax(-1)
    expected = block.shared_experts(x)
    for token in range(5):
        top = scores[token].topk(2)
        for share, expert in zip(top.values / top.values.sum(), top.indices, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ x[0, token]).chunk(2)
            expected[0, token] += share * (block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_implementation_of_experts_gives_the_same_logits_and_gradients(implementation):
    model, tokens = tiny_model(**EXPERTS).train(), some_tokens()
    expected = model(tokens).logits
    model.set_experts_implementation(implementation)
    logits = model(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("padded", [False, True])
def test_in_one_layer_the_balancing_loss_is_that_of_transformers(padded):
    config = tiny_config(**EXPERTS)
    logits = (torch.randn(24, 8, generator=torch.Generator().manual_seed(0)) * 3,)
    mask = (torch.arange(24) % 5 > 0).long() if padded else None
    theirs = load_balancing_loss_func(logits, 8, 2, mask if mask is None else mask[None])
    torch.testing.assert_close(balancing_loss(logits, config, mask), theirs, rtol=1e-5, atol=1e-5)


def test_the_loss_reported_is_that_of_the_tokens_and_the_balance_is_in_its_gradient():
    tokens = some_tokens()
    gradients = []
    for coefficient in (0.0, 1.0):
        model = tiny_model(**EXPERTS, router_aux_loss_coef=coefficient).train()
        output = model(tokens, labels=tokens)
        output.loss.backward()
        gradients.append(model.model.layers[0].mlp.gate.weight.grad)
        assert output.loss.item() == pytest.approx(model.eval()(tokens, labels=tokens).loss.item(), rel=1e-5)
    assert not torch.allclose(*gradients)
    asked = model(tokens, labels=tokens, output_router_logits=True)
    assert asked.aux_loss > 2 and len(asked.router_logits) == 2  # 2 choices a token: 2 where all is even
    assert model(tokens, labels=tokens).aux_loss is None


def test_a_dense_model_shows_no_balancing_loss_to_trl():
    assert tiny_config().router_aux_loss_coef == 0.0
    assert tiny_config(**EXPERTS).router_aux_loss_coef > 0
    assert tiny_config(**EXPERTS, expert_balancing="bias").router_aux_loss_coef == 0.0


def shares(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The share of the tokens' choices that each expert gets, layers by experts."""
    with torch.no_grad():
        choices = model.eval()(tokens, output_router_logits=True).router_logits
    k = model.config.num_experts_per_tok
    counts = [
        torch.bincount(choice.topk(k).indices.flatten(), minlength=model.config.num_experts) for choice in choices
    ]
    return torch.stack(counts) / (len(choices[0]) * k)


def trained_on_text(**changes) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts' shares of the words of the language reference, before and after 240 steps of training on it."""
    torch.manual_seed(0)
    text = torch.tensor(list("".join(topics.values()).encode()[: 64 * 2100])).view(-1, 64)
    model = tiny_model(**EXPERTS, num_hidden_layers=1, initializer_range=0.02, **changes)
    before = shares(model, text[2000:])
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3, betas=(0.9, 0.95))
    for _ in range(240):
        rows = text[torch.randint(0, 2000, (16,))]
        model(rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return before, shares(model, text[2000:])


@pytest.mark.parametrize("balancing", ["loss", "bias"])
def test_training_on_text_keeps_every_expert_above_half_of_an_even_share(balancing):
    before, after = trained_on_text(expert_balancing=balancing)
    assert after.min() > 0.5 / 8
    assert after.max() < before.max()


@pytest.mark.slow
def test_without_balancing_an_expert_falls_idle():
    _, after = trained_on_text(router_aux_loss_coef=0.0)
    assert after.min() < 0.5 / 8


@torch.no_grad()
def test_autocast_leaves_the_routing_in_float32():
    router = tiny_model(**EXPERTS).model.layers[0].mlp.gate
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    expected = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = router(x)
    for one, other in zip(output, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
