"""Check that token shards, models and prompts of one training mean the same by an id.

Ids of another tokenizer are wrong words, not an error: where the sizes agree, a model trains on them without a word.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest
from hf_llm.pipeline.tokens_folder import TOKENIZER_FILE, find_tokenizer, read_index
from hf_llm.tokenization.text_boundaries import count_ids, document_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text that tokenizers with one vocabulary may split differently: digits, white space, capitals, other scripts, signs.
_PROBES = (
    "It's 12345.678 kg, isn't it?  HTTPServer\r\n\r\n\t\treturn x_1 + [y]  ",
    "naïve ﬁancé Straße 数字\u3000漢字かな русский العربية हिन्दी 🙂🙂",
    "a" * 40 + "=" * 40 + " " * 40,
)
_RESERVED = re.compile(r"<\|(reserved|unused)_\d+\|>")  # may get a meaning, and with it another name, later


def find_difference(tokenizer: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> str | None:
    """Return in which way two tokenizers read ids or texts differently; None where they agree.

    One may have special tokens that the other lacks: no text has them.
    """
    vocabulary = tokenizer.get_vocab()
    other_vocabulary = other.get_vocab()
    for token, number in vocabulary.items():
        other_number = other_vocabulary.get(token, number)
        if number != other_number:
            return f"{token!r} is {number} in one and {other_number} in the other"

    only_here = vocabulary.keys() - other_vocabulary.keys()
    only_there = other_vocabulary.keys() - vocabulary.keys()
    difference = _find_token_of_text(tokenizer, only_here) or _find_token_of_text(other, only_there)
    if difference:
        return difference

    here = {vocabulary[token]: token for token in only_here if not _RESERVED.fullmatch(token)}
    there = {other_vocabulary[token]: token for token in only_there if not _RESERVED.fullmatch(token)}
    shared = sorted(here.keys() & there.keys())
    if shared:
        return f"{shared[0]} is {here[shared[0]]!r} in one and {there[shared[0]]!r} in the other"

    for text in _PROBES:
        if _encode_plain(tokenizer, text) != _encode_plain(other, text):
            return f"they split {text[:24]!r}... differently"
    return None


def _find_token_of_text(tokenizer: "PreTrainedTokenizerBase", tokens: Iterable[str]) -> str | None:
    """Return what to say of the first of `tokens` that is not special; None where all are."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    of_text = sorted(set(tokens) - special)
    return f"only one has the token {of_text[0]!r}" if of_text else None


def _encode_plain(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def check_shards_tokenizer(folder: Path | str, tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise UserError unless `tokenizer` is the one that made the token shards of `folder`.

    `where` is the recipe's key that names the tokenizer or its model, for the message.
    """
    index = read_index(folder)
    name = tokenizer.name_or_path
    own_folder = find_tokenizer(folder)
    difference = None
    if not _is_recorded_file(index, name):
        difference = find_difference(_load(own_folder), tokenizer) if own_folder else _compare_size(index, tokenizer)
    if difference is None and index["eos_token_id"] != tokenizer.eos_token_id:
        difference = f"a document ends with {index['eos_token_id']} in one and {tokenizer.eos_token_id} in the other"
    if difference:
        own_name = f" by {own_folder}" if own_folder else ""
        raise UserError(
            f"{where}: {folder} was encoded{own_name} with another tokenizer than {name}: {difference}. Take the "
            "tokens and the tokenizer of one run"
        )

    prefix = document_prefix(tokenizer)
    if index.get("prefix", []) != prefix:
        raise UserError(
            f"{where}: {name} puts {tokenizer.convert_ids_to_tokens(prefix)} before every text, and {folder} has "
            f"{tokenizer.convert_ids_to_tokens(index.get('prefix', []))} before its documents; make the tokens again "
            "(python -m hf_llm.run RECIPE --fresh=tokens)"
        )


def _is_recorded_file(index: dict, name: str) -> bool:
    """Return whether the tokenizer's file has the digest that the index of the shards records."""
    file = Path(name) / TOKENIZER_FILE
    return file.is_file() and file_digest(file) == index.get("tokenizer")


def _compare_size(index: dict, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Compare what the index alone tells of the tokenizer: that its file is another one; without a digest, its size."""
    if index.get("tokenizer"):
        return f"its digest is not the {index['tokenizer']} of the shards' index"
    if index["vocab_size"] != count_ids(tokenizer):
        return f"{index['vocab_size']:,} tokens in one and {count_ids(tokenizer):,} in the other"
    return None


def check_start_tokenizer(start: Path | str, tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise UserError unless the model at `start` (a folder or Hub id) was trained on the ids of `tokenizer`.

    A model without a tokenizer is said to be unchecked. `where` is the recipe's key that names the model.
    """
    try:
        own = _load(start)
    except (OSError, ValueError):
        print_main(f"{where}: {start} has no tokenizer; it is taken to be that of {tokenizer.name_or_path}")
        return
    check_agreement(own, tokenizer, where)


def check_agreement(own: "PreTrainedTokenizerBase", tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise UserError unless a model's `own` tokenizer and `tokenizer` agree on ids and on what stands before a text.

    `where` is the recipe's key that names the model.
    """
    difference = find_difference(own, tokenizer)
    before = document_prefix(own)
    other_before = document_prefix(tokenizer)
    if difference is None and before != other_before:
        tokens = own.convert_ids_to_tokens(before)
        other_tokens = tokenizer.convert_ids_to_tokens(other_before)
        difference = f"before a text, one puts {tokens} and the other {other_tokens}"
    if difference:
        raise UserError(
            f"{where}: {own.name_or_path} has another tokenizer than {tokenizer.name_or_path}: {difference}. Use one "
            f"for both (tokenizer: {{use: {own.name_or_path}}})"
        )


def check_ids_fit(tokenizer: "PreTrainedTokenizerBase", vocab_size: int, where: str) -> None:
    """Raise UserError where the tokenizer has ids beyond the `vocab_size` rows of a model's embedding."""
    largest = count_ids(tokenizer) - 1
    if largest >= vocab_size:
        raise UserError(
            f"{where}: the tokenizer of {tokenizer.name_or_path} has ids up to {largest:,}, and the model "
            f"{vocab_size:,} rows; put the model's own tokenizer beside it, or call resize_token_embeddings and save it"
        )


def _load(path: Path | str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
