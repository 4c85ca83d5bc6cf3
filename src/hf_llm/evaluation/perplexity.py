"""How well a model predicts text it has not seen: nats and perplexity per token, bits per byte."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from transformers import PreTrainedModel

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.core.progress import open_progress_bar
from hf_llm.model.evaluation_mode import evaluation_mode

MAX_EXPONENT = 700  # beyond it exp overflows double precision


class Windows(Protocol):
    """A data set of token windows of equal length (`hf_llm.data.tokens.token_dataset.TokenWindows`)."""

    bytes_per_token: float  # UTF-8 bytes of the text behind one token, on average over the tokens predicted

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]: ...  # input_ids (n,), labels (n,)


@torch.no_grad()
def score_next_tokens(model: PreTrainedModel, windows: Windows, batch_size: int) -> dict[str, float]:
    """Return the next-token loss over all `windows`: `loss` (nats per token), `perplexity`, `bits_per_byte`, and
    `tokens` predicted.

    The first token of a window has nothing before it and is not predicted. The loss is the model's own (`forward`
    with labels), so that soft-caps and the like count, and a model that chunks its vocabulary head never holds all
    logits. Sums over batches are in double precision. Bits per byte as in "The Pile" (Gao et al. 2020, section 3.1):
    they compare models with different tokenizers.
    """
    total_loss = 0.0
    tokens = 0
    num_batches = math.ceil(len(windows) / batch_size)
    with evaluation_mode(model):
        batches = open_progress_bar(_load_batches(windows, batch_size), total=num_batches, leave=False)
        for input_ids, labels in batches:
            predicted = int((labels[:, 1:] != IGNORE_INDEX).sum())
            if predicted:
                loss = model(input_ids=input_ids.to(model.device), labels=labels.to(model.device), use_cache=False).loss
                total_loss += loss.item() * predicted
                tokens += predicted
    assert tokens, "no window has a token to predict"

    mean_loss = total_loss / tokens
    return {
        "loss": mean_loss,
        "perplexity": math.exp(min(mean_loss, MAX_EXPONENT)),
        "bits_per_byte": mean_loss / math.log(2) / windows.bytes_per_token,
        "tokens": tokens,
    }


def _load_batches(windows: Windows, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `input_ids` and `labels`, (up to batch_size, n) each."""
    for start in range(0, len(windows), batch_size):
        end = min(start + batch_size, len(windows))
        items = [windows[index] for index in range(start, end)]
        input_ids = torch.stack([item["input_ids"] for item in items])
        labels = torch.stack([item["labels"] for item in items])
        yield input_ids, labels
