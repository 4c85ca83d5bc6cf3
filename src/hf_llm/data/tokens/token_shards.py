"""Tokenize documents and write token shards: binary files of ids, with an end-of-text token after each document.

Before each document stands what the tokenizer puts before a text (`hf_llm.tokenization.text_boundaries`).
`index.json` lists the shards by split; a copy of their tokenizer lies beside it, in `tokenizer/`:

    {"dtype": "uint16", "vocab_size": 8192, "eos_token_id": 1, "prefix": [], "tokenizer": "<digest>",
     "splits": {"train": [{"file": "train-00000.bin", "tokens": 5, "documents": 2, "bytes": 17,
                           "sources": {"books": 5}, "languages": {"en": 5}}, ...]}}

`tokens` includes the end-of-text tokens, `bytes` is the documents' text in UTF-8. If the train split is a mix or has a
curriculum (`hf_llm.data.tokens.mixing`), each of its shards holds one source, one stage, or one source in one stage,
and its entry has the keys `source` and `stage` accordingly.

Reading, tokenising (in the library's threads) and writing overlap: while one batch is written, the next is tokenised
and the one after that is read. Memory holds these three batches, however large the corpus is.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from hf_llm.pipeline.tokens_folder import INDEX as INDEX
from hf_llm.pipeline.tokens_folder import read_index as read_index

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

_BATCH_BYTES = 1 << 20  # of text handed to the tokenizer's threads at a time
_ROWS_PER_READ = 512  # 50 MB if all are as long as documents may be


@dataclass
class Documents:
    """Some documents, column by column."""

    texts: list[str]
    bytes: np.ndarray  # (documents,) of each text in UTF-8
    sources: list[str]
    languages: list[str]

    @classmethod
    def from_texts(cls, texts: list[str]) -> "Documents":
        """Build documents of unknown source and language."""
        sizes = np.array([len(text.encode("utf-8")) for text in texts], np.int64)
        unknown = [""] * len(texts)
        return cls(texts, sizes, sources=unknown, languages=list(unknown))

    def take_first(self, count: int) -> "Documents":
        """Return the first `count` documents."""
        return Documents(self.texts[:count], self.bytes[:count], self.sources[:count], self.languages[:count])


@dataclass
class Tokens:
    """The tokens of some documents."""

    ids: np.ndarray  # (tokens,) of all documents one after the other, an end of text after each
    lengths: np.ndarray  # (documents,) tokens of each, the end of text counted

    def take_first(self, count: int) -> "Tokens":
        """Return the tokens of the first `count` documents."""
        lengths = self.lengths[:count]
        return Tokens(self.ids[: int(lengths.sum())], lengths)


class Router(Protocol):
    """Divides documents among several files; `hf_llm.data.tokens.mixing.StreamRouter` is one."""

    labels: Sequence[dict]  # (files,) further keys of each file's entry in the index

    def route_documents(self, documents: Documents, tokens: Tokens) -> np.ndarray: ...  # (documents,) file of each


class SingleFileRouter:
    """Puts all documents in one file."""

    labels: Sequence[dict] = ({},)

    def route_documents(self, documents: Documents, tokens: Tokens) -> np.ndarray:
        return np.zeros(len(tokens.lengths), np.int64)


def smallest_id_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest unsigned integer type that holds every id of a vocabulary: uint16 up to 65,536 tokens, then
    uint32."""
    is_small = vocab_size <= 1 << 16
    return np.dtype(np.uint16 if is_small else np.uint32)


def read_documents(path: Path) -> Iterator[Documents]:
    """Yield the documents of one Parquet file of a corpus, in batches of a megabyte, or of one larger document."""
    import pyarrow.compute as compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for rows in file.iter_batches(batch_size=_ROWS_PER_READ, columns=["text", "source", "language"]):
            sizes = compute.binary_length(rows["text"]).to_numpy().astype(np.int64)

            # Cut after every document with which the text reaches another whole megabyte.
            bytes_so_far = np.cumsum(sizes)
            whole_megabytes = np.arange(_BATCH_BYTES, int(sizes.sum()), _BATCH_BYTES)
            cuts = np.searchsorted(bytes_so_far, whole_megabytes) + 1
            bounds = np.unique([0, *cuts, len(sizes)])
            for start, end in pairwise(bounds.tolist()):
                batch = rows.slice(start, end - start)
                yield Documents(
                    texts=batch["text"].to_pylist(),
                    bytes=sizes[start:end],
                    sources=batch["source"].to_pylist(),
                    languages=batch["language"].to_pylist(),
                )


def tokenize_documents(
    documents: Iterable[Documents],
    tokenizer: "Tokenizer",
    eos_token_id: int,
    dtype: np.dtype,
    prefix: Sequence[int] = (),
) -> Iterator[tuple[Documents, Tokens]]:
    """Yield batches of documents, each with its tokens: the ids of `prefix`, those of the text, and the end of text.

    The name of a special token that occurs in a text is tokenised as text, so end-of-text ids occur only at the end of
    documents, which is asserted.
    """
    tokenizer.encode_special_tokens = True

    def encode_batches() -> Iterator[tuple[Documents, list]]:
        for batch in _prefetch_items(documents):
            yield batch, tokenizer.encode_batch_fast(batch.texts, add_special_tokens=False)

    for batch, encodings in _prefetch_items(encode_batches()):
        lengths = [len(encoding) for encoding in encodings]
        lengths = np.array(lengths, np.int64)
        all_ids = chain.from_iterable(encoding.ids for encoding in encodings)
        ids = np.fromiter(all_ids, dtype, count=int(lengths.sum()))
        assert not np.any(ids == eos_token_id), "an end of text within a text"
        yield batch, _add_boundaries(ids, lengths, prefix, eos_token_id)


def _add_boundaries(ids: np.ndarray, lengths: np.ndarray, prefix: Sequence[int], eos_token_id: int) -> Tokens:
    """Put `prefix` before and the end of text after each document, given the ids of all and their lengths."""
    whole_lengths = lengths + len(prefix) + 1
    ends = np.cumsum(whole_lengths)
    starts = ends - whole_lengths

    whole = np.empty(int(whole_lengths.sum()), ids.dtype)
    is_text = np.ones(len(whole), bool)
    for offset, token in enumerate(prefix):
        whole[starts + offset] = token
        is_text[starts + offset] = False
    whole[ends - 1] = eos_token_id
    is_text[ends - 1] = False
    whole[is_text] = ids
    return Tokens(ids=whole, lengths=whole_lengths)


def _prefetch_items(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items; another thread makes the next one while the caller uses the last."""
    items = iter(items)
    with ThreadPoolExecutor(max_workers=1) as pool:
        next_item = pool.submit(next, items, None)
        while True:
            item = next_item.result()
            if item is None:
                return
            next_item = pool.submit(next, items, None)
            yield item


def write_shards(
    folder: Path,
    stem: str,
    batches: Iterable[tuple[Documents, Tokens]],
    router: Router | None = None,
    limit: int | None = None,
) -> Iterator[list[dict]]:
    """Write documents to `folder/stem.bin` (`stem.0.bin`, `stem.1.bin` ... if a `router` divides them).

    Yields the entries for the index after every batch; the last ones yielded are final. Stops after the document that
    reaches `limit` tokens. Files are renamed to their names when all are complete; one without documents is removed.
    """
    router = router or SingleFileRouter()
    names = [f"{stem}.bin"]
    if len(router.labels) > 1:
        names = [f"{stem}.{number}.bin" for number in range(len(router.labels))]

    with ExitStack() as stack:
        shards = []
        for name, label in zip(names, router.labels, strict=True):
            shards.append(stack.enter_context(_ShardWriter(folder / name, label)))

        for documents, tokens in batches:
            if limit is not None:
                remaining = limit - _count_tokens(shards)
                count = _count_documents_to_reach(remaining, tokens)
                documents = documents.take_first(count)
                tokens = tokens.take_first(count)

            file_numbers = router.route_documents(documents, tokens)
            for number in np.unique(file_numbers):
                shards[number].write_documents(documents, tokens, file_numbers == number)
            yield [shard.entry for shard in shards]

            if limit is not None and _count_tokens(shards) >= limit:
                break

        for shard in shards:
            shard.publish_file()
    yield [shard.entry for shard in shards if shard.entry["documents"]]


def _count_tokens(shards: "list[_ShardWriter]") -> int:
    return sum(shard.entry["tokens"] for shard in shards)


def _count_documents_to_reach(limit: int, tokens: Tokens) -> int:
    """Return how many of the first documents are needed to reach `limit` tokens; all if they do not reach it."""
    needed = np.searchsorted(np.cumsum(tokens.lengths), limit) + 1
    return int(min(needed, len(tokens.lengths)))


class _ShardWriter:
    """A file that is being written, and its entry of the index."""

    def __init__(self, path: Path, label: dict):
        self.path = path
        self.temporary = path.with_name(path.name + ".tmp")
        self.sources = Counter()  # tokens by source
        self.languages = Counter()  # tokens by language
        self.entry = {"file": path.name, **label, "tokens": 0, "documents": 0, "bytes": 0}

    def __enter__(self) -> "_ShardWriter":
        self.file = open(self.temporary, "wb")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write_documents(self, documents: Documents, tokens: Tokens, is_chosen: np.ndarray) -> None:
        """Write the tokens of the documents for which `is_chosen` (documents,) is true."""
        ids = tokens.ids
        if not is_chosen.all():
            ids = ids[np.repeat(is_chosen, tokens.lengths)]
        self.file.write(ids.tobytes())

        self.entry["tokens"] += len(ids)
        self.entry["documents"] += int(is_chosen.sum())
        self.entry["bytes"] += int(documents.bytes[is_chosen].sum())
        for number in np.flatnonzero(is_chosen):
            source = documents.sources[number]
            language = documents.languages[number]
            length = int(tokens.lengths[number])
            self.sources[source] += length
            self.languages[language] += length

    def publish_file(self) -> None:
        """Complete the entry and rename the file to its final name, or remove it if it has no documents."""
        self.entry["sources"] = dict(sorted(self.sources.items()))
        self.entry["languages"] = dict(sorted(self.languages.items()))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.entry["documents"]:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink()
