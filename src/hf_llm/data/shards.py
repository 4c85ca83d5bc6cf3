"""Token shards: the ids of many documents one after the other, an end-of-text after each, as plain binary files.

`index.json` lists them by split:

    {"dtype": "uint16", "vocab_size": 8192, "eos_token_id": 1, "tokenizer": "<digest>",
     "splits": {"train": [{"file": "train-00000.bin", "tokens": 5, "documents": 2, "bytes": 17}, ...]}}

`tokens` counts the end-of-text tokens, `bytes` is the documents' text in UTF-8.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_llm.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INDEX = "index.json"
_BATCH = 512  # documents handed to the tokenizer's threads at a time


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer that holds every id of a vocabulary: uint16 to 65,536 tokens, then uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_shard(
    path: Path,
    texts: Iterable[str],
    tokenizer: "Tokenizer",
    eos_token_id: int,
    dtype: np.dtype,
    limit: int | None = None,
) -> Iterator[dict]:
    """Tokenise `texts` into the file `path`, yielding the shard's counts after every batch; the last are the shard's.

    Stops after the document that reaches `limit` tokens. Special tokens spelt out in a text are tokenised as text, so
    that the end-of-text ids of a shard are its documents, which is asserted. The file has its name when it is whole.
    """
    tokenizer.encode_special_tokens = True
    counts = {"file": path.name, "tokens": 0, "documents": 0, "bytes": 0}
    ends = 0
    temporary = path.with_name(path.name + ".tmp")
    texts = iter(texts)
    with open(temporary, "wb") as file:
        while (limit is None or counts["tokens"] < limit) and (batch := list(islice(texts, _BATCH))):
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encodings, strict=True):
                ids = np.array([*encoding.ids, eos_token_id], dtype)
                ends += int(np.count_nonzero(ids == eos_token_id))
                file.write(ids.tobytes())
                counts["tokens"] += len(ids)
                counts["documents"] += 1
                counts["bytes"] += len(text.encode("utf-8"))
                if limit is not None and counts["tokens"] >= limit:
                    break
            yield counts
        file.flush()
        os.fsync(file.fileno())
    assert ends == counts["documents"], f"{ends} ends of text for {counts['documents']} documents in {path}"
    os.replace(temporary, path)
    yield counts


def read_index(folder: Path) -> dict:
    """The index of a folder of token shards. Raises UserError where there is none."""
    try:
        return json.loads((Path(folder) / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no token shards (no {INDEX}); make them with python -m hf_llm.tokenize_corpus recipe.yaml"
        ) from None
