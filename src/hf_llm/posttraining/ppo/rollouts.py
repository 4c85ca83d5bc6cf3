"""What PPO trains on: prompts in blocks, the completions sampled for them, and their order in mini-batches."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import DynamicCache, PreTrainedModel

from hf_llm.model.decoding_cache import preallocate
from hf_llm.model.decoding_step import next_logits_function
from hf_llm.posttraining.ppo.actor_critic import position_ids

# Completions that have ended are removed from the batch once they are at least 1 in 8 of it: removing copies the cache.
ENDED_SHARE_KEPT = 8


class PromptBlocks(Sampler[int]):
    """Yield row numbers in random order, in blocks of `block` rows; each block is repeated `repeats` times.

    A block is the prompts of one rollout. It is repeated for every micro-batch that trains on the rollout, so that
    Trainer counts epochs and skips data on resume as it always does. The last block of an epoch is filled up with rows
    from the epoch's beginning. `epoch` is called when an epoch begins and returns its number: accelerate's `set_epoch`
    does not reach the sampler of a resumed epoch on several processes.
    """

    def __init__(self, rows: int, block: int, repeats: int, seed: int, epoch: Callable[[], int]):
        self.rows = rows
        self.block = block
        self.repeats = repeats
        self.seed = seed
        self.epoch = epoch
        self.blocks = math.ceil(rows / block)

    def __len__(self) -> int:
        return self.blocks * self.block * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch()]).permutation(self.rows)
        whole_blocks = np.resize(order, self.blocks * self.block)  # repeats the order's beginning at the end
        for start in range(0, len(whole_blocks), self.block):
            for _ in range(self.repeats):
                yield from whole_blocks[start : start + self.block].tolist()


@dataclass
class Completions:
    """Completions of N prompts: P prompt tokens, padded on the left, and T sampled tokens, padded on the right."""

    queries: torch.Tensor  # N P
    query_mask: torch.Tensor  # N P, bool
    tokens: torch.Tensor  # N T, the token that ended a completion included
    mask: torch.Tensor  # N T, bool
    log_probs: torch.Tensor  # N T, of the sampled tokens at the sampling temperature; 0 off the mask
    entropy: torch.Tensor  # N T, nats, of the distributions they were drawn from; 0 off the mask
    ended: torch.Tensor  # N, bool: by a token that ends a turn, not by the limit

    def token_ids(self) -> list[list[int]]:
        """Return the tokens of each completion, the one that ended it included."""
        lengths = self.mask.sum(1).tolist()
        return [row[:length] for row, length in zip(self.tokens.tolist(), lengths, strict=True)]


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompts: list[list[int]],
    limit: int,
    temperature: float,
    stops: list[int],
    pad: int,
    generator: torch.Generator | list[torch.Generator],
    suppressed: list[int] | None = None,
) -> Completions:
    """Sample a completion of at most `limit` tokens to each prompt, all in one batch with a key-value cache.

    `generator` is one for all prompts; or a list with one for each, so that a completion does not depend on the others.

    There is no top-k or top-p: tokens come from the model's full distribution at `temperature`, so the probabilities
    returned with them are those PPO needs. Ids in `suppressed`, which have no token, are never drawn. Rows that have
    ended are removed from the batch now and then.
    """
    device = generator[0].device if isinstance(generator, list) else generator.device
    queries, query_mask = pad_left(prompts, pad, device)  # N P
    count = len(prompts)
    stop_tokens = torch.tensor(stops, device=device)

    tokens = torch.full((count, limit), pad, device=device)
    log_probs = torch.zeros(count, limit, device=device)
    entropy = torch.zeros(count, limit, device=device)
    length = torch.full((count,), limit, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)

    # The pass over the prompts. There is no mask where there is no padding.
    cache = DynamicCache(config=model.config)
    preallocate(cache, queries.shape[1] + limit)
    inputs = {
        "attention_mask": None if query_mask.all() else query_mask.long(),
        "position_ids": position_ids(query_mask),
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    logits = model(input_ids=queries, **inputs).logits[:, -1]  # B V
    compute_next_logits = next_logits_function(model, queries.shape[1] + limit, inputs)

    rows = torch.arange(count, device=device)  # B, the numbers among all N of the rows that are still in the batch
    for t in range(limit):
        log_distribution = torch.log_softmax(logits.float() / temperature, dim=-1)  # B V
        distribution = log_distribution.exp()
        drawable = distribution
        if suppressed:
            drawable = distribution.clone()
            drawable[:, suppressed] = 0
        if isinstance(generator, list):
            active_generators = [generator[row] for row in rows.tolist()]
            sampled = sample_by_row(drawable, active_generators)  # B 1
        else:
            sampled = torch.multinomial(drawable, 1, generator=generator)  # B 1

        finite_logs = log_distribution.clamp(min=torch.finfo(log_distribution.dtype).min)  # 0 * -inf would be NaN
        tokens[rows, t] = sampled[:, 0]
        log_probs[rows, t] = log_distribution.gather(1, sampled)[:, 0]
        entropy[rows, t] = -(distribution * finite_logs).sum(1)

        has_stopped = torch.isin(sampled[:, 0], stop_tokens) & ~ended[rows]
        length[rows[has_stopped]] = t + 1
        ended[rows[has_stopped]] = True
        is_active = ~ended[rows]
        active = int(is_active.sum())
        if active == 0:
            break

        # Rows that have ended are removed once they are many.
        if t == limit - 1:
            break
        if len(rows) - active >= max(1, len(rows) // ENDED_SHARE_KEPT):
            cache.batch_select_indices(is_active)
            compute_next_logits.keep_rows(is_active)
            sampled = sampled[is_active]
            rows = rows[is_active]
        logits = compute_next_logits(sampled[:, 0])

    longest = int(length.max())
    mask = torch.arange(longest, device=device) < length[:, None]
    return Completions(
        queries=queries,
        query_mask=query_mask,
        tokens=tokens[:, :longest].masked_fill(~mask, pad),
        mask=mask,
        log_probs=log_probs[:, :longest] * mask,
        entropy=entropy[:, :longest] * mask,
        ended=ended,
    )


def sample_by_row(distribution: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    """Draw a token for each row of `distribution` (B V) with its own generator, by the inverse of its sums; return B 1.

    In double precision, since the sums of a large vocabulary would round in float32.
    """
    device = distribution.device
    double = torch.float32 if device.type == "mps" else torch.float64  # MPS has no double precision
    draws = [torch.rand(1, generator=generator, device=device, dtype=double) for generator in generators]
    sums = distribution.to(double).cumsum(dim=-1)  # B V
    points = torch.stack(draws) * sums[:, -1:]  # B 1
    return torch.searchsorted(sums, points, right=True).clamp(max=distribution.shape[-1] - 1)


def pad_left(texts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack texts (lists of token ids) to one tensor (N P), padded on the left; return it and its mask (bool)."""
    longest = max(map(len, texts))
    padded = torch.tensor([[pad] * (longest - len(text)) + text for text in texts], device=device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    mask = torch.arange(longest, device=device) >= (longest - lengths)[:, None]
    return padded, mask


@dataclass
class Rollout:
    """Sampled completions with their advantages and returns, and the order in which PPO trains on them.

    Shapes: N completions of this process; E passes over them, each in M mini-batches (optimizer steps). Checkpoints
    hold the fields by their names.
    """

    queries: torch.Tensor  # N P
    query_mask: torch.Tensor  # N P
    tokens: torch.Tensor  # N T
    mask: torch.Tensor  # N T
    log_probs: torch.Tensor  # N T
    values: torch.Tensor  # N T
    advantages: torch.Tensor  # N T
    returns: torch.Tensor  # N T
    order: torch.Tensor  # E N
    tokens_per_step: torch.Tensor  # E M, completion tokens of a mini-batch in all processes

    def micro_batch(self, number: int, size: int, accumulation: int) -> dict[str, torch.Tensor]:
        """Return micro-batch `number` (from 0) of `size` completions, cut to its own longest prompt and completion.

        `accumulation` is the number of micro-batches in a mini-batch.
        """
        rows = self.order.flatten()[number * size : (number + 1) * size]
        prompt_length = int(self.query_mask[rows].sum(1).max())
        completion_length = int(self.mask[rows].sum(1).max())

        batch = {"step_tokens": self.tokens_per_step.flatten()[number // accumulation]}
        for name in ("tokens", "mask", "log_probs", "values", "advantages", "returns"):
            batch[name] = getattr(self, name)[rows, :completion_length]

        start = self.queries.shape[1] - prompt_length
        queries = self.queries[rows, start:]
        query_mask = self.query_mask[rows, start:]
        batch["input_ids"] = torch.cat([queries, batch["tokens"]], dim=1)
        batch["attention_mask"] = torch.cat([query_mask, batch["mask"]], dim=1).long()
        return batch


def shuffle_into_minibatches(
    lengths: torch.Tensor, epochs: int, mini_batches: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw the order (epochs, N) in which completions of these lengths (N) are trained on.

    Every epoch draws its mini-batches at random. Within a mini-batch completions are sorted by length, so that
    micro-batches hold little padding; the gradient of the mini-batch does not depend on their order.
    """
    orders = []
    for _ in range(epochs):
        shuffled = torch.randperm(len(lengths), generator=generator, device=generator.device)
        sorted_batches = []
        for batch in shuffled.chunk(mini_batches):
            by_length = lengths[batch].argsort(stable=True)
            sorted_batches.append(batch[by_length])
        orders.append(torch.cat(sorted_batches))
    return torch.stack(orders)
