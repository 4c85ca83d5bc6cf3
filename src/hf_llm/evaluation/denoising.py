"""How well a model fills the gaps of text it has not seen: masked accuracy and pseudo-perplexity, or spans put back
exactly. What is taken out is the same in every evaluation."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.data.tokens.corruption import IGNORED, CorruptedSpans, CorruptedWindows, MaskedTokens, spans_of
from hf_llm.evaluation.perplexity import Windows

ALONE = 4  # tokens of each window that are masked alone, for the pseudo-perplexity
GENERATED = 64  # windows whose gaps are written
SEED = 0


def score_masked(model: PreTrainedModel, windows: Windows, masked: MaskedTokens, batch_size: int) -> dict[str, float]:
    """`loss` (nats) and `masked_accuracy` of the tokens that `masked` hides, `tokens` of them; `pseudo_perplexity`.

    That is the exponential of the loss of a token that alone is hidden (Salazar et al. 2020,
    https://arxiv.org/abs/1910.14659), over `pseudo_tokens`, a few of every window. It says nothing of how likely a text
    is, so it compares with no causal model's perplexity, and with no other tokenizer's.
    """
    loss, right, tokens = _predicted(model, CorruptedWindows(windows, masked, SEED), batch_size)
    alone = CorruptedWindows(windows, replace(masked, count=1, always=True), SEED)
    passes = []
    for number in range(ALONE):
        alone.set_epoch(number)  # each takes another token
        passes.append(_predicted(model, alone, batch_size))
    lone = sum(each[2] for each in passes)
    mean = sum(each[0] * each[2] for each in passes) / lone
    return {
        "loss": loss,
        "masked_accuracy": right / tokens,
        "tokens": tokens,
        "pseudo_perplexity": math.exp(min(mean, 700)),
        "pseudo_tokens": lone,
    }


def score_spans(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    spans: CorruptedSpans,
    batch_size: int,
) -> dict[str, float]:
    """`loss` (nats) and `target_accuracy` of the target's `tokens`, each predicted from the true ones before it; and
    `span_exact_match`, the share of `spans` that the model writes as they were, greedily, from the input alone (the
    first windows only)."""
    corrupted = CorruptedWindows(windows, spans, SEED)
    loss, right, tokens = _predicted(model, corrupted, batch_size)
    exact, written = _exact_spans(model, tokenizer, corrupted, batch_size)
    return {
        "loss": loss,
        "target_accuracy": right / tokens,
        "tokens": tokens,
        "span_exact_match": exact / written,
        "spans": written,
    }


@torch.no_grad()
def _predicted(model: PreTrainedModel, windows: CorruptedWindows, batch_size: int) -> tuple[float, int, int]:
    """Mean loss, tokens whose likeliest prediction is right, and tokens predicted. Sums are in double precision."""
    was_training, total, right, tokens = model.training, 0.0, 0, 0
    model.eval()
    for batch in _batches(windows, batch_size):
        found = model(**{name: values.to(model.device) for name, values in batch.items()})
        counted = (batch["labels"] != IGNORED).to(model.device)
        total += found.loss.item() * int(counted.sum())
        right += int((found.logits.argmax(-1) == batch["labels"].to(model.device))[counted].sum())
        tokens += int(counted.sum())
    model.train(was_training)
    assert tokens, "no window has a token to predict"
    return total / tokens, right, tokens


@torch.no_grad()
def _exact_spans(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: CorruptedWindows, batch_size: int
) -> tuple[int, int]:
    """Spans written exactly, and spans."""
    was_training, exact, written = model.training, 0, 0
    model.eval()
    for batch in _batches(windows, batch_size, GENERATED):
        inputs = batch["input_ids"].to(model.device)
        _, count = windows.corruption.spans(windows.windows.length)
        sentinels = windows.corruption.sentinels[:count].tolist()
        targets = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=batch["labels"].shape[1] + count,  # a span may be a token longer than it was
            do_sample=False,
            eos_token_id=tokenizer.pad_token_id,  # a window has ends of text within, so one does not end the answer
        ).tolist()
        for target, true in zip(targets, batch["labels"].tolist(), strict=True):
            told, wanted = spans_of(target, sentinels), spans_of(true, sentinels)
            told[-1] = told[-1][: len(wanted[-1])]  # which ends with the end of text
            exact += sum(one == other for one, other in zip(told, wanted, strict=True))
            written += count
    model.train(was_training)
    return exact, written


def _batches(windows: CorruptedWindows, size: int, most: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """Up to `size` windows stacked, of the first `most`."""
    count = min(len(windows), most or len(windows))
    for start in tqdm(range(0, count, size), leave=False):
        items = [windows[number] for number in range(start, min(start + size, count))]
        yield {name: torch.stack([item[name] for item in items]) for name in items[0]}
