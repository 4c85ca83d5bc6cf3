"""A conversation as token ids, with what the assistant says marked: the tokenizer's chat template, made safe.

What people write stays text. A chat template is rendered to one string, so that `<|im_end|>` typed inside a message
would end the turn; here it becomes the characters it is made of.
"""

import re
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GUARD = "\ufdd0"  # a code point that Unicode keeps free for a program's own use
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and for each whether it lies between the template's generation marks.

    Equal to `apply_chat_template` where no message holds the text of a special token; raises what the template raises.
    A template without such marks covers nothing.
    """
    specials = special_texts(tokenizer)
    # A data set's table has every key in every message, None where it was not there; templates ask `is defined`.
    messages = [{key: said for key, said in m.items() if said is not None or key == "content"} for m in messages]
    guarded = _guarded([messages, tools], specials)
    (text,), spans = render_jinja_template(
        conversations=[guarded[0]],
        tools=guarded[1],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=bool(_MARK.search(tokenizer.chat_template)),
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    pieces = _split(text, specials) if _GUARD in text else [(0, text, False)]
    ids, mask = [], []
    for start, piece, as_text in pieces:
        places = [start + i for i, letter in enumerate(piece) if letter != _GUARD]  # in `text`, of each letter kept
        encoded = tokenizer(
            piece.replace(_GUARD, ""),
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=as_text,
        )
        ids += encoded["input_ids"]
        for first, last in encoded["offset_mapping"]:
            first = min(first, len(places) - 1)  # where a tokenizer counts no spaces, a token of them starts behind all
            mask.append(_is_covered(places[first], places[max(first, last - 1)] + 1, spans[0] if spans else []))
    return ids, mask


def ends_of_answers(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """What ends an answer: the end of text, and the special token that the chat template puts behind an answer
    (`<|im_end|>` where there is no template of one form to ask)."""
    ends = {tokenizer.eos_token_id}
    answered = [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "Yes."}]
    try:
        ids = encode_chat(tokenizer, answered)[0] if isinstance(tokenizer.chat_template, str) else []
    except TemplateError:  # one that wants more said
        ids = []
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends |= set([number for number in ids if number in special][-1:]) or {tokenizer.get_vocab().get("<|im_end|>")}
    return ends - {None}


def _is_covered(first: int, last: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a token of the letters from `first` up to `last` touches one of the spans."""
    return any(begin < last and first < end for begin, end in spans)


def special_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts that the tokenizer takes for a single special token, the longest first."""
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(found, key=len, reverse=True)


def _guarded(value: Any, specials: list[str]) -> Any:
    """The value with a guard behind the first character of every special token's text in its strings."""
    if isinstance(value, dict):
        return {key: _guarded(item, specials) for key, item in value.items()}
    if isinstance(value, list):
        return [_guarded(item, specials) for item in value]
    if isinstance(value, str):
        for special in specials:
            if special in value:
                value = value.replace(special, special[0] + _GUARD + special[1:])
    return value


def _split(text: str, specials: list[str]) -> list[tuple[int, str, bool]]:
    """`(start, piece, whether it is to be read as plain text)` of the special tokens and the stretches between them."""
    pieces, start = [], 0
    for match in re.finditer("|".join(map(re.escape, specials)), text):
        pieces += [(start, text[start : match.start()], True), (match.start(), match[0], False)]
        start = match.end()
    pieces.append((start, text[start:], True))
    return [piece for piece in pieces if piece[1]]
