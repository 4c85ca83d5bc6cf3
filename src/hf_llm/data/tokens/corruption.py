"""Windows of tokens with some of them taken out, for a model to put back: BERT's masked tokens and T5's spans.

What is taken out of a window follows from the seed, the epoch and the window's number alone, so it is the same in
every process, with any number of workers and after every restart, and another in every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_llm.core.errors import UserError

IGNORED = -100  # the label of a token that the loss leaves out
SHOWN_AS_MASK, SHOWN_AS_ANOTHER = 0.8, 0.1  # of the tokens to predict; the rest stands as it is (BERT, appendix A.1)


class Corruption(Protocol):
    """Takes tokens out of a window: `ids` (n,) int64 -> `input_ids`, `labels` and the like, int64."""

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class MaskedTokens:
    """BERT's masked language modelling (https://arxiv.org/abs/1810.04805, section 3.1).

    Of the window's words, special tokens not counted, `share` are to be predicted, exactly so many in each window that
    a mean over windows is one over tokens, or `count` of them where that is given. Of those 80% are shown as the mask,
    10% as any word, 10% as they are; with `always` all of them as the mask. `input_ids` and `labels` are (n,).
    """

    mask_token_id: int
    is_word: np.ndarray  # (vocabulary,) bool: False for special tokens
    share: float = 0.15
    count: int | None = None
    always: bool = False

    @cached_property
    def words(self) -> np.ndarray:
        """The ids that stand for words."""
        return np.flatnonzero(self.is_word)

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        places = np.flatnonzero(self.is_word[ids])
        count = min(self.count or max(1, round(self.share * len(ids))), len(places))
        chosen = random.choice(places, count, replace=False, shuffle=False)
        labels = np.full(len(ids), IGNORED, np.int64)
        labels[chosen] = ids[chosen]
        draw, shown = random.random(count), ids.copy()
        another = self.words[random.integers(len(self.words), size=count)]
        kept = np.where(draw < SHOWN_AS_MASK + SHOWN_AS_ANOTHER, another, ids[chosen])
        shown[chosen] = np.where((draw < SHOWN_AS_MASK) | self.always, self.mask_token_id, kept)
        return {"input_ids": shown, "labels": labels}


@dataclass(frozen=True)
class CorruptedSpans:
    """T5's span corruption (https://arxiv.org/abs/1910.10683, section 3.1.4).

    `share` of the window's tokens are taken out, in spans of `mean_span` on average; `input_ids` has a sentinel in the
    place of each span, `labels` each sentinel with the tokens of its span; both end with the end of text.
    `decoder_input_ids` are the labels one place later, after the padding token, as T5 begins. Windows of one length
    give inputs of one length, and targets of one length.
    """

    sentinels: np.ndarray  # ids, in the order of their use
    eos_token_id: int
    pad_token_id: int
    share: float = 0.15
    mean_span: float = 3.0

    def spans(self, length: int) -> tuple[int, int]:
        """How many tokens are taken out of a window of `length` tokens, and in how many spans."""
        taken = min(max(round(length * self.share), 1), length - 1)
        return taken, min(max(round(taken / self.mean_span), 1), taken, length - taken)

    def lengths(self, length: int) -> tuple[int, int]:
        """The tokens of input and target of a window of `length` tokens."""
        taken, spans = self.spans(length)
        return length - taken + spans + 1, taken + spans + 1

    def check(self, length: int) -> None:
        """Raise UserError where a window of `length` tokens has more spans than there are sentinels."""
        _, spans = self.spans(length)
        if spans > len(self.sentinels):
            raise UserError(
                f"pretrain.objective: a window of {length} tokens has {spans} gaps, and the tokenizer "
                f"{len(self.sentinels)} sentinels (<extra_id_0> ...); raise mean_span, shorten pretrain.context, or "
                "make the tokenizer anew (python -m hf_llm.run ... --fresh=tokenizer)"
            )

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        taken, spans = self.spans(len(ids))
        # Kept and taken pieces by turns, the first of them kept.
        pieces = np.stack([_pieces(len(ids) - taken, spans, random), _pieces(taken, spans, random)], axis=1)
        is_taken = np.repeat(np.tile([False, True], spans), pieces.ravel())
        first_taken = np.cumsum(pieces.ravel())[::2]
        sentinels = self.sentinels[:spans]
        shown, stays = ids.copy(), ~is_taken
        shown[first_taken], stays[first_taken] = sentinels, True
        target = np.insert(ids[is_taken], np.cumsum(pieces[:, 1]) - pieces[:, 1], sentinels)
        return {
            "input_ids": np.append(shown[stays], self.eos_token_id),
            "labels": np.append(target, self.eos_token_id),
            "decoder_input_ids": np.insert(target, 0, self.pad_token_id),
        }


def _pieces(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Lengths (parts,) of at least 1 that add up to `total`, each way to cut it as likely as any other."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False, shuffle=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


class CorruptedWindows(Dataset):
    """`windows` (`hf_llm.data.tokens.token_dataset.TokenWindows`) after a `corruption`, other tokens in every epoch.

    Item `i` is a dictionary of the corruption's arrays as int64 tensors.
    """

    def __init__(self, windows: Dataset, corruption: Corruption, seed: int = 0):
        self.windows, self.corruption, self.seed = windows, corruption, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # which workers that stay see change

    def set_epoch(self, epoch: int) -> None:
        """From now on items are those of the epoch `epoch`, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = self.windows[i]["input_ids"].numpy()
        # A counter-based generator: each window has a stretch of 2^192 draws of its own.
        bits = np.random.Philox(key=[self.seed, int(self._epoch)], counter=[0, 0, 0, i % len(self)])
        corrupted = self.corruption(ids, np.random.Generator(bits))
        return {name: torch.from_numpy(values) for name, values in corrupted.items()}


def spans_of(target: Sequence[int], sentinels: Sequence[int]) -> list[list[int]]:
    """The tokens after each sentinel of a target, in the order of the sentinels; of one that is not there, none."""
    order = {sentinel: number for number, sentinel in enumerate(sentinels)}
    found: list[list[int]] = [[] for _ in sentinels]
    span: list[int] = []  # of what stands before the first sentinel
    for token in target:
        if token in order:
            span = found[order[token]]
            span.clear()
        else:
            span.append(token)
    return found


def put_back(text: Sequence[int], target: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """The tokens of `text` with those that `target` has after each sentinel in its place."""
    told = dict(zip(sentinels, spans_of(target, sentinels), strict=True))
    return [token for place in text for token in told.get(place, [place])]
