"""Padding with a token of its own, for tokenizers of other people's models.

Many chat models come without a padding token (Llama 3), or pad with the token that ends a turn (SmolLM2). A model that
is trained so may never learn to stop, and a reward model scores the token before the end.
"""

from typing import TYPE_CHECKING

from jinja2 import TemplateError

from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.tokenization.text_boundaries import text_boundaries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_NAMES = ("pad", "reserved", "unused")  # of tokens that are meant to be used so, the best first


def give_padding(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a tokenizer pad with a token of its own, where it does not yet and has a special token to spare.

    Ids and the size of the vocabulary stay as they are. Where there is no such token, one without padding pads with its
    end of text: that is enough for generation, and training with it is refused (`check_tokenizer`).
    """
    has_own = tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id
    if has_own or not tokenizer.is_fast:
        return
    unused = _list_unused_special_tokens(tokenizer)
    if unused:
        tokenizer.pad_token = unused[0]
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _list_unused_special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """List the special tokens that stand in no text and no conversation, those meant for padding first."""
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    before, after = text_boundaries(tokenizer)
    used.update(before, after)
    if tokenizer.chat_template:
        try:
            ids, _ = encode_chat(tokenizer, _CHAT)
        except TemplateError:
            return []
        used.update(ids)

    unused = []
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special and number not in used:
            unused.append(token.content)
    return sorted(unused, key=_rank)


def _rank(token: str) -> int:
    """Return the place of a token among those of other names: the first is the one best suited to padding."""
    for place, name in enumerate(_NAMES):
        if name in token.lower():
            return place
    return len(_NAMES)
