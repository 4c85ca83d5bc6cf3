"""How good a tokenizer is on text it has not seen."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from hf_llm.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_BATCH = 256
SAMPLES = {
    "digits": ["2024", "3.14159", "1,000,000"],
    "white space": ["    return x", "\t\tx = 1\n\n\n", "a  b   c"],
    "words": ["The quick brown fox", "internationalisation", "naïve café"],
}


def tokenizer_report(tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str], limit: int) -> dict:
    """Bytes per token over the first `limit` bytes of held-out `texts`, and how some typical text is cut.

    Raises UserError unless every text comes back exactly. Special tokens written in a text are text here, as in the
    token shards.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    size = tokens = documents = 0
    texts = iter(texts)
    while size < limit and (batch := list(islice(texts, _BATCH))):
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            if backend.decode(encoding.ids, skip_special_tokens=False) != text:
                raise UserError(
                    f"{tokenizer.name_or_path or 'the tokenizer'} does not give back {text[:60]!r} after encoding and "
                    "decoding; use a byte-level tokenizer"
                )
            size += len(text.encode("utf-8"))
            tokens += len(encoding.ids)
        documents += len(batch)
    samples = {title: {text: _tokens(backend, text) for text in group} for title, group in SAMPLES.items()}
    backend.encode_special_tokens = False
    return {"bytes_per_token": size / max(tokens, 1), "documents": documents, "bytes": size, "samples": samples}


def _tokens(backend: "Tokenizer", text: str) -> list[str]:
    return [backend.decode([token]) for token in backend.encode(text, add_special_tokens=False).ids]
