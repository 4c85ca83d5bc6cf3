"""The loss inside HfLlmForCausalLM: chunk by chunk, and equal to plain cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.utils import add_fused_lm_head

from hf_llm.model.cross_entropy import ChunkedCrossEntropy, HfLlmHead
from tests.tiny_models import tiny_model

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(2))
    labels = tokens.clone()
    labels[0, :9] = -100
    labels[2, 3:5] = -100
    return {"input_ids": tokens, "labels": labels}


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 7 tokens: several of them, and a shorter one at the end."""
    apply = ChunkedCrossEntropy.apply
    monkeypatch.setattr(ChunkedCrossEntropy, "apply", lambda h, w, labels, chunk, *rest: apply(h, w, labels, 7, *rest))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"final_logit_softcapping": 2.0}])
@pytest.mark.parametrize("items", [None, 40, torch.tensor(40)])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(small_chunks, items, changes):
    model, inputs = tiny_model(**changes).train(), batch()
    ours = model(**inputs, num_items_in_batch=items).loss
    our_gradients = gradients(model, ours)
    logits = model(inputs["input_ids"]).logits
    theirs = ForCausalLMLoss(logits, inputs["labels"], model.config.vocab_size, num_items_in_batch=items)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    torch.testing.assert_close(our_gradients, gradients(model, theirs), **TOLERANCE)


def plain_objective(logits, labels, smoothing, z_loss, items=None) -> torch.Tensor:
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    smoothed = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    z = torch.logsumexp(logits, dim=-1)[labels != -100].square().sum()
    return (smoothed + z_loss * z) / (items if items is not None else (labels != -100).sum())


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"final_logit_softcapping": 2.0}])
@pytest.mark.parametrize("items", [None, 40])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 1e-2), (0.2, 1e-2)])
def test_smoothing_and_z_loss_change_the_gradient_and_not_the_loss(small_chunks, smoothing, z_loss, items, changes):
    model, inputs = tiny_model(**changes).train(), batch()
    plain = model(**inputs, num_items_in_batch=items)
    assert plain.objective is None
    ours = model(**inputs, num_items_in_batch=items, label_smoothing=smoothing, z_loss=z_loss)
    assert ours.loss.item() == plain.loss.item()
    theirs = plain_objective(model(inputs["input_ids"]).logits, inputs["labels"], smoothing, z_loss, items)
    torch.testing.assert_close(ours.objective, theirs, **TOLERANCE)
    assert not ours.objective.requires_grad
    assert abs(ours.objective - ours.loss) > 1e-3
    torch.testing.assert_close(gradients(model, ours.loss), gradients(model, theirs), **TOLERANCE)


def test_a_head_put_in_place_by_others_knows_smoothing_and_z_loss_too():
    model, inputs = tiny_model(tie_word_embeddings=False).train(), batch()
    terms = {"label_smoothing": 0.1, "z_loss": 1e-2}
    ours = model(**inputs, **terms)
    expected = gradients(model, ours.loss)
    head = torch.nn.Linear(32, 320, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    theirs = model(**inputs, **terms)
    torch.testing.assert_close((theirs.loss, theirs.objective), (ours.loss, ours.objective), **TOLERANCE)
    torch.testing.assert_close(gradients(model, theirs.loss), expected, **TOLERANCE)


def test_evaluation_gives_the_same_loss_as_training(small_chunks):
    model, inputs = tiny_model(), batch()
    with torch.no_grad():
        evaluated = model(**inputs).loss
    torch.testing.assert_close(evaluated, model(**inputs).loss.detach())


def test_labels_shifted_by_the_caller_are_not_shifted_again(small_chunks):
    model, inputs = tiny_model(), batch()
    shifted = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]
    loss = model(inputs["input_ids"], shift_labels=shifted).loss
    torch.testing.assert_close(loss, model(**inputs).loss)


def test_a_batch_without_labels_gives_zero_and_zero_gradients():
    model, inputs = tiny_model().train(), batch()
    inputs["labels"][:] = -100
    for items in (None, 0, torch.tensor(0)):
        loss = model(**inputs, num_items_in_batch=items).loss
        assert loss.item() == 0
        assert gradients(model, loss).abs().max() == 0


def test_logits_come_with_a_loss_only_when_asked_for():
    model, inputs = tiny_model(), batch()
    assert model(**inputs).logits is None
    assert model(**inputs, logits_to_keep=0).logits.shape == (3, 17, 320)
    assert model(**inputs, logits_to_keep=2).logits.shape == (3, 2, 320)
    assert model(inputs["input_ids"]).logits.shape == (3, 17, 320)
    kept = model(inputs["input_ids"], logits_to_keep=torch.tensor([0, 5])).logits
    torch.testing.assert_close(kept, model(inputs["input_ids"]).logits[:, [0, 5]])


@pytest.mark.parametrize("items", [None, torch.tensor(40)])
def test_the_fused_head_of_trl_gives_the_same_loss_and_gradients(items):
    model, inputs = tiny_model().train(), batch()
    ours = model(**inputs, num_items_in_batch=items).loss
    our_gradients = gradients(model, ours)
    add_fused_lm_head(model)
    theirs = model(**inputs, num_items_in_batch=items, fused_lm_head=True).loss
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    torch.testing.assert_close(our_gradients, gradients(model, theirs), **TOLERANCE)


def test_bfloat16_autocast_stays_near_float32_and_keeps_float32_gradients(small_chunks):
    model, inputs = tiny_model().train(), batch()
    exact = gradients(model, model(**inputs).loss)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    assert loss.dtype == torch.float32
    near = gradients(model, loss)
    assert near.dtype == torch.float32
    assert F.cosine_similarity(near, exact, dim=0) > 0.999


def test_a_model_in_bfloat16_trains():
    model, inputs = tiny_model().to(torch.bfloat16).train(), batch()
    loss = model(**inputs).loss
    assert loss.dtype == torch.float32
    assert gradients(model, loss).isfinite().all()


def test_a_second_backward_pass_through_the_same_loss_is_refused():
    model = tiny_model().train()
    loss = model(**batch()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_an_adapter_on_the_head_counts_in_the_loss(softcap):
    from peft import LoraConfig, get_peft_model

    model, inputs = tiny_model(tie_word_embeddings=False, final_logit_softcapping=softcap), batch()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"]))
    torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight)
    logits = model(inputs["input_ids"]).logits
    expected = ForCausalLMLoss(logits, inputs["labels"], 320)
    torch.testing.assert_close(model(**inputs).loss, expected, **TOLERANCE)


def test_the_logits_are_never_held_in_full():
    """The largest tensor that the head makes is a chunk of logits or a gradient, not tokens x vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.numel())
            return result

    tokens, hidden, vocabulary = 2048, 8, 32768
    head = HfLlmHead(hidden, vocabulary, bias=False)
    states, labels = torch.randn(1, tokens, hidden, requires_grad=True), torch.zeros(1, tokens, dtype=torch.long)
    with Largest() as largest:
        head(states, labels)[0].backward()
    assert largest.size <= 2**23 < tokens * vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [64, 24 * 256])  # one chunk, and more than are compiled
@pytest.mark.parametrize("terms", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4}], ids=["plain", "terms"])
def test_a_compiled_model_gives_the_same_loss_and_gradients(tokens, terms):
    model = tiny_model(vocab_size=32768, max_position_embeddings=8192).train()
    inputs = torch.randint(0, 256, (4, tokens // 4))
    plain = model(inputs, labels=inputs, **terms).loss
    expected = gradients(model, plain)
    compiled = torch.compile(model)(inputs, labels=inputs, **terms).loss
    torch.testing.assert_close(compiled, plain, **TOLERANCE)
    torch.testing.assert_close(gradients(model, compiled), expected, **TOLERANCE)
