"""What PPO learns from: prompts in blocks, answers sampled to them, and the answers dealt out in mini-batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import DynamicCache, PreTrainedModel

from hf_llm.posttraining.ppo.actor_critic import positions

KEPT_ENDED = 8  # ended answers stay in the batch until they are one in so many: taking them out copies the cache


class PromptBlocks(Sampler[int]):
    """The rows of a data set in random order, each block of `block` rows `repeats` times over.

    All micro-batches that learn from one rollout ask for the same prompts, so that data and checkpoints count as in any
    Trainer. The last block of an epoch is filled up with rows from its beginning. `epoch` tells which epoch it is when
    one begins (accelerate's `set_epoch` does not reach the sampler of a resumed epoch on several processes).
    """

    def __init__(self, rows: int, block: int, repeats: int, seed: int, epoch: Callable[[], int]):
        self.rows, self.block, self.repeats, self.seed, self.epoch = rows, block, repeats, seed, epoch

    def __len__(self) -> int:
        return -(-self.rows // self.block) * self.block * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch()]).permutation(self.rows)
        filled = np.resize(order, -(-self.rows // self.block) * self.block)
        for start in range(0, len(filled), self.block):
            for _ in range(self.repeats):
                yield from filled[start : start + self.block].tolist()


def generator_for(device: torch.device, *numbers: int) -> torch.Generator:
    """Random numbers that depend on `numbers` alone, so that a resumed run draws what it would have drawn."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


@dataclass
class Answers:
    """Answers sampled to N prompts: P prompt tokens, padded on the left, and T answer tokens, padded on the right."""

    queries: torch.Tensor  # N P
    query_mask: torch.Tensor  # N P, bool
    tokens: torch.Tensor  # N T, the token that ended an answer included
    mask: torch.Tensor  # N T, bool
    log_probs: torch.Tensor  # N T, of the sampled tokens at the sampling temperature; 0 off the mask
    entropy: torch.Tensor  # N T, nats, of the distributions they were drawn from; 0 off the mask
    ended: torch.Tensor  # N, bool: by a token that ends a turn, not by the limit

    def ids(self) -> list[list[int]]:
        """The tokens of each answer, the one that ended it included."""
        lengths = self.mask.sum(1).tolist()
        return [row[:length] for row, length in zip(self.tokens.tolist(), lengths, strict=True)]


@torch.no_grad()
def sample_answers(
    model: PreTrainedModel,
    prompts: list[list[int]],
    limit: int,
    temperature: float,
    stops: list[int],
    pad: int,
    generator: torch.Generator,
) -> Answers:
    """Sample an answer of at most `limit` tokens to each prompt, all in one batch with a key-value cache.

    Nothing but the model's own distribution at `temperature` is sampled from, so the probabilities that come with the
    tokens are those PPO needs. Rows that have ended leave the batch.
    """
    device = generator.device
    queries, mask = left_padded(prompts, pad, device)  # N P
    count, ends = len(prompts), torch.tensor(stops, device=device)
    tokens = torch.full((count, limit), pad, device=device)
    log_probs, entropy = (torch.zeros(count, limit, device=device) for _ in range(2))
    length = torch.full((count,), limit, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)

    rows = torch.arange(count, device=device)  # those still in the batch
    seen, place, inputs, cache = mask.long(), positions(mask), queries, DynamicCache(config=model.config)
    for t in range(limit):
        logits = model(
            input_ids=inputs,
            attention_mask=seen,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        log_p = torch.log_softmax(logits.float() / temperature, dim=-1)  # B V
        p = log_p.exp()
        drawn = torch.multinomial(p, 1, generator=generator)  # B 1
        tokens[rows, t], log_probs[rows, t] = drawn[:, 0], log_p.gather(1, drawn)[:, 0]
        entropy[rows, t] = -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(1)
        stopped = torch.isin(drawn[:, 0], ends) & ~ended[rows]
        length[rows[stopped]], ended[rows[stopped]] = t + 1, True
        going = ~ended[rows]
        left = int(going.sum())
        if left == 0:
            break
        inputs, seen, place = drawn, torch.cat([seen, seen.new_ones(len(rows), 1)], dim=1), place[:, -1:] + 1
        if len(rows) - left >= max(1, len(rows) // KEPT_ENDED):
            cache.batch_select_indices(going)
            inputs, seen, place, rows = inputs[going], seen[going], place[going], rows[going]

    longest = int(length.max())
    mask_of_answers = torch.arange(longest, device=device) < length[:, None]
    kept = (part[:, :longest] * mask_of_answers for part in (log_probs, entropy))
    tokens = tokens[:, :longest].masked_fill(~mask_of_answers, pad)
    return Answers(queries, mask, tokens, mask_of_answers, *kept, ended)


def left_padded(texts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts as one tensor (N P), padded on the left, and the mask of their tokens (bool)."""
    longest = max(map(len, texts))
    padded = torch.tensor([[pad] * (longest - len(text)) + text for text in texts], device=device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    return padded, torch.arange(longest, device=device) >= (longest - lengths)[:, None]


@dataclass
class Rollout:
    """Answers with what PPO learns from them, and the order in which they are dealt out: all that a checkpoint needs.

    N answers of this process; E passes over them, each in M mini-batches (optimizer steps).
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
    tokens_per_step: torch.Tensor  # E M, answer tokens of a mini-batch in all processes

    def micro_batch(self, number: int, size: int, accumulation: int) -> dict[str, torch.Tensor]:
        """The micro-batch `number` (from 0) of `size` answers, cut to its own longest prompt and answer."""
        rows = self.order.flatten()[number * size : (number + 1) * size]
        prompt = int(self.query_mask[rows].sum(1).max())
        answer = int(self.mask[rows].sum(1).max())
        width = self.queries.shape[1]
        batch = {"step_tokens": self.tokens_per_step.flatten()[number // accumulation]}
        for name in ("tokens", "mask", "log_probs", "values", "advantages", "returns"):
            batch[name] = getattr(self, name)[rows, :answer]
        queries, mask = self.queries[rows, width - prompt :], self.query_mask[rows, width - prompt :]
        batch["input_ids"] = torch.cat([queries, batch["tokens"]], dim=1)
        batch["attention_mask"] = torch.cat([mask, batch["mask"]], dim=1).long()
        return batch


def deal(lengths: torch.Tensor, epochs: int, mini_batches: int, generator: torch.Generator) -> torch.Tensor:
    """The order (epochs, N) in which answers of these lengths (N) are learnt from.

    Mini-batches are drawn at random in every epoch. Within one, answers of like length come together, so that
    micro-batches hold little padding; the gradient of the mini-batch stays what it is.
    """
    order = []
    for _ in range(epochs):
        shuffled = torch.randperm(len(lengths), generator=generator, device=generator.device)
        parts = shuffled.chunk(mini_batches)
        order.append(torch.cat([part[lengths[part].argsort(stable=True)] for part in parts]))
    return torch.stack(order)
