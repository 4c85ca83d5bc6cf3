"""Conversations and documents as rows of token ids and labels, and an account of what became of every row.

The labels are made here, not by TRL, so that what a person typed stays text, tool calls and whole documents can stand
beside chats, and what does not fit the context is counted.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import load_conversations, too_many
from hf_llm.tokenization.chat_encoding import encode_chat

if TYPE_CHECKING:
    from hf_llm.posttraining.build_trainer import Tuning

IGNORED = -100  # the label of a token that is not learnt, as PyTorch's cross-entropy has it
NO_ROOM = "no room for an answer"
NOT_LEARNT = "no answer that is to be learnt"


@dataclass
class Rows:
    """Rows for a trainer (`input_ids`, `labels`, `source`), and the loader's report with `truncated` added."""

    train: Dataset
    held_out: Dataset
    report: dict[str, Any]


def supervised_rows(section: "Tuning", seed: int, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Rows:
    """The data of a section as rows of at most `max_length` tokens; None does not cut.

    Of a conversation the assistant's messages are supervised, each with its end-of-turn token; one that is too long is
    cut at the end (`truncation_mode: keep_end`: at the start). A document is supervised whole, as windows. Raises
    UserError for data that cannot be read, an answer whose end is not supervised, and more rows dropped than allowed.
    """
    *sides, report = load_conversations(
        section.data, section.evaluation_share, seed, section.allow_drop, documents=True
    )
    encoder = _Encoder(tokenizer, max_length, section.training.get("truncation_mode") == "keep_end", report)
    train, held_out = (encoder.encoded(side) for side in sides)
    for each in report["sources"]:
        bad = sum(each["dropped"].values())
        if bad > section.allow_drop * (bad + each["kept"]):
            raise UserError(too_many(each["source"], each["dropped"], each["samples"], each["kept"]))
    for name in ("dropped", "truncated"):
        report[name] = _total(each[name] for each in report["sources"])
    report |= {"kept": _total(each["kept"] for each in report["sources"]), "train": len(train), "eval": len(held_out)}
    if not train or not held_out:
        raise UserError(f"no rows are left to {'learn' if not train else 'evaluate'}; add data, or raise max_length")
    return Rows(train, held_out, report)


class _Encoder:
    """Rows to ids and labels, each different row once: shares repeat rows, and counts are not to."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None, keep_end: bool, report: dict[str, Any]
    ):
        self.tokenizer, self.max_length, self.keep_end = tokenizer, max_length, keep_end
        self.sources = report["sources"]
        self.done: dict[str, list[dict[str, Any]]] = {}
        self.reads_weights = False  # as far as is known
        for each in self.sources:
            each["truncated"] = 0

    def encoded(self, rows: Dataset) -> Dataset:
        made = []
        for row in rows:
            key = json.dumps(row)
            if key not in self.done:
                self.done[key] = self._document(row) if row.get("text") is not None else self._conversation(row)
            made += self.done[key]
        return Dataset.from_dict({name: [row[name] for row in made] for name in ("input_ids", "labels", "source")})

    def _document(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        ids = self.tokenizer(row["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = [*ids, self.tokenizer.eos_token_id]
        size = self.max_length or len(ids)
        windows = [ids[start : start + size] for start in range(0, len(ids), size)]
        return [{"input_ids": part, "labels": part, "source": row["source"]} for part in windows if len(part) > 1]

    def _conversation(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        source = self.sources[row["source"]]
        tools = json.loads(row["tools"]) if row.get("tools") else None
        try:
            ids, covered = encode_chat(self.tokenizer, row["messages"], tools)
        except TemplateError as error:
            return self._drop(source, f"the chat template refuses it ({error})", row)
        if any(message.get("weight") == 0 for message in row["messages"]):
            self._check_weights()
        labels = [token if learnt else IGNORED for token, learnt in zip(ids, covered, strict=True)]
        learnt = [label for label in labels if label != IGNORED]
        if not learnt:
            return self._drop(source, NOT_LEARNT, row)
        if learnt[-1] not in self.tokenizer.all_special_ids:
            raise UserError(
                f"{source['source']}: of {_excerpt(row)} the end-of-turn token is not supervised, so the model would "
                "never learn to stop; put it inside {% generation %} in the chat template"
            )
        if self.max_length and len(ids) > self.max_length:
            cut = slice(-self.max_length, None) if self.keep_end else slice(self.max_length)
            ids, labels = ids[cut], labels[cut]
            if all(label == IGNORED for label in labels[1:]):  # the first token of a row is never predicted
                return self._drop(source, NO_ROOM, row)
            source["truncated"] += 1
        return [{"input_ids": ids, "labels": labels, "source": row["source"]}]

    def _check_weights(self) -> None:
        """Raise UserError where the chat template supervises a message of weight 0 like any other."""
        if self.reads_weights:
            return
        chat = [{"role": role, "content": "One."} for role in ("user", "assistant") * 2]
        unlearnt = [chat[0], {**chat[1], "weight": 0}, *chat[2:]]
        if encode_chat(self.tokenizer, unlearnt) == encode_chat(self.tokenizer, chat):
            raise UserError(
                "some messages have `weight: 0`, which the chat template does not read: they would be learnt. Put its "
                "{% generation %} around messages of another weight only, or write `tokenizer.chat_template: chatml`"
            )
        self.reads_weights = True

    def _drop(self, source: dict[str, Any], reason: str, row: dict[str, Any]) -> list[dict[str, Any]]:
        source["kept"] -= 1
        source["dropped"][reason] = source["dropped"].get(reason, 0) + 1
        if source["dropped"][reason] == 1:
            source["samples"].append(f"{_excerpt(row)}: {reason}")
        return []


def _excerpt(row: dict[str, Any]) -> str:
    return repr(next(message["content"] for message in row["messages"] if message["role"] == "user")[:60])


def _total(values: Any) -> Any:
    values = list(values)
    return dict(sum(map(Counter, values), Counter())) if isinstance(values[0], dict) else sum(values)


def table(report: dict[str, Any]) -> str:
    """Kept, truncated and dropped rows by source, with the reasons, as lines of text."""
    lines = [f"{'kept':>9} {'truncated':>9} {'dropped':>9} {'left out':>9}  source"]
    for each in report["sources"]:
        counts = (each["kept"], each["truncated"], sum(each["dropped"].values()), sum(each["left_out"].values()))
        lines.append(" ".join(f"{count:>9,}" for count in counts) + f"  {each['source']}")
        for name in ("dropped", "left_out"):
            for reason, count in each[name].items():
                lines.append(f"{'':40}  {count:,} {name.replace('_', ' ')}: {reason}")
    return "\n".join([*lines, f"{report['train']:,} rows to learn, {report['eval']:,} held out"])
