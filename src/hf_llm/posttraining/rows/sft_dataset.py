"""Encode conversations and documents as rows of token ids and labels, and count kept, truncated and dropped rows.

The labels are made here instead of by TRL for three reasons: the text of a special token that a person typed stays
plain text, tool calls and whole documents can be mixed with chats, and rows that do not fit the context are counted.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.data.chat.loaders import describe_dropped_rows, load_conversations
from hf_llm.data.chat.messages import load_tools
from hf_llm.posttraining.rows.overlong_rows import TRUNCATE
from hf_llm.tokenization.chat_encoding import encode_chat, tool_support
from hf_llm.tokenization.text_boundaries import encode_document

if TYPE_CHECKING:
    from hf_llm.posttraining.sections import PostTrainingSection

# Reasons for dropping a row; manifests count by them.
NOT_SUPERVISED = "no answer that is to be learnt"

COLUMNS = ("input_ids", "labels", "source")


@dataclass
class SftRows:
    """Rows for a trainer (`input_ids`, `labels`, `source`), and the loader's report with `truncated` and `too_long`
    added: conversations that were shortened, and dropped since no answer of theirs fits."""

    train: Dataset
    held_out: Dataset
    report: dict[str, Any]


def build_sft_rows(
    section: "PostTrainingSection",
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    corpus: Path | None = None,
) -> SftRows:
    """Encode the data of a section as rows of at most `max_length` tokens; with None nothing is truncated.

    In a conversation the assistant's messages are supervised, each with its end-of-turn token. One that is too long
    ends with its last answer that fits whole; where none does, it is dropped. With `too_long: truncate` it is cut at
    the end (with `training.truncation_mode: keep_end` at the start). In a document every token is supervised; it is cut
    into windows. `corpus` is the folder of the run's corpus, whose splits rows made from the documentation follow.
    Raises UserError for data that cannot be read, an answer whose end is not supervised, and more rows dropped than
    allowed.
    """
    train, held_out, report = load_conversations(
        section.data, section.evaluation_share, seed, section.allow_drop, documents=True, corpus=corpus
    )
    truncation_mode = section.training.get("truncation_mode")
    cuts_answers = section.too_long == TRUNCATE or truncation_mode is not None
    encoder = _RowEncoder(tokenizer, max_length, cuts_answers, truncation_mode == "keep_end", report)
    train = encoder.encode_rows(train)
    held_out = encoder.encode_rows(held_out)

    # `allow_drop` is checked again: encoding drops rows too.
    for source in report["sources"]:
        dropped = sum(source["dropped"].values())
        if dropped > section.allow_drop * (dropped + source["kept"]):
            raise UserError(
                describe_dropped_rows(source["source"], source["dropped"], source["samples"], source["kept"])
            )

    # The report's totals over all sources.
    report["dropped"] = _sum_counts(source["dropped"] for source in report["sources"])
    report["truncated"] = sum(source["truncated"] for source in report["sources"])
    report["too_long"] = sum(source["too_long"] for source in report["sources"])
    report["kept"] = sum(source["kept"] for source in report["sources"])
    report["train"] = len(train)
    report["eval"] = len(held_out)
    if not train or not held_out:
        purpose = "train on" if not train else "evaluate on"
        remedy = "add data"
        if report["too_long"]:
            remedy = (
                f"{report['too_long']:,} conversations have no answer that ends within {max_length:,} tokens: start "
                "from a model with a longer context, shorten them, or write `too_long: truncate`"
            )
        raise UserError(f"sft: no rows are left to {purpose}; {remedy}")
    check_answers_end(train, report, tokenizer, max_length)
    return SftRows(train, held_out, report)


def check_answers_end(
    rows: Dataset, report: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> None:
    """Raise UserError where conversations were truncated and no end of an answer is left to train on."""
    if not report["truncated"]:
        return
    end_tokens = set(tokenizer.all_special_ids)
    if any(not end_tokens.isdisjoint(row["labels"]) for row in rows):
        return
    raise UserError(
        f"sft: all {report['truncated']:,} conversations are cut at {max_length:,} tokens before an answer ends, so "
        "the model would never learn to stop; start from a model with a longer context, raise max_length, or shorten "
        "the answers"
    )


class _RowEncoder:
    """Encode rows as ids and labels.

    Where a source's share repeats its rows, each distinct row is encoded and counted once.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        cuts_answers: bool,
        keep_end: bool,
        report: dict[str, Any],
    ):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cuts_answers = cuts_answers
        self.keep_end = keep_end
        self.sources = report["sources"]
        self.encoded: dict[str, list[dict[str, Any]]] = {}  # the row as JSON -> its encoded rows
        self.template_reads_weights = False  # True once it has been checked
        for source in self.sources:
            source["truncated"] = 0
            source["too_long"] = 0

    def encode_rows(self, rows: Dataset) -> Dataset:
        """Encode a data set of conversations and documents; a document becomes several rows."""
        encoded = []
        for row in rows:
            key = json.dumps(row)
            if key not in self.encoded:
                is_document = row.get("text") is not None
                encode_row = self._encode_document if is_document else self._encode_conversation
                self.encoded[key] = encode_row(row)
            encoded += self.encoded[key]
        return Dataset.from_dict({name: [row[name] for row in encoded] for name in COLUMNS})

    def _encode_document(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        ids = encode_document(self.tokenizer, row["text"])
        size = self.max_length or len(ids)

        encoded = []
        for start in range(0, len(ids), size):
            window = ids[start : start + size]
            if len(window) > 1:  # a single token has nothing to predict
                encoded.append({"input_ids": window, "labels": window, "source": row["source"]})
        return encoded

    def _encode_conversation(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        source = self.sources[row["source"]]
        unrendered = self._find_unrendered(row)
        if unrendered:
            return self._drop(source, f"the chat template does not render {unrendered}", row)
        try:
            ids, is_supervised = encode_chat(self.tokenizer, row["messages"], load_tools(row))
        except TemplateError as error:
            return self._drop(source, f"the chat template refuses it ({error})", row)
        if any(message.get("weight") == 0 for message in row["messages"]):
            self._check_template_reads_weights()

        labels = []
        for token, has_label in zip(ids, is_supervised, strict=True):
            labels.append(token if has_label else IGNORE_INDEX)
        supervised = [label for label in labels if label != IGNORE_INDEX]
        if not supervised:
            return self._drop(source, NOT_SUPERVISED, row)
        if supervised[-1] not in self.tokenizer.all_special_ids:
            raise UserError(
                f"{source['source']}: the end-of-turn token of {_excerpt(row)} is not supervised, so the model would "
                "never stop; put it inside {% generation %} in the chat template"
            )

        if self.max_length and len(ids) > self.max_length:
            window = self._fitting_window(labels)
            ids = ids[window]
            labels = labels[window]
            if all(label == IGNORE_INDEX for label in labels[1:]):  # the first token of a row is never predicted
                source["kept"] -= 1
                source["too_long"] += 1
                return []
            source["truncated"] += 1
        return [{"input_ids": ids, "labels": labels, "source": row["source"]}]

    def _find_unrendered(self, row: dict[str, Any]) -> str | None:
        """Return what of a row's tools the chat template would silently leave out; None for nothing."""
        support = tool_support(self.tokenizer)
        has_calls = any(message.get("tool_calls") for message in row["messages"])
        if has_calls and not support.renders_calls:
            return "tool calls"
        if row.get("tools") and not support.renders_tools:
            return "tools"
        return None

    def _fitting_window(self, labels: list[int]) -> slice:
        """Return which tokens of a conversation that is too long are kept: up to the end of its last answer that fits
        whole, or as many as fit."""
        assert self.max_length is not None
        if self.cuts_answers:
            return slice(-self.max_length, None) if self.keep_end else slice(self.max_length)
        for end in range(self.max_length, 0, -1):
            if labels[end - 1] != IGNORE_INDEX and labels[end] == IGNORE_INDEX:
                return slice(end)
        return slice(0)

    def _check_template_reads_weights(self) -> None:
        """Raise UserError where the chat template supervises a message of weight 0 like any other."""
        if self.template_reads_weights:
            return
        # The same chat twice, once with a weight of 0 on its first answer: the labels must differ.
        chat = [{"role": role, "content": "One."} for role in ("user", "assistant") * 2]
        weighted_chat = [chat[0], {**chat[1], "weight": 0}, *chat[2:]]
        if encode_chat(self.tokenizer, weighted_chat) == encode_chat(self.tokenizer, chat):
            raise UserError(
                "some messages have `weight: 0`, which the chat template does not read: they would be supervised. Put "
                "its {% generation %} around messages of another weight only, or write "
                "`tokenizer.chat_template: chatml`"
            )
        self.template_reads_weights = True

    def _drop(self, source: dict[str, Any], reason: str, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Count a row as dropped, keep the first of each reason as a sample, and return no rows in its place."""
        source["kept"] -= 1
        source["dropped"][reason] = source["dropped"].get(reason, 0) + 1
        if source["dropped"][reason] == 1:
            source["samples"].append(f"{_excerpt(row)}: {reason}")
        return []


def _excerpt(row: dict[str, Any]) -> str:
    first_question = next(message["content"] for message in row["messages"] if message["role"] == "user")
    return repr(first_question[:60])


def _sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def format_rows_table(report: dict[str, Any]) -> str:
    """Format the counts of kept, truncated and dropped rows by source, with the reasons, as a table."""
    lines = [f"{'kept':>9} {'truncated':>9} {'too long':>9} {'dropped':>9} {'left out':>9}  source"]
    for source in report["sources"]:
        counts = (
            source["kept"],
            source["truncated"],
            source["too_long"],
            sum(source["dropped"].values()),
            sum(source["left_out"].values()),
        )
        lines.append(" ".join(f"{count:>9,}" for count in counts) + f"  {source['source']}")
        for name in ("dropped", "left_out"):
            for reason, count in source[name].items():
                lines.append(f"{'':50}  {count:,} {name.replace('_', ' ')}: {reason}")
    lines.append(f"{report['train']:,} rows to train on, {report['eval']:,} held out")
    return "\n".join(lines)
