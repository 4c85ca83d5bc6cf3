"""Token shards: the ids of many documents one after the other, an end-of-text after each, as plain binary files.

`index.json` lists them by split:

    {"dtype": "uint16", "vocab_size": 8192, "eos_token_id": 1, "tokenizer": "<digest>",
     "splits": {"train": [{"file": "train-00000.bin", "tokens": 5, "documents": 2, "bytes": 17,
                           "sources": {"books": 5}, "languages": {"en": 5}}, ...]}}

`tokens` counts the end-of-text tokens, `bytes` is the documents' text in UTF-8. Where the train split is a mix or has a
curriculum (`hf_llm.data.tokens.mixing`), each of its shards holds one `source`, one `stage`, or both, and says so.

Reading, tokenising (the library's own threads) and writing overlap: the next batch is read and another tokenised while
one is written. Memory holds those three batches, however large the corpus is.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from hf_llm.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

INDEX = "index.json"
_BATCH_BYTES = 1 << 20  # of text handed to the tokenizer's threads at a time
_ROWS = 512  # read at a time: of the longest documents 50 MB


@dataclass
class Documents:
    """Some documents, column by column."""

    texts: list[str]
    bytes: np.ndarray  # (documents,) of each text in UTF-8
    sources: list[str]
    languages: list[str]

    @classmethod
    def of(cls, texts: list[str]) -> "Documents":
        """Documents that nothing is known about."""
        sizes = np.array([len(text.encode("utf-8")) for text in texts], np.int64)
        return cls(texts, sizes, [""] * len(texts), [""] * len(texts))

    def first(self, count: int) -> "Documents":
        """The first `count` of them."""
        return Documents(self.texts[:count], self.bytes[:count], self.sources[:count], self.languages[:count])


@dataclass
class Tokens:
    """What some documents are made of."""

    ids: np.ndarray  # (tokens,) of all documents one after the other, an end-of-text after each
    lengths: np.ndarray  # (documents,) tokens of each, the end-of-text counted

    def first(self, count: int) -> "Tokens":
        """Those of the first `count` documents."""
        return Tokens(self.ids[: int(self.lengths[:count].sum())], self.lengths[:count])


class Streams(Protocol):
    """Divides documents among several files (`hf_llm.data.tokens.mixing.Streams`)."""

    labels: list[dict]  # what the entry of each file says besides its counts

    def of(self, documents: Documents, tokens: Tokens) -> np.ndarray: ...  # (documents,) the file of each


class OneStream:
    """All documents in one file."""

    labels: tuple[dict, ...] = ({},)

    def of(self, documents: Documents, tokens: Tokens) -> np.ndarray:
        return np.zeros(len(tokens.lengths), np.int64)


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer that holds every id of a vocabulary: uint16 to 65,536 tokens, then uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def read_documents(path: Path) -> Iterator[Documents]:
    """The documents of one Parquet file of a corpus, in batches of a megabyte, or of one document larger than that."""
    import pyarrow.compute as compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS, columns=["text", "source", "language"]):
            sizes = compute.binary_length(batch["text"]).to_numpy().astype(np.int64)
            cuts = np.searchsorted(np.cumsum(sizes), np.arange(_BATCH_BYTES, int(sizes.sum()), _BATCH_BYTES)) + 1
            bounds = np.unique([0, *cuts, len(sizes)])
            for start, end in pairwise(bounds.tolist()):
                columns = (batch[name].slice(start, end - start).to_pylist() for name in batch.schema.names)
                yield Documents(next(columns), sizes[start:end], *columns)


def tokenized(
    documents: Iterable[Documents], tokenizer: "Tokenizer", eos_token_id: int, dtype: np.dtype
) -> Iterator[tuple[Documents, Tokens]]:
    """Batches of documents, each with its tokens.

    Special tokens spelt out in a text are tokenised as text, so that the end-of-text ids are the documents' ends, which
    is asserted.
    """
    tokenizer.encode_special_tokens = True

    def encode() -> Iterator[tuple[Documents, list]]:
        for batch in _ahead(documents):
            yield batch, tokenizer.encode_batch_fast(batch.texts, add_special_tokens=False)

    for batch, encodings in _ahead(encode()):
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype, int(counts.sum()))
        assert not np.any(ids == eos_token_id), "an end of text within a text"
        yield batch, Tokens(np.insert(ids, np.cumsum(counts), eos_token_id), counts + 1)


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each made by another thread while the one before it is used."""
    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def write_shards(
    folder: Path,
    stem: str,
    batches: Iterable[tuple[Documents, Tokens]],
    streams: Streams | None = None,
    limit: int | None = None,
) -> Iterator[list[dict]]:
    """Write documents to `folder/stem.bin` (`stem.0.bin`, `stem.1.bin` ... where there are several streams).

    Yields the entries of the index after every batch; the last are the final ones. Stops after the document that
    reaches `limit` tokens. A stream without documents has no file. A file has its name when it is whole.
    """
    streams = streams or OneStream()
    names = [f"{stem}.{number}.bin" for number in range(len(streams.labels))]
    with ExitStack() as stack:
        shards = [
            stack.enter_context(_Shard(folder / (name if len(names) > 1 else f"{stem}.bin"), label))
            for name, label in zip(names, streams.labels, strict=True)
        ]
        for documents, tokens in batches:
            if limit is not None:
                count = _within(limit - sum(shard.entry["tokens"] for shard in shards), tokens)
                documents, tokens = documents.first(count), tokens.first(count)
            stream = streams.of(documents, tokens)
            for number in np.unique(stream):
                shards[number].write(documents, tokens, stream == number)
            yield [shard.entry for shard in shards]
            if limit is not None and sum(shard.entry["tokens"] for shard in shards) >= limit:
                break
        for shard in shards:
            shard.finish()
    yield [shard.entry for shard in shards if shard.entry["documents"]]


def _within(limit: int, tokens: Tokens) -> int:
    """How many documents it takes to reach `limit` tokens; all where they do not."""
    return int(min(np.searchsorted(np.cumsum(tokens.lengths), limit) + 1, len(tokens.lengths)))


class _Shard:
    """One file under way, and its entry of the index."""

    def __init__(self, path: Path, label: dict):
        self.path = path
        self.temporary = path.with_name(path.name + ".tmp")
        self.sources, self.languages = Counter(), Counter()
        self.entry = {"file": path.name, **label, "tokens": 0, "documents": 0, "bytes": 0}

    def __enter__(self) -> "_Shard":
        self.file = open(self.temporary, "wb")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, documents: Documents, tokens: Tokens, ours: np.ndarray) -> None:
        """Add the documents that are `ours` (documents,)."""
        ids = tokens.ids if ours.all() else tokens.ids[np.repeat(ours, tokens.lengths)]
        self.file.write(ids.tobytes())
        self.entry["tokens"] += len(ids)
        self.entry["documents"] += int(ours.sum())
        self.entry["bytes"] += int(documents.bytes[ours].sum())
        for number in np.flatnonzero(ours):
            length = int(tokens.lengths[number])
            self.sources[documents.sources[number]] += length
            self.languages[documents.languages[number]] += length

    def finish(self) -> None:
        """Give the file its name, or take it away where it is empty."""
        self.entry["sources"] = dict(sorted(self.sources.items()))
        self.entry["languages"] = dict(sorted(self.languages.items()))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.entry["documents"]:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink()


def read_index(folder: Path) -> dict:
    """The index of a folder of token shards. Raises UserError where there is none."""
    try:
        return json.loads((Path(folder) / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no token shards (no {INDEX}); make them with python -m hf_llm.tokenize_corpus recipe.yaml"
        ) from None
