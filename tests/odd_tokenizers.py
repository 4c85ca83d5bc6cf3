"""Existing tokenizers that a run may be given: with tokens around a text, with unused ids, of another vocabulary."""

import json
from functools import cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hf_llm.tokenization.text_boundaries import set_boundaries
from hf_llm.tokenization.train import END_OF_TEXT, PAD, TokenizerSection, train_tokenizer
from tests.made_up_texts import texts

BEGIN = "<|reserved_0|>"


@cache
def trained_json() -> str:
    """The JSON of our tokenizer of 320 tokens."""
    return train_tokenizer(texts(), TokenizerSection(vocab_size=320)).backend_tokenizer.to_str()


def with_boundaries(before=(), after=(), **named) -> PreTrainedTokenizerFast:
    """It, with these tokens around every text and no chat template."""
    backend = Tokenizer.from_str(trained_json())
    set_boundaries(backend, before, after)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END_OF_TEXT, **named)


def with_unused_ids(*numbers) -> PreTrainedTokenizerFast:
    """It, with these ids unused: the tokens from there on have the ids that follow."""
    state = json.loads(trained_json())
    vocabulary = state["model"]["vocab"]
    for token, number in vocabulary.items():
        for unused in sorted(numbers):
            number += number >= unused
        vocabulary[token] = number
    for token in state["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), pad_token=PAD, eos_token=END_OF_TEXT
    )


def with_other_words() -> PreTrainedTokenizerFast:
    """A tokenizer of as many tokens, trained on other text."""
    animals = ("wombat", "bilby", "dugong", "quokka", "numbat", "echidna", "platypus", "kookaburra", "galah", "taipan")
    others = [f"{animals[number % 10]} {' '.join(animals)}" for number in range(400)]
    return train_tokenizer(others, TokenizerSection(vocab_size=320))
