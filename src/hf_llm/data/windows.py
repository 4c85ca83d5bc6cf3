"""Token shards as a data set of windows of equal length, read through memory maps."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_llm.data.shards import read_index
from hf_llm.errors import UserError


class TokenWindows(Dataset):
    """A split of a tokens folder, cut into windows of exactly `length` tokens, across documents and shards.

    Item `i` holds tokens `i * length` to `(i + 1) * length` of the split, as int64 tensors `input_ids` and `labels`,
    both (length,); the model shifts them. What is left at the end is no window. Nothing here is random, so that item
    `i` is the same in every process and after every restart. The corpus is in the order of document digests, so
    neighbours have nothing to do with each other.

    `tokens` and `bytes` are those of the split (of its first windows, by proportion, if `limited`); `bytes_per_token`
    turns a loss per token into bits per byte.
    """

    def __init__(self, folder: Path, split: str, length: int):
        self.folder, self.split, self.length = Path(folder), split, length
        index = read_index(self.folder)
        shards = index["splits"].get(split, [])
        self.files = [shard["file"] for shard in shards]
        self.ends = np.cumsum([shard["tokens"] for shard in shards], dtype=np.int64)
        self.dtype = np.dtype(index["dtype"])
        self.tokens = int(self.ends[-1]) if shards else 0
        self.bytes = sum(shard["bytes"] for shard in shards)
        self._maps: list[np.memmap] | None = None
        if self.tokens < length:
            raise UserError(
                f"the {split} split of {folder} has {self.tokens:,} tokens, too few for one window of {length:,}; "
                "add text to corpus.sources or shorten the context"
            )
        self._windows = self.tokens // length

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, the end-of-text tokens counted in."""
        return self.bytes / self.tokens

    def limited(self, tokens: int) -> "TokenWindows":
        """The same windows, only the first so many that they hold at most `tokens` tokens (but one at least)."""
        fewer = copy.copy(self)
        fewer._windows = min(self._windows, max(1, tokens // self.length))
        if fewer._windows < self._windows:
            fewer.tokens = fewer._windows * self.length
            fewer.bytes = round(fewer.tokens * self.bytes_per_token)
        return fewer

    def __len__(self) -> int:
        return self._windows

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        start = i % len(self) * self.length
        ids = torch.from_numpy(self._read(start, start + self.length))
        return {"input_ids": ids, "labels": ids.clone()}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": None}  # every worker opens its own

    def _read(self, start: int, end: int) -> np.ndarray:
        """Tokens `start` to `end` of the split as int64, from as many shards as they lie in."""
        if self._maps is None:
            self._maps = [np.memmap(self.folder / name, self.dtype, mode="r") for name in self.files]
        found, filled = np.empty(end - start, np.int64), 0
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while filled < len(found):
            offset = start + filled - (int(self.ends[shard - 1]) if shard else 0)
            piece = self._maps[shard][offset : offset + len(found) - filled]
            found[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1
        return found
