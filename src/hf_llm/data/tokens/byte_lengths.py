"""How many bytes of text each token stands for, so that a loss per token becomes bits per byte of exactly its text."""

import json
import re

import numpy as np
from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # of tokenizers that fall back on bytes


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return (vocabulary,) float64: the UTF-8 bytes of the text behind each id; 0 of special tokens.

    Exact for byte-level tokenizers, and for those that write spaces into their tokens. Tokens of BERT's kind do not say
    whether a space stands before them.
    """
    is_byte_level = uses_byte_level(tokenizer)
    special_ids = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    special_ids |= {number for number, token in added.items() if token.special}

    lengths = np.zeros(len(tokenizer))
    for token, number in tokenizer.get_vocab().items():
        if number in special_ids:
            continue
        if number in added:
            lengths[number] = len(token.encode())
        elif is_byte_level:
            lengths[number] = len(token)  # a character for each byte
        elif BYTE_TOKEN.fullmatch(token):
            lengths[number] = 1
        else:
            text = token.removeprefix("##").replace("▁", " ").replace("</w>", " ")
            lengths[number] = len(text.encode())
    return lengths


def bytes_behind_labels(byte_lengths: np.ndarray, labels: np.ndarray, lengths: float, text_bytes: float) -> float:
    """Return the bytes of text behind one of `labels` (n,), on average: those that a loss over them is about.

    `byte_lengths` (vocabulary,) are those of `token_byte_lengths`. Where they do not add up to the bytes of the whole
    text, as with a tokenizer that normalises it, all are scaled alike: `lengths` is their sum over the text's tokens,
    `text_bytes` what it has.
    """
    return float(byte_lengths[labels].mean() * text_bytes / lengths)


def uses_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the vocabulary writes each byte of the text as one character, as GPT-2's does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    pipeline = json.loads(backend.to_str())
    return '"ByteLevel"' in json.dumps([pipeline["pre_tokenizer"], pipeline["decoder"]])
