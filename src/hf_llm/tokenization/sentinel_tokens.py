"""Name and look up the special tokens that replace masked text: a mask token, or numbered sentinel tokens."""

from typing import TYPE_CHECKING

from hf_llm.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK = "<|mask|>"
MIN_SENTINELS = 100  # as many as T5 has

_REMEDY = (
    "a tokenizer that hf_llm.train_tokenizer makes for a recipe with this model_type has it "
    "(python -m hf_llm.run RECIPE --fresh=tokenizer)"
)


def list_denoising_tokens(mask: bool, sentinels: int) -> list[str]:
    """Return the special tokens of a tokenizer for a masked model (`mask`), or for one that needs at least so many
    `sentinels`; none for a causal model."""
    tokens = []
    if mask:
        tokens.append(MASK)
    if sentinels:
        tokens += [sentinel_token(number) for number in range(max(MIN_SENTINELS, sentinels))]
    return tokens


def sentinel_token(number: int) -> str:
    """Return T5's name of the sentinel token of the masked span `number`, from 0."""
    return f"<extra_id_{number}>"


def require_mask_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the mask token. Raises UserError where there is none."""
    if tokenizer.mask_token_id is None:
        raise UserError(f"{_display_name(tokenizer)} has no mask token, which a masked model needs; {_REMEDY}")
    return tokenizer.mask_token_id


def require_sentinels(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of `<extra_id_0>`, `<extra_id_1>` ... Raises UserError where there are none."""
    vocabulary = tokenizer.get_vocab()
    ids = []
    while sentinel_token(len(ids)) in vocabulary:
        ids.append(vocabulary[sentinel_token(len(ids))])
    if not ids:
        name = _display_name(tokenizer)
        raise UserError(f"{name} has no sentinel tokens (<extra_id_0> ...), which T5 needs; {_REMEDY}")
    return ids


def _display_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.name_or_path or "the tokenizer"
