"""Rows as a person reads them: every token, and whether it is supervised."""

from itertools import groupby

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_llm.posttraining.sft_dataset import IGNORED

# Two shades of each, token by token, so that one sees where tokens end. 38;5 and 48;5: xterm's 256 colours.
_LEARNT = ("\033[30;48;5;120m", "\033[30;48;5;114m")
_SEEN = ("\033[38;5;244m", "\033[38;5;250m")
_END = "\033[0m"


def preview(rows: Dataset, tokenizer: PreTrainedTokenizerBase, colour: bool, count: int = 5) -> str:
    """Some rows, of every source at least one as far as `count` goes: supervised tokens green, or in [brackets]."""
    by_source = {}
    for number, source in enumerate(rows["source"]):
        by_source.setdefault(source, []).append(number)
    order = sorted((place, source, number) for source, own in by_source.items() for place, number in enumerate(own))
    shown = []
    for _, source, number in order[:count]:
        row = rows[number]
        learnt = sum(label != IGNORED for label in row["labels"])
        shown.append(f"--- source {source + 1}, {len(row['input_ids'])} tokens, {learnt} of them supervised")
        shown.append(painted(row["input_ids"], row["labels"], tokenizer, colour))
    return "\n".join(shown)


def painted(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, colour: bool) -> str:
    """The text of `ids`, token by token: those with a label green (or in brackets), the others grey (or bare)."""
    pieces, place = [], 0
    for learnt, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        for text in _texts([token for token, _ in run], tokenizer):
            text = text.replace("\n", "⏎\n")
            if colour:
                # A background must not run over the end of the line.
                lines = (f"{(_LEARNT if learnt else _SEEN)[place % 2]}{line}{_END}" for line in text.split("\n"))
                pieces.append("\n".join(lines))
            else:
                pieces.append(f"[{text}]" if learnt else text)
            place += 1
    return "".join(pieces)


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token; tokens that are only parts of a letter are taken together."""
    texts, waiting = [], []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if not text.endswith("\ufffd") or len(waiting) > 4:
            texts.append(text)
            waiting = []
    return [*texts, tokenizer.decode(waiting)] if waiting else texts
