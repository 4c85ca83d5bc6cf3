"""The special tokens that a tokenizer puts around a text, such as Llama 3's `<|begin_of_text|>`: the same everywhere.

A tokenizer of a run puts before a text what its post-processor puts there, in token shards, prompts, documents and
evaluations alike. A document has one end of text after it; a prompt does not, since a text that has ended is not
continued. The tokenizer of a model that restores masked text (BERT, T5) ends every text, which it sees whole.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PROBE = "a"  # a text with at least one token, whose tokens no post-processor adds


def text_boundaries(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer's post-processor puts before and after a text."""
    backend = tokenizer.backend_tokenizer
    plain = backend.encode(_PROBE, add_special_tokens=False).ids
    whole = backend.encode(_PROBE, add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        end = start + len(plain)
        if whole[start:end] == plain:
            return whole[:start], whole[end:]
    return [], []


def count_ids(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return how many rows a model needs for the tokenizer's ids: more than it has tokens, where ids are unused."""
    return max(tokenizer.get_vocab().values()) + 1


def document_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids before a document that follows another one.

    An end of text among them (OPT begins a text with it) is there already: the document before it ends with it.
    """
    before, _ = text_boundaries(tokenizer)
    return [token for token in before if token != tokenizer.eos_token_id]


def encode_document(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of a whole document, as token shards hold it: with its prefix, and an end of text.

    The name of a special token that occurs in the text is encoded as text. Documents may be longer than the context.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*document_prefix(tokenizer), *ids, tokenizer.eos_token_id]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, max_tokens: int) -> list[int]:
    """Return the ids of a text to be continued, with what the tokenizer puts before a text and without its end.

    A text too long for `max_tokens` loses its beginning. One without any token becomes an end of text, which the
    beginning of another follows.
    """
    before, _ = text_boundaries(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if before and ids[: len(before)] == before:  # typed out in the prompt
        before = []
    room = max(0, max_tokens - len(before))
    ids = ids[max(0, len(ids) - room) :]
    return [*before, *ids] or [tokenizer.eos_token_id]


def set_boundaries(backend: "Tokenizer", before: Sequence[str], after: Sequence[str]) -> None:
    """Make a tokenizer put these special tokens before and after every text."""
    from tokenizers import processors

    single = " ".join([*before, "$A", *after])
    pair = " ".join([single, "$B", *after])
    tokens = dict.fromkeys([*before, *after])
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, backend.token_to_id(token)) for token in tokens]
    )
