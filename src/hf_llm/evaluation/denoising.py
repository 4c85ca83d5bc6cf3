"""How well a model fills the gaps of text it has not seen: masked-token accuracy and pseudo-perplexity, or spans put
back exactly. What is taken out is the same in every evaluation."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.core.progress import open_progress_bar
from hf_llm.data.tokens.corruption import CorruptedWindows, SpanCorruption, TokenMasking, split_target_spans
from hf_llm.evaluation.perplexity import MAX_EXPONENT, Windows
from hf_llm.inference.generate import suppressed_ids
from hf_llm.model.evaluation_mode import evaluation_mode

LONE_MASKS_PER_WINDOW = 4  # tokens of each window that are masked alone, for the pseudo-perplexity
MAX_GENERATED_WINDOWS = 64  # windows whose spans are generated
CORRUPTION_SEED = 0


def score_masked(model: PreTrainedModel, windows: Windows, masked: TokenMasking, batch_size: int) -> dict[str, float]:
    """Return `loss` (nats) and `masked_accuracy` of the tokens that `masked` hides, `tokens` of them, and
    `pseudo_perplexity`.

    That is the exponential of the loss of a token that alone is hidden (Salazar et al. 2020,
    https://arxiv.org/abs/1910.14659), over `pseudo_tokens`, a few of every window. It does not measure how likely a
    text is, so it compares neither with a causal model's perplexity nor with that of another tokenizer.
    """
    loss, correct, tokens = _predict_corrupted(model, CorruptedWindows(windows, masked, CORRUPTION_SEED), batch_size)

    lone_windows = CorruptedWindows(windows, replace(masked, count=1, always=True), CORRUPTION_SEED)
    passes = []
    for epoch in range(LONE_MASKS_PER_WINDOW):
        lone_windows.set_epoch(epoch)  # each epoch hides another token
        passes.append(_predict_corrupted(model, lone_windows, batch_size))
    lone_tokens = sum(count for _, _, count in passes)
    lone_loss = sum(mean_loss * count for mean_loss, _, count in passes) / lone_tokens

    return {
        "loss": loss,
        "masked_accuracy": correct / tokens,
        "tokens": tokens,
        "pseudo_perplexity": math.exp(min(lone_loss, MAX_EXPONENT)),
        "pseudo_tokens": lone_tokens,
    }


def score_spans(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    spans: SpanCorruption,
    batch_size: int,
) -> dict[str, float]:
    """Return `loss` (nats) and `target_accuracy` of the target's `tokens`, each predicted from the true ones before it;
    and `span_exact_match`, the share of `spans` that the model generates as they were, greedily, from the input alone
    (in the first windows only)."""
    corrupted = CorruptedWindows(windows, spans, CORRUPTION_SEED)
    loss, correct, tokens = _predict_corrupted(model, corrupted, batch_size)
    exact, generated = _count_exact_spans(model, tokenizer, corrupted, batch_size)
    return {
        "loss": loss,
        "target_accuracy": correct / tokens,
        "tokens": tokens,
        "span_exact_match": exact / generated,
        "spans": generated,
    }


@torch.no_grad()
def _predict_corrupted(model: PreTrainedModel, windows: CorruptedWindows, batch_size: int) -> tuple[float, int, int]:
    """Return the mean loss, the tokens whose likeliest prediction is correct, and the tokens predicted.

    Sums are in double precision.
    """
    total_loss = 0.0
    correct = 0
    tokens = 0
    with evaluation_mode(model):
        for batch in _load_batches(windows, batch_size, len(windows)):
            output = model(**{name: values.to(model.device) for name, values in batch.items()})
            is_predicted = (batch["labels"] != IGNORE_INDEX).to(model.device)  # B T
            is_correct = output.logits.argmax(-1) == batch["labels"].to(model.device)  # B T
            count = int(is_predicted.sum())
            if count:  # the mean loss of no token is not a number
                total_loss += output.loss.item() * count
                correct += int(is_correct[is_predicted].sum())
                tokens += count
    assert tokens, "no window has a token to predict"
    return total_loss / tokens, correct, tokens


@torch.no_grad()
def _count_exact_spans(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: CorruptedWindows, batch_size: int
) -> tuple[int, int]:
    """Return the spans generated exactly as they were, and all spans generated."""
    _, spans_per_window = windows.corruption.count_masked(windows.windows.length)
    sentinels = windows.corruption.sentinels[:spans_per_window].tolist()

    exact = 0
    generated = 0
    with evaluation_mode(model):
        for batch in _load_batches(windows, batch_size, MAX_GENERATED_WINDOWS):
            inputs = batch["input_ids"].to(model.device)  # B T
            targets = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=batch["labels"].shape[1] + spans_per_window,  # a span may be a token longer than it was
                do_sample=False,
                eos_token_id=tokenizer.pad_token_id,  # a window has ends of text within, so one does not end the target
                suppress_tokens=suppressed_ids(model, tokenizer),
            ).tolist()
            for target, true_target in zip(targets, batch["labels"].tolist(), strict=True):
                written_spans = split_target_spans(target, sentinels)
                true_spans = split_target_spans(true_target, sentinels)
                written_spans[-1] = written_spans[-1][: len(true_spans[-1])]  # the true one ends with the end of text
                exact += sum(written == true for written, true in zip(written_spans, true_spans, strict=True))
                generated += spans_per_window
    return exact, generated


def _load_batches(windows: CorruptedWindows, batch_size: int, max_windows: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the first `max_windows` windows, up to `batch_size` of them stacked."""
    count = min(len(windows), max_windows)
    for start in open_progress_bar(range(0, count, batch_size), leave=False):
        end = min(start + batch_size, count)
        items = [windows[index] for index in range(start, end)]
        yield {name: torch.stack([item[name] for item in items]) for name in items[0]}
