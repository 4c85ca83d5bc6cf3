import math

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.data.tokens.corruption import CorruptedWindows, SpanCorruption, TokenMasking
from hf_llm.evaluation.denoising import (
    CORRUPTION_SEED,
    LONE_MASKS_PER_WINDOW,
    MAX_GENERATED_WINDOWS,
    score_masked,
    score_spans,
)
from hf_llm.model.load import build_model
from hf_llm.tokenization.sentinel_tokens import list_denoising_tokens, require_sentinels
from tests.tiny_models import tiny_tokenizer

MASKED = TokenMasking(mask_token_id=258, is_word=np.arange(260) < 256)
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"model_type": "t5", "d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 3, "dropout_rate": 0.0}


class Repeating(Dataset):
    """Windows of one word again and again, so that the tokens left of a window tell those taken out."""

    bytes_per_token, length = 1.0, 24

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.full((self.length,), 30 + 5 * i % 16)
        return {"input_ids": ids, "labels": ids.clone()}


def test_masked_scores_are_those_of_the_hidden_tokens_whatever_the_batch_size():
    torch.manual_seed(0)
    model = build_model(BERT, tiny_tokenizer(), 24).eval()
    model.cls.predictions.bias.data[30:46] += 2
    scores = score_masked(model, Repeating(10), MASKED, batch_size=4)
    items = CorruptedWindows(Repeating(10), MASKED, CORRUPTION_SEED)
    batch = {name: torch.stack([items[i][name] for i in range(10)]) for name in ("input_ids", "labels")}
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    hidden = batch["labels"] != IGNORE_INDEX
    loss = torch.nn.functional.cross_entropy(logits[hidden], batch["labels"][hidden])
    right = (logits.argmax(-1) == batch["labels"])[hidden].float().mean()
    assert scores["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert scores["masked_accuracy"] == pytest.approx(right.item())
    assert scores["tokens"] == 40 and scores["pseudo_tokens"] == 10 * LONE_MASKS_PER_WINDOW
    assert scores == score_masked(model, Repeating(10), MASKED, batch_size=4)
    assert scores["pseudo_perplexity"] == pytest.approx(
        score_masked(model, Repeating(10), MASKED, batch_size=3)["pseudo_perplexity"], rel=1e-5
    )


def test_pseudo_perplexity_is_that_of_a_token_that_alone_is_hidden():
    """A model that knows nothing but which words there are has their number as its perplexity."""
    torch.manual_seed(0)
    model = build_model(BERT, tiny_tokenizer(), 24).eval()
    model.cls.predictions.decoder.weight.data.zero_()
    model.cls.predictions.decoder.bias.data.fill_(-1e4)
    model.cls.predictions.decoder.bias.data[30:46] = 0
    scores = score_masked(model, Repeating(6), MASKED, batch_size=6)
    assert scores["pseudo_perplexity"] == pytest.approx(16, rel=1e-5)
    assert scores["loss"] == pytest.approx(math.log(16), rel=1e-5)


def test_a_trained_encoder_decoder_generates_the_spans_exactly():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list_denoising_tokens(mask=False, sentinels=1)})
    sentinels = np.array(require_sentinels(tokenizer))
    spans = SpanCorruption(sentinels, tokenizer.eos_token_id, tokenizer.pad_token_id, 0.25, 1.0)
    torch.manual_seed(0)
    model = build_model(T5, tokenizer, 24)
    before = score_spans(model, tokenizer, Repeating(MAX_GENERATED_WINDOWS + 8), spans, batch_size=24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    windows = CorruptedWindows(Repeating(64), spans, seed=9)
    for step in range(150):
        windows.set_epoch(step)
        items = [windows[i] for i in range(step % 4, 64, 4)]
        loss = model(**{name: torch.stack([item[name] for item in items]) for name in items[0]}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = score_spans(model, tokenizer, Repeating(MAX_GENERATED_WINDOWS + 8), spans, batch_size=24)
    assert before["span_exact_match"] < 0.2
    assert after["span_exact_match"] > 0.4 and after["target_accuracy"] > 0.8 and after["loss"] < before["loss"] / 4
    assert after["spans"] == MAX_GENERATED_WINDOWS * 6 and after["tokens"] == (MAX_GENERATED_WINDOWS + 8) * (6 + 6 + 1)
