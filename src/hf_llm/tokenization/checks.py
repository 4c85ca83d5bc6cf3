"""Check a tokenizer and its chat template before a model is trained with them."""

import unicodedata
from typing import TYPE_CHECKING

from jinja2 import TemplateError

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
_TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
_CHAT_WITH_CALL = [
    *_CHAT[:2],
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "4"},
    _CHAT[2],
]


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", chat: bool = True, supervised: bool = True) -> None:
    """Raise UserError unless padding, round trip and (for `chat`) chat template are fit to train a model with.

    Only where the template's marks say what is `supervised` (SFT), it needs any.

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
        check_chat_template(tokenizer, name, supervised)


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


def check_chat_template(tokenizer: "PreTrainedTokenizerBase", name: str, supervised: bool = True) -> None:
    """Raise UserError unless the template ends what the assistant says with a special token.

    Where the template says what is `supervised`, it has to mark the answer and that token, and to begin a conversation
    as it begins a prompt.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{name} has no chat template; train one with `tokenizer.chat_template: chatml`")

    chat = _choose_chat(tokenizer, name)
    ids, supervised_part = supervised_ids(tokenizer, chat)
    if not supervised:
        _check_end_of_turn(tokenizer, name, ids, chat[-1]["content"])
        return

    if not supervised_part:
        raise UserError(
            f"{name}: the chat template marks no assistant text; put {{% generation %}} and {{% endgeneration %}} "
            "around the assistant's content and its end-of-turn token"
        )
    if supervised_part[-1] not in tokenizer.all_special_ids:
        raise UserError(
            f"{name}: the chat template's {{% generation %}} ends before the end-of-turn token (it ends with "
            f"{tokenizer.decode(supervised_part[-1:])!r}), so the model would never learn to stop; include that token"
        )

    prompt, _ = encode_chat(tokenizer, chat[:-1], add_generation_prompt=True)
    if ids[: len(prompt)] != prompt:
        raise UserError(
            f"{name}: the chat template with add_generation_prompt is not the start of the whole conversation, so a "
            "model would be prompted differently from its training; make both render the same text up to the answer"
        )


def _choose_chat(tokenizer: "PreTrainedTokenizerBase", name: str) -> list[dict]:
    """Return a conversation that the template renders; some templates (Gemma's) take no system message."""
    for chat in (_CHAT, _CHAT[1:]):
        try:
            encode_chat(tokenizer, chat)
            return chat
        except TemplateError as error:
            problem = error
    raise UserError(f"{name}: the chat template does not render a question and its answer: {problem}") from problem


def _check_end_of_turn(tokenizer: "PreTrainedTokenizerBase", name: str, ids: list[int], answer: str) -> None:
    """Raise UserError unless a special token follows the answer, the last message of the conversation in `ids`."""
    start = max((i for i in range(len(ids)) if answer in tokenizer.decode(ids[i:])), default=0)
    if not set(ids[start:]) & set(tokenizer.all_special_ids):
        raise UserError(
            f"{name}: the chat template ends an answer without a special token ({tokenizer.decode(ids[start:])!r}), so "
            "the model would never learn to stop; let the template write one there, as <|im_end|> or the eos_token"
        )


def renders_alike(tokenizer: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    """Whether two chat templates, whatever their wording, render the same conversations to the same text."""
    if tokenizer.chat_template == other.chat_template:
        return True
    try:
        return all(
            _render(tokenizer, chat, tools, answered) == _render(other, chat, tools, answered)
            for chat, tools in ((_CHAT, None), (_CHAT[1:], None), (_CHAT_WITH_CALL, _TOOLS))
            for answered in (True, False)
        )
    except TemplateError:
        return False


def _render(
    tokenizer: "PreTrainedTokenizerBase", chat: list[dict], tools: list[dict] | None, answered: bool
) -> tuple[str, list[bool]]:
    messages = chat if answered else chat[:-1]
    ids, mask = encode_chat(tokenizer, messages, tools, add_generation_prompt=not answered)
    return tokenizer.decode(ids), mask


def check_same_template(tokenizer: "PreTrainedTokenizerBase", own: "PreTrainedTokenizerBase") -> None:
    """Raise UserError where a model's chat template is not that of the run's tokenizer, which will prompt it."""
    if not renders_alike(tokenizer, own):
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
