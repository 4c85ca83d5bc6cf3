"""Token shards as a data set of windows of equal length, read through memory maps."""

import copy
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.token_shards import read_index

OPEN_SHARDS = 32  # of a stream, in each process


class TokenWindows(Dataset):
    """A split of a tokens folder, cut into windows of exactly `length` tokens, across documents and shards.

    Item `i` holds `length` tokens as int64 tensors `input_ids` and `labels`, both (length,); the model shifts them.
    Nothing here is random, so that item `i` is the same in every process and after every restart. The corpus is in the
    order of document digests, so neighbours have nothing to do with each other.

    A split that is no mix is one stream of tokens: item `i` holds its tokens `i * length` to `(i + 1) * length`, and
    what is left at the end is no window. Of a mix (`hf_llm.data.tokens.mixing`) each stream gives as many windows as
    the plan
    says; it is read as a ring from a place that `seed` chooses, so that of an epoch over it every token is read once,
    and of a part of an epoch some stretch. The windows of one stream follow those of another, to be shuffled by the
    sampler. With a curriculum the windows are `in_stages`, to be read in their order: stage after stage, each of them
    shuffled here.

    `tokens` and `bytes` are those of the split or the plan (of its first windows, by proportion, if `limited`);
    `bytes_per_token` turns a loss per token into bits per byte.
    """

    def __init__(self, folder: Path, split: str, length: int, seed: int = 0):
        self.folder, self.split, self.length = Path(folder), split, length
        index = read_index(self.folder)
        shards = index["splits"].get(split, [])
        dtype = np.dtype(index["dtype"])
        if split == "train" and "plan" in index:
            self._streams = [
                _Stream(self.folder, [shard for shard in shards if _belongs(shard, row)], dtype, row, seed)
                for row in index["plan"]
            ]
        else:
            self._streams = [_Stream(self.folder, shards, dtype)]
        counts = [stream.planned // length for stream in self._streams]
        self._ends = np.cumsum(counts, dtype=np.int64)  # (streams,) windows up to the end of each
        last = {stream.stage: int(end) for stream, end in zip(self._streams, self._ends, strict=True)}
        self._stages = np.array(list(last.values()), np.int64)  # (stages,) windows up to the end of each
        self._seed, self._windows = seed, int(self._ends[-1])
        self.tokens = sum(stream.planned for stream in self._streams)
        self.bytes = round(sum(stream.bytes for stream in self._streams))
        if not self._windows:
            raise UserError(
                f"the {split} split of {folder} has {self.tokens:,} tokens, too few for one window of {length:,}; "
                "add text to corpus.sources or shorten the context"
            )

    @property
    def in_stages(self) -> bool:
        """Whether the windows have an order that a sampler has to keep."""
        return len(self._stages) > 1

    def stage_of(self, i: int) -> int:
        """Which stage of the curriculum item `i` belongs to, from 0; 0 without one."""
        return int(np.searchsorted(self._stages, i % len(self), side="right"))

    @property
    def last_stage(self) -> int:
        """The first item of the curriculum's last stage; 0 without one."""
        return int(self._stages[-2]) if self.in_stages else 0

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
        number, window = self._find(i % len(self))
        ids = torch.from_numpy(self._streams[number].read(window * self.length, self.length))
        return {"input_ids": ids, "labels": ids.clone()}

    def _find(self, i: int) -> tuple[int, int]:
        """The stream of item `i`, and which of its windows it is."""
        if self.in_stages:
            i = self._shuffled(i)
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, i - (int(self._ends[number - 1]) if number else 0)

    def _shuffled(self, i: int) -> int:
        """Item `i`'s place among the windows of its stage, laid out stream by stream.

        A step of about the golden section of the stage, so that any few neighbouring items are spread evenly over it:
        each batch holds every source in its share (Weyl's sequence), with no table of the order in memory.
        """
        stage = int(np.searchsorted(self._stages, i, side="right"))
        before = int(self._stages[stage - 1]) if stage else 0
        size = int(self._stages[stage]) - before
        step = round(size * (math.sqrt(5) - 1) / 2) or 1
        while math.gcd(step, size) > 1:
            step += 1
        return before + (_place(f"{self._seed}/{stage}", size) + (i - before) * step) % size


class _Stream:
    """Shards read as one ring of tokens, from the place and as often as a row of the plan says; once, without one."""

    def __init__(self, folder: Path, shards: list[dict], dtype: np.dtype, row: dict | None = None, seed: int = 0):
        self.folder, self.dtype = folder, dtype
        shards = [shard for shard in shards if shard["tokens"]]
        self.files = [shard["file"] for shard in shards]
        self.ends = np.cumsum([shard["tokens"] for shard in shards], dtype=np.int64)
        self.tokens = int(self.ends[-1]) if shards else 0
        self.stage = row["stage"] if row else 0
        self.start = _start(row, seed, self.tokens) if row else 0
        self.planned = row["planned"] if row else self.tokens
        self.bytes = sum(shard["bytes"] for shard in shards) * self.planned / max(self.tokens, 1)
        self._maps: OrderedDict[int, np.memmap] = OrderedDict()  # by shard, the one used last at the end

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": OrderedDict()}  # every worker opens its own

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens as int64, `start` tokens after the first place; the first shard follows the last."""
        found, filled = np.empty(count, np.int64), 0
        while filled < count:
            place = (self.start + start + filled) % self.tokens
            shard = int(np.searchsorted(self.ends, place, side="right"))
            offset = place - (int(self.ends[shard - 1]) if shard else 0)
            piece = self._map(shard)[offset : offset + count - filled]
            found[filled : filled + len(piece)] = piece
            filled += len(piece)
        return found

    def _map(self, shard: int) -> np.memmap:
        """A shard, one of a few that are open at a time: each takes one of the files that a process may have open."""
        found = self._maps.pop(shard, None)
        if found is None:
            found = np.memmap(self.folder / self.files[shard], self.dtype, mode="r")
            if len(self._maps) >= OPEN_SHARDS:
                self._maps.popitem(last=False)
        self._maps[shard] = found
        return found


def _start(row: dict, seed: int, tokens: int) -> int:
    """Where a row of the plan begins to read its stream; behind the stages before, where they read the same stream."""
    stage = 0 if "passed" in row else row["stage"]
    return _place(f"{seed}/{stage}/{row['source']}", tokens) + row.get("passed", 0)


def _belongs(shard: dict, row: dict) -> bool:
    if "passed" in row:
        return shard["source"] == row["source"]
    return (shard.get("stage", 0), shard.get("source", "")) == (row["stage"], row["source"])


def _place(key: str, size: int) -> int:
    """A place below `size` that follows from `key`."""
    return xxhash.xxh3_64_intdigest(key.encode()) % max(size, 1)
