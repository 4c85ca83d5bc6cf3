"""Drop rows that the chat template refuses to render: some take no system message, or only one call at a time."""

import math
from collections import Counter

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.data.chat.messages import load_tools
from hf_llm.tokenization.chat_encoding import encode_chat


def drop_refused_rows(
    rows: list[Dataset], completions: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, allow_drop: float
) -> tuple[list[Dataset], dict[str, int]]:
    """Keep the rows whose prompt, with each of the `completions` (columns), the chat template renders.

    Returns the rows, and how many were dropped by the template's own words, which are printed. Raises UserError where
    more than the share `allow_drop` would be dropped, or none would be left on a side.
    """
    refused: Counter[str] = Counter()
    kept = []
    for part in rows:
        numbers = []
        for number, row in enumerate(part):
            reason = _find_refusal(row, completions, tokenizer)
            if reason is None:
                numbers.append(number)
            else:
                refused[reason] += 1
        kept.append(part.select(numbers))
    if not refused:
        return rows, {}

    total = sum(map(len, rows))
    dropped = refused.total()
    reasons = "; ".join(f"{count:,} with {reason!r}" for reason, count in refused.most_common())
    summary = f"the model's chat template refuses {dropped:,} of {total:,} rows: {reasons}"
    if dropped > allow_drop * total or not all(map(len, kept)):
        share = math.ceil(100 * dropped / total) / 100
        raise UserError(f"{summary}; correct these rows, or write `allow_drop: {share}` to continue without them")
    print_main(f"{summary}; they were dropped")
    return kept, dict(refused)


def _find_refusal(row: dict, completions: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return why the template refuses a row; None where it renders it."""
    tools = load_tools(row)
    try:
        if not completions:
            encode_chat(tokenizer, row["prompt"], tools, add_generation_prompt=True)
        for name in completions:
            encode_chat(tokenizer, row["prompt"] + row[name], tools)
    except TemplateError as error:
        return one_line(error)
    return None
