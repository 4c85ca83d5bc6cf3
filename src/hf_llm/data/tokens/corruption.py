"""Corrupt windows of tokens for a model to restore: BERT's masked tokens and T5's masked spans.

What is masked in a window follows from the seed, the epoch and the window's number alone, so it is the same in every
process, with any number of workers and after every restart, and differs from epoch to epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_llm.core.errors import UserError
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.tokenization.text_boundaries import count_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The shares of the tokens to predict that are replaced by the mask and by a random token; the others stay in the input
# (BERT, appendix A.1).
SHOWN_AS_MASK = 0.8
SHOWN_AS_RANDOM = 0.1


def regular_token_mask(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """Return (vocabulary,) bool: which ids are not special tokens."""
    is_regular = np.ones(count_ids(tokenizer), bool)
    is_regular[tokenizer.all_special_ids] = False
    return is_regular


class Corruption(Protocol):
    """Corrupts a window: `ids` (n,) int64 -> `input_ids`, `labels` and the like, int64."""

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class TokenMasking:
    """BERT's masked language modelling (https://arxiv.org/abs/1810.04805, section 3.1).

    A window gives `input_ids` and `labels`, both (n,). The number of tokens to predict is the same in every window, so
    that a mean over windows is a mean over tokens.
    """

    mask_token_id: int
    is_word: np.ndarray
    """(vocabulary,) bool: which ids may be masked; False for special tokens."""
    share: float = 0.15
    """Share of the window's tokens to predict."""
    count: int | None = None
    """Number of tokens to predict in each window, instead of `share`."""
    always: bool = False
    """Show all tokens to predict as the mask, rather than 80% as the mask, 10% as a random token, 10% as they are."""

    @cached_property
    def word_ids(self) -> np.ndarray:
        """The ids that may be masked."""
        return np.flatnonzero(self.is_word)

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        candidates = np.flatnonzero(self.is_word[ids])  # positions
        count = self.count or max(1, round(self.share * len(ids)))
        count = min(count, len(candidates))
        predicted = random.choice(candidates, count, replace=False, shuffle=False)  # (count,) positions to predict

        labels = np.full(len(ids), IGNORE_INDEX, np.int64)
        labels[predicted] = ids[predicted]
        input_ids = ids.copy()
        input_ids[predicted] = self._corrupt_ids(ids[predicted], random)
        return {"input_ids": input_ids, "labels": labels}

    def _corrupt_ids(self, true_ids: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the input for the tokens to predict: the mask, a random token or the true one."""
        draw = random.random(len(true_ids))
        choices = random.integers(len(self.word_ids), size=len(true_ids))
        random_ids = self.word_ids[choices]

        is_mask = (draw < SHOWN_AS_MASK) | self.always
        is_random = draw < SHOWN_AS_MASK + SHOWN_AS_RANDOM
        shown = np.where(is_random, random_ids, true_ids)
        return np.where(is_mask, self.mask_token_id, shown)


@dataclass(frozen=True)
class SpanCorruption:
    """T5's span corruption (https://arxiv.org/abs/1910.10683, section 3.1.4).

    `input_ids` has a sentinel token instead of each masked span, `labels` each sentinel followed by the tokens of
    its span; both end with the end of text. `decoder_input_ids` are the labels shifted right by one, after the padding
    token, as T5 begins. Windows of one length give inputs of one length, and targets of one length.
    """

    sentinels: np.ndarray
    """Ids of the sentinel tokens, in the order of their use."""
    eos_token_id: int
    pad_token_id: int
    share: float = 0.15
    """Share of the window's tokens that are masked."""
    mean_span: float = 3.0
    """Mean length of a masked span, in tokens."""

    def count_masked(self, length: int) -> tuple[int, int]:
        """Return how many tokens of a window of `length` tokens are masked, and in how many spans."""
        masked = round(length * self.share)
        masked = min(max(masked, 1), length - 1)

        spans = round(masked / self.mean_span)
        spans = min(max(spans, 1), masked, length - masked)
        return masked, spans

    def input_and_target_lengths(self, length: int) -> tuple[int, int]:
        """Return the tokens of input and target of a window of `length` tokens."""
        masked, spans = self.count_masked(length)
        input_length = length - masked + spans + 1
        target_length = masked + spans + 1
        return input_length, target_length

    def check_sentinels(self, length: int) -> None:
        """Raise UserError where a window of `length` tokens has more spans than there are sentinels."""
        _, spans = self.count_masked(length)
        if spans > len(self.sentinels):
            raise UserError(
                f"pretrain.objective: a window of {length} tokens has {spans} masked spans, and the tokenizer "
                f"{len(self.sentinels)} sentinel tokens (<extra_id_0> ...); raise mean_span, shorten pretrain.context, "
                "or rebuild the tokenizer (python -m hf_llm.run ... --fresh=tokenizer)"
            )

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        masked, spans = self.count_masked(len(ids))
        sentinels = self.sentinels[:spans]

        # The window is divided into kept and masked pieces in turn; the first is a kept one.
        kept_lengths = _split_randomly(len(ids) - masked, spans, random)
        masked_lengths = _split_randomly(masked, spans, random)
        piece_lengths = np.stack([kept_lengths, masked_lengths], axis=1).ravel()  # (2 * spans,)
        is_masked = np.repeat(np.tile([False, True], spans), piece_lengths)  # (n,)

        # In the input, a sentinel replaces the first token of each span, and the other tokens of the span are removed.
        span_starts = np.cumsum(piece_lengths)[::2]
        input_ids = ids.copy()
        input_ids[span_starts] = sentinels
        stays = ~is_masked
        stays[span_starts] = True

        # In the target, a sentinel comes before the tokens of each span.
        masked_ids = ids[is_masked]
        target_starts = np.cumsum(masked_lengths) - masked_lengths
        target = np.insert(masked_ids, target_starts, sentinels)
        return {
            "input_ids": np.append(input_ids[stays], self.eos_token_id),
            "labels": np.append(target, self.eos_token_id),
            "decoder_input_ids": np.insert(target, 0, self.pad_token_id),
        }


def _split_randomly(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Return lengths (parts,) of at least 1 that add up to `total`, every way to split it equally likely."""
    cuts = random.choice(total - 1, parts - 1, replace=False, shuffle=False)
    cuts = np.sort(cuts) + 1
    return np.diff(cuts, prepend=0, append=total)


class _Windows(Protocol):
    """The part of a data set of windows that is needed to corrupt them."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> dict[str, torch.Tensor]: ...


class CorruptedWindows(Dataset):
    """`windows` (`hf_llm.data.tokens.token_dataset.TokenWindows`) after a `corruption`, which changes every epoch.

    Item `i` is a dictionary of the corruption's arrays as int64 tensors.
    """

    def __init__(self, windows: _Windows, corruption: Corruption, seed: int = 0):
        self.windows = windows
        self.corruption = corruption
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that persistent workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Make the items those of the epoch `epoch`, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = self.windows[i]["input_ids"].numpy()

        # A counter-based generator: the counter's last word is the window's number, so windows never share a draw.
        bits = np.random.Philox(key=[self.seed, int(self._epoch)], counter=[0, 0, 0, i % len(self)])
        corrupted = self.corruption(ids, np.random.Generator(bits))
        return {name: torch.from_numpy(values) for name, values in corrupted.items()}


def split_target_spans(target: Sequence[int], sentinels: Sequence[int]) -> list[list[int]]:
    """Return the tokens after each sentinel of a target, in the order of `sentinels`; none for a missing sentinel."""
    spans: dict[int, list[int]] = {token: [] for token in sentinels}
    span: list[int] = []  # tokens before the first sentinel belong to no span, and are not returned
    for token in target:
        if token in spans:
            span = spans[token]
            span.clear()
        else:
            span.append(token)
    return list(spans.values())


def restore_spans(text: Sequence[int], target: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """Return the tokens of `text`, each sentinel replaced by the tokens that `target` has after it."""
    spans = dict(zip(sentinels, split_target_spans(target, sentinels), strict=True))
    restored = []
    for token in text:
        restored += spans.get(token, [token])
    return restored
