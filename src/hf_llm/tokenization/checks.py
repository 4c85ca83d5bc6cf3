"""Check a tokenizer and its chat template before a model is trained with them."""

import unicodedata
from typing import TYPE_CHECKING

from hf_llm.core.errors import UserError
from hf_llm.tokenization.chat_encoding import encode_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUND_TRIP_TEXT = "Déjà vu: 12345.678 + 9 = ?\n\n\tif x:\n        return 'naïve' # 数字 🙂  \n"
_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
]


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", chat: bool = True) -> None:
    """Raise UserError unless padding, round trip and (for `chat`) chat template are fit to train a model with.

    The mistakes checked here train without an error elsewhere, and give a model that never stops or is trained on the
    questions. White space and compatibility forms may be folded; `hf_llm.tokenization.report` counts the texts that are
    changed.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name} has no eos_token, so documents cannot be told apart; set one with add_special_tokens")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{name}: pad_token and eos_token are both {tokenizer.eos_token!r}, so the loss would ignore every end of "
            "text and the model never stop; add a token of its own: add_special_tokens({'pad_token': '<|pad|>'})"
        )
    if is_parsed_from_text(tokenizer, tokenizer.eos_token):
        raise UserError(
            f"{name} takes the letters {tokenizer.eos_token!r} in a text for the end of text; use another tokenizer"
        )

    ids = tokenizer.encode(_ROUND_TRIP_TEXT, add_special_tokens=False)
    if _fold_text(tokenizer.decode(ids)) != _fold_text(_ROUND_TRIP_TEXT):
        raise UserError(
            f"{name} does not give back {_ROUND_TRIP_TEXT!r} after encoding and decoding; use a byte-level tokenizer"
        )
    if chat:
        check_chat_template(tokenizer, name)


def is_parsed_from_text(tokenizer: "PreTrainedTokenizerBase", special: str) -> bool:
    """Return whether a text that spells a special token gets its id even where it is to be read as plain text."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode(f"a {special} b{special}", add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return backend.token_to_id(special) in ids


def _fold_text(text: str) -> str:
    """Return text without what many SentencePiece models fold: compatibility forms and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def check_chat_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Raise UserError unless the template marks what the assistant says, its end of turn included."""
    if not tokenizer.chat_template:
        raise UserError(f"{name} has no chat template; train one with `tokenizer.chat_template: chatml`")

    ids, supervised = supervised_ids(tokenizer, _CHAT)
    if not supervised:
        raise UserError(
            f"{name}: the chat template marks no assistant text; put {{% generation %}} and {{% endgeneration %}} "
            "around the assistant's content and its end-of-turn token"
        )
    if supervised[-1] not in tokenizer.all_special_ids:
        raise UserError(
            f"{name}: the chat template's {{% generation %}} ends before the end-of-turn token (it ends with "
            f"{tokenizer.decode(supervised[-1:])!r}), so the model would never learn to stop; include that token"
        )

    prompt, _ = encode_chat(tokenizer, _CHAT[:-1], add_generation_prompt=True)
    if ids[: len(prompt)] != prompt:
        raise UserError(
            f"{name}: the chat template with add_generation_prompt is not the start of the whole conversation, so a "
            "model would be prompted differently from its training; make both render the same text up to the answer"
        )


def check_same_template(tokenizer: "PreTrainedTokenizerBase", own: "PreTrainedTokenizerBase") -> None:
    """Raise UserError where a model's chat template is not that of the run's tokenizer, which will prompt it."""
    if tokenizer.chat_template != own.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template differs from that of {own.name_or_path}, so the model would "
            f"be prompted differently from its training; copy {own.name_or_path}/chat_template.jinja over the other, "
            "or rebuild the folder"
        )


def supervised_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[dict]) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation, and those among them that the loss covers."""
    ids, mask = encode_chat(tokenizer, messages)
    covered = [token for token, is_covered in zip(ids, mask, strict=True) if is_covered]
    return ids, covered
