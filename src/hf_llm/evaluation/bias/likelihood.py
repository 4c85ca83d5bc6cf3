"""Log-likelihoods of texts: of what follows a context for a causal model, of shared tokens for a masked one.

Shapes at line ends:
    B batch   T tokens   K positions that are needed   V vocab_size
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.model.evaluation_mode import evaluation_mode
from hf_llm.tokenization.text_boundaries import encode_prompt

LOGITS_BYTES = 128 << 20  # of the logits of one batch in single precision; small models are no faster with more


class Continuation(NamedTuple):
    """A text to score and what stands before it, as token ids; neither is empty."""

    context: list[int]
    text: list[int]

    @property
    def length(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.context) + len(self.text) - 1


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Continuation:
    """Encode a text that nothing stands before: its first token is predicted from a begin or end of text.

    As the Language Model Evaluation Harness does with an empty context.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert start is not None, "the tokenizer has no end of text"
    if ids[:1] == [start]:
        return Continuation(ids[:1], ids[1:])
    return Continuation([start], ids)


def encode_continuation(tokenizer: PreTrainedTokenizerBase, context: str, text: str) -> Continuation:
    """Encode a text after a context that ends without a space: both together, then cut where the context ends."""
    before = encode_prompt(tokenizer, context, max_tokens=1 << 30)
    whole = encode_prompt(tokenizer, context + text, max_tokens=1 << 30)
    return Continuation(whole[: len(before)], whole[len(before) :])


def batch_by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield the indices of texts in batches of at most so many tokens with padding, the longest first; one longer text
    is a batch of its own."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batch[0]] if batch else lengths[index]
        if batch and longest * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def count_batch_tokens(model: PreTrainedModel) -> int:
    """Return how many tokens a batch may have so that its logits stay below `LOGITS_BYTES`."""
    return max(1, LOGITS_BYTES // (4 * model.config.get_text_config().vocab_size))


@torch.no_grad()
def score_continuations(model: PreTrainedModel, continuations: Sequence[Continuation], context: int) -> list[float]:
    """Return the log-likelihood (nats, natural logarithm) of each text after its context, by a causal model.

    A text too long for the model's `context` is scored after what remains of its beginning (`is_cut`).
    """
    scores = [0.0] * len(continuations)
    lengths = [min(continuation.length, context) for continuation in continuations]
    with evaluation_mode(model):
        for batch in batch_by_length(lengths, count_batch_tokens(model)):
            chosen = [continuations[index] for index in batch]
            for index, score in zip(batch, _score_batch(model, chosen, context), strict=True):
                scores[index] = score
    return scores


def is_cut(continuation: Continuation, context: int) -> bool:
    """Whether a text and its context are longer than the model can read at once."""
    return continuation.length > context


def _score_batch(model: PreTrainedModel, continuations: list[Continuation], context: int) -> list[float]:
    rows = []
    targets = []
    starts = []
    for continuation in continuations:
        ids = [*continuation.context, *continuation.text][-(context + 1) :]
        predicted = min(len(continuation.text), len(ids) - 1)
        rows.append(ids[:-1])
        targets.append(ids[-predicted:])
        starts.append(len(ids) - 1 - predicted)

    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)  # B T
    attention_mask = torch.zeros_like(input_ids)  # B T
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1

    # Only the positions that any text of the batch needs go through the vocabulary head.
    first = min(starts)
    arguments = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = torch.arange(first, longest, device=model.device)
    logits = model(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        use_cache=False,
        **arguments,
    ).logits  # B K V
    if not arguments:
        logits = logits[:, first:]

    scores = []
    for row, (start, target) in enumerate(zip(starts, targets, strict=True)):
        log_probs = F.log_softmax(logits[row, start - first : start - first + len(target)].float(), dim=-1)
        chosen = log_probs.gather(1, torch.tensor(target, device=logits.device)[:, None])
        scores.append(float(chosen.sum()))
    return scores


def find_shared_tokens(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the positions of the tokens that two texts have in common, in each of them, in order."""
    first_places: list[int] = []
    second_places: list[int] = []
    for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        first_places += range(block.a, block.a + block.size)
        second_places += range(block.b, block.b + block.size)
    return first_places, second_places


@torch.no_grad()
def score_shared_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first: str, second: str, context: int
) -> tuple[float, float]:
    """Return the pseudo-log-likelihoods (nats) of the tokens that two sentences share, by a masked model.

    Each shared token is hidden alone and predicted from all others of its sentence (Nangia et al. 2020, section 3,
    https://aclanthology.org/2020.emnlp-main.154). Special tokens are not scored. A sentence too long for the model's
    `context` loses its end.
    """
    encoded = tokenizer([first, second], truncation=True, max_length=context)["input_ids"]
    places = find_shared_tokens(*encoded)
    scores = []
    for ids, shared in zip(encoded, places, strict=True):
        is_special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        hidden = [place for place in shared if not is_special[place]]
        scores.append(_score_masked_places(model, tokenizer, ids, hidden))
    return scores[0], scores[1]


def _score_masked_places(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], places: list[int]
) -> float:
    total = 0.0
    copies_per_batch = max(1, count_batch_tokens(model) // len(ids))
    with evaluation_mode(model):
        for batch in range(math.ceil(len(places) / copies_per_batch)):
            hidden = torch.tensor(places[batch * copies_per_batch : (batch + 1) * copies_per_batch])  # B
            input_ids = torch.tensor(ids).repeat(len(hidden), 1)  # B T
            targets = input_ids.gather(1, hidden[:, None]).to(model.device)  # B 1
            input_ids.scatter_(1, hidden[:, None], tokenizer.mask_token_id)
            logits = model(input_ids=input_ids.to(model.device)).logits  # B T V
            rows = torch.arange(len(hidden), device=model.device)
            log_probs = F.log_softmax(logits[rows, hidden.to(model.device)].float(), dim=-1)  # B V
            total += float(log_probs.gather(1, targets).sum())
    return total
