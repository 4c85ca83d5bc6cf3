"""Drop rows that do not fit the model's context: a completion that is cut off would train the model never to stop."""

import math
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.data.chat.messages import load_tools
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.tokenization.chat_encoding import encode_chat


def drop_overlong_rows(
    rows: list[Dataset],
    completions: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    section: PostTrainingSection,
) -> tuple[list[Dataset], int]:
    """Keep the rows whose prompt, with each of the `completions` (columns), has at most `limit` tokens.

    Without `completions` the prompt alone counts, with the marks that open an answer. Returns the rows and how many
    were dropped. Raises UserError where no rows are left on a side, or more than the share `section.allow_drop` would
    be dropped.
    """

    def fits(row: dict[str, Any]) -> bool:
        tools = load_tools(row)
        if not completions:
            ids, _ = encode_chat(tokenizer, row["prompt"], tools, add_generation_prompt=True)
            return len(ids) <= limit
        conversations = (row["prompt"] + row[name] for name in completions)
        return all(len(encode_chat(tokenizer, conversation, tools)[0]) <= limit for conversation in conversations)

    kept = []
    for part in rows:
        numbers = [number for number, row in enumerate(part) if fits(row)]
        kept.append(part.select(numbers))
    total = sum(map(len, rows))
    dropped = total - sum(map(len, kept))

    if dropped > section.allow_drop * total or not all(map(len, kept)):
        measured = "rows with their answers" if completions else "prompts"
        share = math.ceil(100 * dropped / total) / 100
        raise UserError(
            f"{dropped:,} of {total:,} {measured} are longer than {limit} tokens; start from a model with a longer "
            f"context, or write `allow_drop: {share}` to continue without them"
        )
    return kept, dropped
