"""The next-token loss over windows, against the definition."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_llm.evaluation.perplexity import score_next_tokens


class Windows(list):
    """Token windows in memory."""

    bytes_per_token = 3.7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=32, attention_dropout=0.5, **sizes))


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 50, (16,), generator=generator) for _ in range(7)]
    labels = [row.clone() for row in rows]
    labels[2][5:9] = -100
    labels[6][:] = -100
    return Windows({"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_score_is_the_mean_over_all_predicted_tokens(model, windows, batch_size):
    model.eval()
    total, tokens = 0.0, 0
    for window in windows:
        logits = model(input_ids=window["input_ids"][None]).logits[0].double()
        for position in range(15):
            target = window["labels"][position + 1].item()
            if target != -100:
                total -= logits[position].log_softmax(-1)[target].item()
                tokens += 1
    scores = score_next_tokens(model, windows, batch_size)
    assert scores["tokens"] == tokens == 6 * 15 - 4
    assert scores["loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(total / tokens / math.log(2) / 3.7, rel=1e-6)


def test_a_model_is_scored_without_dropout_and_its_mode_is_restored(model, windows):
    model.train()
    assert score_next_tokens(model, windows, 2) == score_next_tokens(model, windows, 2)
    assert model.training


def test_an_error_while_scoring_restores_the_models_mode(model, windows):
    class Broken(Windows):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    for was_training in (True, False):
        model.train(was_training)
        with pytest.raises(OSError, match="the disk is gone"):
            score_next_tokens(model, Broken(windows), 2)
        assert model.training == was_training


def test_a_model_that_knows_nothing_scores_the_logarithm_of_its_vocabulary(windows):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    torch.nn.init.zeros_(model.lm_head.weight)
    assert score_next_tokens(model, windows, 4)["perplexity"] == pytest.approx(50, rel=1e-5)
