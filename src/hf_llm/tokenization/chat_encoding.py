"""Encode a conversation by the tokenizer's chat template as token ids, and mark those that the assistant says.

Unlike in `apply_chat_template`, the content of a message is always plain text. A template is rendered to one string, in
which `<|im_end|>` typed inside a message would end the turn; here it is encoded as ordinary characters.
"""

import functools
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GUARD = "\ufdd0"  # a noncharacter: Unicode reserves it for use inside a program, so no text has it
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> tuple[list[int], list[bool]]:
    """Return the ids of a conversation, and for each whether it lies between the template's generation marks.

    Equal to `apply_chat_template` where no message holds the text of a special token; raises what the template raises.
    A template without such marks covers nothing.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    specials = special_token_texts(tokenizer)

    # A guard is put inside the special tokens that people typed: those without one are the template's.
    turns = adapt_tool_calls(tokenizer, [_drop_missing_keys(turn) for turn in messages])
    guarded_messages = _guard_specials(turns, specials)
    guarded_tools = _guard_specials(tools, specials)
    has_marks = bool(_GENERATION_MARK.search(tokenizer.chat_template))
    (text,), spans_by_chat = render_jinja_template(
        conversations=[guarded_messages],
        tools=guarded_tools,
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=has_marks,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    spans = spans_by_chat[0] if spans_by_chat else []  # (first, end) in characters, between the generation marks

    # Pieces of the rendered text: where each starts, its text, and whether it is to be encoded as plain text.
    pieces = [(0, text, False)]
    if _GUARD in text:
        pieces = _split_at_specials(text, specials)

    ids = []
    mask = []
    for start, piece, is_plain_text in pieces:
        encoded = tokenizer(
            piece.replace(_GUARD, ""),
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=is_plain_text,
            verbose=False,  # whoever asks counts what is too long
        )
        ids += encoded["input_ids"]

        # Offsets count the characters of the piece without guards, spans those of `text`: `positions` leads from the
        # former to the latter. Some tokenizers give a token of spaces an offset after the last character.
        positions = [start + i for i, character in enumerate(piece) if character != _GUARD]
        for first, end in encoded["offset_mapping"]:
            first = min(first, len(positions) - 1)
            last = max(first, end - 1)
            mask.append(_is_covered(positions[first], positions[last] + 1, spans))
    return ids, mask


def _drop_missing_keys(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message without the keys that are None, which a data set's table gives to every message.

    Templates ask whether a key `is defined`. The content stays in any case.
    """
    return {key: value for key, value in turn.items() if value is not None or key == "content"}


class ToolSupport(NamedTuple):
    """What a chat template does with tools."""

    renders_tools: bool  # the descriptions of the tools that can be called
    renders_calls: bool
    takes_json: bool  # the arguments of a call, given as JSON, are written as they are


def tool_support(tokenizer: "PreTrainedTokenizerBase") -> ToolSupport:
    """Return what the chat template does with tools, by rendering a conversation with a call."""
    return _probe_tools(tokenizer.chat_template, json.dumps(tokenizer.special_tokens_map, default=str))


@functools.cache
def _probe_tools(chat_template: str, special_tokens: str) -> ToolSupport:
    json_arguments = '{"probe": 1}'
    with_json = _render_probe(chat_template, special_tokens, json_arguments)
    with_object = _render_probe(chat_template, special_tokens, json.loads(json_arguments))
    return ToolSupport(
        renders_tools="probe_tool" in with_json + with_object,
        renders_calls="probe_call" in with_json + with_object,
        takes_json=json_arguments in with_json,
    )


def _render_probe(chat_template: str, special_tokens: str, arguments: str | dict[str, Any]) -> str:
    """Return a rendered conversation with these arguments in a call; an empty text where the template refuses it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    call = {"id": "probe0001", "type": "function", "function": {"name": "probe_call", "arguments": arguments}}
    schema = {"type": "object", "properties": {"probe": {"type": "integer", "description": "A number."}}}
    function = {"name": "probe_tool", "description": "Probe.", "parameters": schema}
    chat = [
        {"role": "user", "content": "Probe."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": call["id"], "name": "probe_call"},
        {"role": "assistant", "content": "Probed."},
    ]
    try:
        (text,), _ = render_jinja_template(
            conversations=[chat],
            tools=[{"type": "function", "function": function}],
            chat_template=chat_template,
            **json.loads(special_tokens),
        )
    except (TemplateError, TypeError):
        return ""
    return text


def adapt_tool_calls(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with the arguments of tool calls as the chat template expects them: JSON or an object.

    Ours takes both. Qwen 2.5's and others would write the JSON as a JSON string, with every quote escaped.
    """
    has_calls = any(message.get("tool_calls") for message in messages)
    if not has_calls or tool_support(tokenizer).takes_json:
        return messages

    adapted = []
    for message in messages:
        if message.get("tool_calls"):
            message = {**message, "tool_calls": [_parse_arguments(call) for call in message["tool_calls"]]}
        adapted.append(message)
    return adapted


def _parse_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if not isinstance(function["arguments"], str):
        return call
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids that end an answer: the end of text, and the special token that the chat template puts after an
    answer (`<|im_end|>` where there is no single template to ask)."""
    answered = [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "Yes."}]
    ids = []
    if isinstance(tokenizer.chat_template, str):
        try:
            ids, _ = encode_chat(tokenizer, answered)
        except TemplateError:  # a template that requires more than these messages
            ids = []

    special_ids = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    specials = [number for number in ids if number in special_ids]
    end_of_turn = specials[-1] if specials else tokenizer.get_vocab().get("<|im_end|>")
    return {tokenizer.eos_token_id, end_of_turn} - {None}


def _is_covered(first: int, last: int, spans: list[tuple[int, int]]) -> bool:
    """Return whether a token of the characters from `first` up to `last` touches one of the spans."""
    return any(begin < last and first < end for begin, end in spans)


def special_token_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the texts that the tokenizer takes for a single special token, the longest first."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(texts, key=len, reverse=True)


def _guard_specials(value: Any, specials: list[str]) -> Any:
    """Return `value` with a guard after the first character of every special token's text in its strings."""
    if isinstance(value, dict):
        return {key: _guard_specials(item, specials) for key, item in value.items()}
    if isinstance(value, list):
        return [_guard_specials(item, specials) for item in value]
    if isinstance(value, str):
        for special in specials:
            value = value.replace(special, special[0] + _GUARD + special[1:])
    return value


def _split_at_specials(text: str, specials: list[str]) -> list[tuple[int, str, bool]]:
    """Return the special tokens and the text between them: `(start, piece, whether it is plain text)`, none empty."""
    pieces = []
    start = 0
    for match in re.finditer("|".join(map(re.escape, specials)), text):
        pieces.append((start, text[start : match.start()], True))
        pieces.append((match.start(), match[0], False))
        start = match.end()
    pieces.append((start, text[start:], True))
    return [piece for piece in pieces if piece[1]]
