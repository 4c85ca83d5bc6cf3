"""The special tokens that stand for what was taken out of a text: a mask, or numbered sentinels."""

from typing import TYPE_CHECKING

from hf_llm.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK = "<|mask|>"
FEWEST_SENTINELS = 100  # as T5 has them


def gap_tokens(mask: bool, sentinels: int) -> list[str]:
    """The tokens of a tokenizer for a masked model, or for one that needs at least so many `sentinels`, if any."""
    numbered = [sentinel(number) for number in range(max(FEWEST_SENTINELS, sentinels))] if sentinels else []
    return [MASK] * mask + numbered


def sentinel(number: int) -> str:
    """T5's name of the `number`-th gap of a text, from 0."""
    return f"<extra_id_{number}>"


def mask_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the mask token. Raises UserError where there is none."""
    if tokenizer.mask_token_id is None:
        raise UserError(f"{_name(tokenizer)} has no mask token, which a masked model needs; {_remedy()}")
    return tokenizer.mask_token_id


def sentinels_of(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of `<extra_id_0>`, `<extra_id_1>` ... Raises UserError where there are none."""
    vocabulary, found = tokenizer.get_vocab(), []
    while (name := sentinel(len(found))) in vocabulary:
        found.append(vocabulary[name])
    if not found:
        raise UserError(f"{_name(tokenizer)} has no sentinels (<extra_id_0> ...), which T5 needs; {_remedy()}")
    return found


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.name_or_path or "the tokenizer"


def _remedy() -> str:
    return (
        "one that hf_llm.train_tokenizer makes for a recipe with this model_type has it (python -m hf_llm.run RECIPE "
        "--fresh=tokenizer)"
    )
