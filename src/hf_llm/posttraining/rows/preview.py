"""Render encoded rows for a person to read: every token, and whether it is supervised."""

from itertools import groupby

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_llm.core.labels import IGNORE_INDEX

# Neighbouring tokens alternate between two shades, which shows where they end. 38;5 and 48;5: xterm's 256 colours.
_SUPERVISED_SHADES = ("\033[30;48;5;120m", "\033[30;48;5;114m")
_OTHER_SHADES = ("\033[38;5;244m", "\033[38;5;250m")
_RESET = "\033[0m"
_MAX_TOKENS_PER_LETTER = 4  # bytes of the longest UTF-8 character


def render_preview(rows: Dataset, tokenizer: PreTrainedTokenizerBase, colour: bool, count: int = 5) -> str:
    """Render `count` rows, taken from all sources in turn; supervised tokens are green, or in [brackets]."""
    rows_by_source: dict[int, list[int]] = {}
    for number, source in enumerate(rows["source"]):
        rows_by_source.setdefault(source, []).append(number)

    # The first row of every source, then the second of every source, and so on.
    order = []
    for source, numbers in rows_by_source.items():
        order += [(position, source, number) for position, number in enumerate(numbers)]
    order.sort()

    lines = []
    for _, source, number in order[:count]:
        row = rows[number]
        supervised = sum(label != IGNORE_INDEX for label in row["labels"])
        lines.append(f"--- source {source + 1}, {len(row['input_ids'])} tokens, {supervised} of them supervised")
        lines.append(paint_tokens(row["input_ids"], row["labels"], tokenizer, colour))
    return "\n".join(lines)


def paint_tokens(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, colour: bool) -> str:
    """Render `ids` token by token: those with a label in green (or in brackets), the others in grey (or plain)."""
    pieces: list[str] = []
    for is_supervised, pairs in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX):
        shades = _SUPERVISED_SHADES if is_supervised else _OTHER_SHADES
        for text in _token_texts([token for token, _ in pairs], tokenizer):
            text = text.replace("\n", "⏎\n")
            if colour:
                shade = shades[len(pieces) % 2]
                # The colour is reset before each line break, or the background would fill the rest of the line.
                text = "\n".join(f"{shade}{line}{_RESET}" for line in text.split("\n"))
            elif is_supervised:
                text = f"[{text}]"
            pieces.append(text)
    return "".join(pieces)


def _token_texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Decode each token; tokens that are only parts of one character are decoded together."""
    texts: list[str] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = tokenizer.decode(pending)
        is_whole = not text.endswith("\ufffd")
        if is_whole or len(pending) > _MAX_TOKENS_PER_LETTER:
            texts.append(text)
            pending = []
    if pending:
        texts.append(tokenizer.decode(pending))
    return texts
