"""Read token shards as a data set of windows of equal length, through memory maps."""

import copy
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.byte_lengths import bytes_behind_labels
from hf_llm.data.tokens.mixing import StreamPlan
from hf_llm.pipeline.tokens_folder import read_index

MAX_OPEN_SHARDS = 32  # files that each process keeps open for a stream
TOKENS_AT_ONCE = 1 << 22  # of a shard, while their bytes are added up
_GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


class TokenWindows(Dataset):
    """A split of a tokens folder, cut into windows of exactly `length` tokens, across documents and shards.

    Item `i` holds `length` tokens as int64 tensors `input_ids` and `labels`, both (length,); the model shifts them.
    Nothing here is random, so item `i` is the same in every process and after every restart. Documents are sorted by
    digest, so neighbouring ones are unrelated.

    - Without a plan, the split is one stream of tokens: item `i` holds tokens `i * length` to `(i + 1) * length`. The
      remainder at the end is dropped.
    - With a plan (`hf_llm.data.tokens.mixing`), each stream gives as many windows as the plan says. A stream is read as
      a ring, from a position chosen by `seed`: one epoch reads every token once, a part of an epoch one stretch of it.
      The windows of the streams follow one another, to be shuffled by the sampler.
    - With a curriculum, `has_stages` is true and the sampler has to keep the order: one stage after the other. The
      windows of a stage are shuffled here.

    `tokens` and `bytes` are totals of the split or the plan; after `limit_tokens`, those of the first windows, the
    bytes in proportion. `bytes_per_token` converts a loss per token to bits per byte: on average over the split, or
    after `measure_bytes` exactly that of the tokens which a model is asked to predict.
    """

    def __init__(self, folder: Path, split: str, length: int, seed: int = 0):
        self.folder = Path(folder)
        self.split = split
        self.length = length
        self._seed = seed

        index = read_index(self.folder)
        self._streams = _open_streams(self.folder, index, split, seed)
        self.tokens = sum(stream.planned for stream in self._streams)
        self.bytes = round(sum(stream.bytes for stream in self._streams))
        self._measured_bytes_per_token: float | None = None

        window_counts = [stream.planned // length for stream in self._streams]
        self._stream_ends = np.cumsum(window_counts, dtype=np.int64)  # (streams,) windows up to the end of each
        self._windows = int(self._stream_ends[-1])

        # The streams are in the order of their stages: a stage ends with the last stream that belongs to it.
        stage_ends = {}
        for stream, end in zip(self._streams, self._stream_ends, strict=True):
            stage_ends[stream.stage] = int(end)
        self._stage_ends = np.array(list(stage_ends.values()), np.int64)  # (stages,) windows up to the end of each

        if not self._windows:
            raise UserError(
                f"the {split} split of {folder} has {self.tokens:,} tokens, too few for one window of {length:,}; "
                "add text to corpus.sources or shorten the context"
            )

    @property
    def has_stages(self) -> bool:
        """Whether the windows are in the order of a curriculum, which a sampler has to keep."""
        return len(self._stage_ends) > 1

    def find_stage(self, i: int) -> int:
        """Return the stage of the curriculum that item `i` belongs to, from 0; 0 without a curriculum."""
        return int(np.searchsorted(self._stage_ends, i % len(self), side="right"))

    @property
    def last_stage_start(self) -> int:
        """The first item of the curriculum's last stage; 0 without a curriculum."""
        return int(self._stage_ends[-2]) if self.has_stages else 0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, the end-of-text tokens included."""
        if self._measured_bytes_per_token is not None:
            return self._measured_bytes_per_token
        return self.bytes / self.tokens

    def measure_bytes(self, byte_lengths: np.ndarray) -> None:
        """Set `bytes_per_token` to that of the labels in these windows, all tokens but the first of each.

        `byte_lengths` (vocabulary,) are those of `token_byte_lengths`. Where they do not add up to the bytes of the
        whole split, as with a tokenizer that normalises the text, all are scaled alike.
        """
        split_lengths = sum(stream.sum_lengths(byte_lengths) for stream in self._streams)
        split_bytes = sum(stream.bytes for stream in self._streams)
        labels = np.concatenate([self[i]["labels"][1:].numpy() for i in range(len(self))])
        self._measured_bytes_per_token = bytes_behind_labels(byte_lengths, labels, split_lengths, split_bytes)

    def limit_tokens(self, tokens: int) -> "TokenWindows":
        """Return a data set of the first windows, at most `tokens` tokens but at least one window."""
        limited = copy.copy(self)
        limited._windows = min(self._windows, max(1, tokens // self.length))
        if limited._windows < self._windows:
            limited._measured_bytes_per_token = None
            limited.tokens = limited._windows * self.length
            limited.bytes = round(limited.tokens * self.bytes_per_token)
        return limited

    def __len__(self) -> int:
        return self._windows

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")

        number, window = self._locate_window(i % len(self))
        tokens = self._streams[number].read_tokens(window * self.length, self.length)
        ids = torch.from_numpy(tokens)
        return {"input_ids": ids, "labels": ids.clone()}

    def _locate_window(self, i: int) -> tuple[int, int]:
        """Return the number of the stream that item `i` is read from, and which of its windows it is."""
        if self.has_stages:
            i = self._shuffle_within_stage(i)
        number = int(np.searchsorted(self._stream_ends, i, side="right"))
        stream_start = int(self._stream_ends[number - 1]) if number else 0
        return number, i - stream_start

    def _shuffle_within_stage(self, i: int) -> int:
        """Return the number of the window that item `i` is, counted stream by stream, after shuffling its stage.

        The windows of successive items are about 0.618 of the stage apart (a Weyl sequence with the golden ratio). So
        the items of a batch are spread evenly over the stage, every source in its share, and memory holds no table of
        the order.
        """
        stage = int(np.searchsorted(self._stage_ends, i, side="right"))
        stage_start = int(self._stage_ends[stage - 1]) if stage else 0
        size = int(self._stage_ends[stage]) - stage_start

        # A step that shares no divisor with the size visits every window of the stage once.
        step = round(size * _GOLDEN_SECTION) or 1
        while math.gcd(step, size) > 1:
            step += 1

        first = _hash_to_position(f"{self._seed}/{stage}", size)
        return stage_start + (first + (i - stage_start) * step) % size


class _Stream:
    """Shards read as one ring of tokens: as many and from where its plan says; without a plan, once from the start."""

    def __init__(self, folder: Path, shards: list[dict], dtype: np.dtype, plan: StreamPlan | None, seed: int):
        shards = [shard for shard in shards if shard["tokens"]]
        self.folder = folder
        self.dtype = dtype
        self.files = [shard["file"] for shard in shards]
        self.shard_ends = np.cumsum([shard["tokens"] for shard in shards], dtype=np.int64)
        self.tokens = int(self.shard_ends[-1]) if shards else 0

        self.stage = 0
        self.start = 0
        self.planned = self.tokens
        if plan:
            self.stage = plan["stage"]
            self.start = _start_position(plan, seed, self.tokens)
            self.planned = plan["planned"]

        total_bytes = sum(shard["bytes"] for shard in shards)
        self.bytes = total_bytes * self.planned / max(self.tokens, 1)
        self._maps: OrderedDict[int, np.memmap] = OrderedDict()  # by shard, the most recently used at the end

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": OrderedDict()}  # every worker opens its own

    def read_tokens(self, start: int, count: int) -> np.ndarray:
        """Read `count` tokens as int64, beginning `start` tokens after the stream's start.

        After the end of the last shard, reading continues at the first.
        """
        tokens = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            position = (self.start + start + filled) % self.tokens
            shard = int(np.searchsorted(self.shard_ends, position, side="right"))
            shard_start = int(self.shard_ends[shard - 1]) if shard else 0

            offset = position - shard_start
            piece = self._open_map(shard)[offset : offset + count - filled]
            tokens[filled : filled + len(piece)] = piece
            filled += len(piece)
        return tokens

    def sum_lengths(self, byte_lengths: np.ndarray) -> float:
        """Return the sum of `byte_lengths` (vocabulary,) over the tokens of the stream, as often as it is read."""
        total = 0.0
        for shard in range(len(self.files)):
            ids = self._open_map(shard)
            for start in range(0, len(ids), TOKENS_AT_ONCE):
                total += byte_lengths[ids[start : start + TOKENS_AT_ONCE]].sum()
        return float(total) * self.planned / max(self.tokens, 1)

    def _open_map(self, shard: int) -> np.memmap:
        """Return the memory map of a shard. Only the last used stay open, since a process may open a limited number."""
        memory_map = self._maps.pop(shard, None)
        if memory_map is None:
            memory_map = np.memmap(self.folder / self.files[shard], self.dtype, mode="r")
            if len(self._maps) >= MAX_OPEN_SHARDS:
                self._maps.popitem(last=False)
        self._maps[shard] = memory_map
        return memory_map


def _open_streams(folder: Path, index: dict, split: str, seed: int) -> list[_Stream]:
    """Return the streams of a split: those of the plan, or one of all shards where there is no plan."""
    shards = index["splits"].get(split, [])
    dtype = np.dtype(index["dtype"])
    if split != "train" or "plan" not in index:
        return [_Stream(folder, shards, dtype, None, seed)]

    streams = []
    for plan in index["plan"]:
        own_shards = [shard for shard in shards if _is_shard_of_plan(shard, plan)]
        streams.append(_Stream(folder, own_shards, dtype, plan, seed))
    return streams


def _is_shard_of_plan(shard: dict, plan: StreamPlan) -> bool:
    if "passed" in plan:  # a curriculum by mix: all stages read the same shards
        return shard["source"] == plan["source"]
    return shard.get("stage", 0) == plan["stage"] and shard.get("source", "") == plan["source"]


def _start_position(plan: StreamPlan, seed: int, tokens: int) -> int:
    """Return where the reading of a stream of `tokens` tokens starts.

    Stages that read the same stream start from one position, each after the tokens of the stages before it.
    """
    reads_shared_stream = "passed" in plan
    stage = 0 if reads_shared_stream else plan["stage"]
    start = _hash_to_position(f"{seed}/{stage}/{plan['source']}", tokens)
    return start + plan.get("passed", 0)


def _hash_to_position(key: str, size: int) -> int:
    """Return a position below `size` that follows from `key`."""
    return xxhash.xxh3_64_intdigest(key.encode()) % max(size, 1)
