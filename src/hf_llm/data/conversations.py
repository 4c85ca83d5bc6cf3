"""Chat and preference data: files, Hub data sets and the documentation on this disk, as data sets that TRL takes."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from hf_llm.data.faults import Faults
from hf_llm.data.formats import Unusable, conversation_reader, preference_reader
from hf_llm.data.rows import file_rows, hub_rows, unreadable
from hf_llm.data.sources import FORMATS, files_under
from hf_llm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_CONVERSATION_SAMPLE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
_PREFERENCE_SAMPLE = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "What do you want?"}'


@dataclass
class ConversationSource:
    """Where conversations or preferences come from: exactly one of `path`, `hub` and `installed`, and a licence."""

    license: str = field(metadata={"help": "SPDX identifier of the data's licence; `unknown` if you do not know"})
    path: str | None = field(default=None, metadata={"help": "a JSON, JSONL, CSV or Parquet file, a folder or a glob"})
    hub: str | None = field(default=None, metadata={"help": "id of a data set on the Hub"})
    installed: Literal["docs"] | None = field(default=None, metadata={"help": "docs: Python's documentation"})
    subset: str | None = field(default=None, metadata={"help": "of the Hub data set"})
    split: str = field(default="train", metadata={"help": "of the Hub data set"})
    take: int | None = field(default=None, metadata={"help": "the first rows; all if left out"})

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.path, self.hub, self.installed)) != 1:
            raise ValueError("a source has exactly one of `path`, `hub` and `installed`")
        if not self.license.strip():
            raise ValueError("license is empty; name the data's licence, or write `unknown`")
        if not self.hub and (self.subset, self.split) != (None, "train"):
            raise ValueError("`subset` and `split` belong to `hub`")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out to read all rows")

    @property
    def name(self) -> str:
        """What messages call this source."""
        return self.path or self.hub or "the documentation on this disk"


def load_conversations(
    sources: list[ConversationSource], eval_share: float, seed: int, allow_drop: float = 0.01
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Training and evaluation rows with the column `messages`, and what was kept and dropped.

    Known by their columns: `messages`, ShareGPT's `conversations`, `prompt` and `completion`, Alpaca's `instruction`,
    `input` and `output`, `question` and `answer`. Rows with the same first question go to the same side. The last value
    is `{"kept", "train", "eval", "dropped": {reason: rows}, "samples", "licenses"}`. Raises UserError for a form that
    is not known, and where more than the share `allow_drop` of a source's rows cannot be used.
    """
    from hf_llm.data.documentation import documentation_conversations

    def read(row: dict, reader: Callable) -> dict:
        return {"messages": reader(row)}

    form = (conversation_reader, read, documentation_conversations, _CONVERSATION_SAMPLE)
    rows, report = _load(sources, allow_drop, *form)
    return _split(rows, report, eval_share, seed)


def load_preferences(
    sources: list[ConversationSource], eval_share: float, seed: int, allow_drop: float = 0.01
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Training and evaluation rows with the columns `prompt`, `chosen` and `rejected` (message lists), and the counts.

    Known by their columns: `chosen` and `rejected` as strings, messages or Anthropic's transcripts, with the prompt in
    `prompt`, `conversations`, `messages`, `instruction` or in both. Otherwise as `load_conversations`.
    """
    from hf_llm.data.documentation import documentation_preferences

    def read(row: dict, reader: Callable) -> dict:
        return reader(row)

    form = (preference_reader, read, documentation_preferences, _PREFERENCE_SAMPLE)
    rows, report = _load(sources, allow_drop, *form)
    return _split(rows, report, eval_share, seed)


def _load(
    sources: list[ConversationSource],
    allow_drop: float,
    reader_for: Callable[[set[str]], Callable | None],
    read: Callable[[dict, Callable], dict],
    documentation: Callable[[], Iterator[dict]],
    sample: str,
) -> tuple[list[dict], dict[str, Any]]:
    rows, dropped, samples = [], Counter(), []
    for source in sources:
        faults = Faults()
        used = list(islice(documentation(), source.take)) if source.installed else []
        if not source.installed:
            used = list(_usable(source, faults, reader_for, read, sample))
        bad = faults.dropped.total()
        if bad > allow_drop * (bad + len(used)):
            raise UserError(_too_many(source, faults, bad, len(used)))
        if not used:
            raise UserError(f"{source.name} holds no rows that can be used; correct the source or leave it out")
        rows += used
        dropped.update(faults.dropped)
        samples += faults.samples
    licenses = sorted({source.license for source in sources})
    return rows, {"kept": len(rows), "dropped": dict(dropped), "samples": samples, "licenses": licenses}


def _usable(
    source: ConversationSource, faults: Faults, reader_for: Callable, read: Callable, sample: str
) -> Iterator[dict]:
    """The rows of a source that can be used; the others are counted in `faults`."""
    readers = {}
    for file, number, row in islice(_rows(source, faults), source.take):
        where = f"{file}, row {number}"
        if file not in readers:
            readers[file] = reader_for(set(row))
            if readers[file] is None:
                raise UserError(
                    f"{where} has the columns {', '.join(map(str, row))}, which is no known form.\n"
                    f"  A row that is understood: {sample}\n  Rename the columns, or leave the file out."
                )
        try:
            yield read(row, readers[file])
        except Unusable as reason:
            faults.drop(str(reason), where)
        except KeyError as missing:
            faults.drop(f"no column {missing}", where)


def _rows(source: ConversationSource, faults: Faults) -> Iterator[tuple[str, int, dict]]:
    if source.hub:
        streaming = source.take is not None
        for number, row in hub_rows(source.hub, source.subset, source.split, streaming, source.take):
            yield source.hub, number, row
        return
    for path, _ in files_under(source.path, FORMATS["rows"]):
        try:
            for number, row in file_rows(path, faults):
                yield str(path), number, row
        except OSError as error:
            raise unreadable(path, error) from error


def _too_many(source: ConversationSource, faults: Faults, bad: int, used: int) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in faults.dropped.most_common())
    head = f"{source.name}: {bad:,} of {bad + used:,} rows cannot be used ({reasons}); for example"
    remedy = "Mend or leave out what holds them"
    if used:
        remedy += f", or write `allow_drop: {math.ceil(100 * bad / (bad + used)) / 100}` to go on without those rows"
    return "\n    ".join([head, *faults.samples]) + f"\n  {remedy}."


def _split(rows: list[dict], report: dict[str, Any], eval_share: float, seed: int) -> tuple["Dataset", "Dataset", dict]:
    """Divide rows by a digest of seed and first question, so that no question is on both sides."""
    from datasets import Dataset

    assert 0 <= eval_share < 1, f"eval_share is {eval_share}"
    keys = [_question_digest(row, seed) for row in rows]
    order = sorted(set(keys))
    count = max(1, round(len(order) * eval_share)) if eval_share else 0
    if count >= len(order):
        raise UserError(f"{len(order)} different question(s) are too few to hold some out; add data")
    held_out = set(order[:count])
    train = [row for key, row in zip(keys, rows, strict=True) if key not in held_out]
    evaluation = [row for key, row in zip(keys, rows, strict=True) if key in held_out]
    report = {**report, "train": len(train), "eval": len(evaluation)}
    columns = list(rows[0])
    both = [Dataset.from_dict({name: [row[name] for row in side] for name in columns}) for side in (train, evaluation)]
    return *both, report


def _question_digest(row: dict, seed: int) -> int:
    messages = row.get("prompt") or row["messages"]
    question = next(message["content"] for message in messages if message["role"] == "user")
    return xxhash.xxh3_64_intdigest(json.dumps([seed, question.strip()]).encode("utf-8"))
