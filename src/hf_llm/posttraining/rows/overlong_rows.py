"""Rows that do not fit the model's context: one policy for all stages, `too_long` of their sections.

`drop` (the default) never cuts an answer, since a model trained on answers without their end does not learn to stop.
`truncate` cuts them. Both are counted, in the manifest's `rows`, and printed.
"""

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.data.chat.messages import load_tools
from hf_llm.inference.generate import drop_oldest_turns
from hf_llm.tokenization.chat_encoding import encode_chat

if TYPE_CHECKING:
    from hf_llm.posttraining.sections import PostTrainingSection

DROP = "drop"
TRUNCATE = "truncate"


@dataclass
class RowLengths:
    """The lengths of a data set's rows in tokens, and of their prompts; the longest answer of a row counts."""

    rows: list[int]
    prompts: list[int]
    measured: str
    """What was measured: `rows with their answers`, or `prompts`."""

    def too_long(self, limit: int) -> list[int]:
        """Return the numbers of the rows of more than `limit` tokens."""
        return [number for number, length in enumerate(self.rows) if length > limit]

    def describe(self, limit: int) -> str:
        """Describe how many rows have more than `limit` tokens, and how long they are."""
        count = len(self.too_long(limit))
        return (
            f"{count:,} of {len(self.rows):,} {self.measured} are longer than {limit:,} tokens (median of all "
            f"{median(self.rows):,.0f}, longest {max(self.rows):,})"
        )


def measure_rows(rows: list[Dataset], completions: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> RowLengths:
    """Measure the rows of all parts (training, evaluation): the prompt with the longest of the `completions` (columns).

    Without `completions` the prompt alone counts, with the marks that open an answer.
    """
    lengths = []
    prompts = []
    for part in rows:
        for row in part:
            tools = load_tools(row)
            prompt = len(encode_chat(tokenizer, row["prompt"], tools, add_generation_prompt=True)[0])
            answered = [len(encode_chat(tokenizer, row["prompt"] + row[name], tools)[0]) for name in completions]
            prompts.append(prompt)
            lengths.append(max(answered, default=prompt))
    return RowLengths(lengths, prompts, "rows with their answers" if completions else "prompts")


def fit_rows(
    rows: list[Dataset],
    completions: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    section: "PostTrainingSection",
    folder: str,
) -> tuple[list[Dataset], dict[str, int]]:
    """Fit the rows (training, evaluation) into `limit` tokens as `section.too_long` says, and print how many do not.

    With `drop` a row is kept where its prompt, with each of the `completions` (columns), fits. With `truncate` it is
    kept where its prompt leaves room for an answer, which the trainer cuts at its `max_length`; without `completions`
    a prompt loses its oldest turns. Returns the rows, and the counts `too_long` (dropped) and `truncated`. Raises
    UserError where no row is left to train or to evaluate on.
    """
    lengths = measure_rows(rows, completions, tokenizer)
    cuts_prompts = section.too_long == TRUNCATE and not completions

    kept = []
    counts = {"too_long": 0, "truncated": 0}
    first = 0
    for part in rows:
        numbers = []
        fitted = []  # the rows, where their prompts are cut
        for number, row in enumerate(part):
            is_long = lengths.rows[first + number] > limit
            fits = not is_long
            if is_long and cuts_prompts:
                row["prompt"] = drop_oldest_turns(tokenizer, row["prompt"], limit)
                shortened, _ = encode_chat(tokenizer, row["prompt"], load_tools(row), add_generation_prompt=True)
                fits = len(shortened) <= limit
            elif is_long:
                fits = section.too_long == TRUNCATE and lengths.prompts[first + number] < limit
            if fits:
                numbers.append(number)
                fitted.append(row)
            counts["too_long"] += is_long and not fits
            counts["truncated"] += is_long and fits
        kept.append(Dataset.from_list(fitted, part.features) if cuts_prompts else part.select(numbers))
        first += len(part)

    check_rows_left(kept, lengths, limit, folder)
    if counts["too_long"] or counts["truncated"]:
        print_main(describe_fitted_rows(lengths, limit, counts, section))
    return kept, counts


def describe_fitted_rows(
    lengths: RowLengths, limit: int, counts: dict[str, int], section: "PostTrainingSection"
) -> str:
    """Return the line that tells what became of the rows that are too long."""
    line = lengths.describe(limit)
    if counts["too_long"]:
        line += f"; {counts['too_long']:,} were dropped"
    if counts["truncated"]:
        line += f"; {counts['truncated']:,} were truncated"
    if section.too_long == DROP:
        line += " (too_long: truncate would cut them)"
    return line


def check_rows_left(kept: list[Dataset], lengths: RowLengths, limit: int, folder: str) -> None:
    """Raise UserError where no row is left to train or to evaluate on."""
    if all(map(len, kept)):
        return
    side = "train on" if not len(kept[0]) else "evaluate on (evaluation_share)"
    raise UserError(
        f"{folder}: no row is left to {side}: {lengths.describe(limit)}. Start from a model with a longer context, "
        "shorten the rows, or write `too_long: truncate`"
    )


def prompt_limit(context: int, completion_length: int, folder: str) -> int:
    """Return the tokens that a prompt may have beside a completion. Raises UserError where there are none."""
    if completion_length >= context:
        raise UserError(
            f"{folder}.training.max_completion_length: {completion_length} tokens leave no room for a prompt in a "
            f"context of {context}; write at most {context // 2}"
        )
    return context - completion_length
