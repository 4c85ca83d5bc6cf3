"""Chats, preferences, labelled answers and prompts: files, Hub data sets, documents and the documentation on this disk,
as data sets that TRL takes."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from hf_llm.core.errors import UserError
from hf_llm.core.surrogates import whole_characters
from hf_llm.data.chat.formats import (
    CONVERSATIONS,
    LABELLED,
    NEEDS_TREES,
    PREFERENCES,
    PROMPTS,
    LeftOut,
    Reader,
    Row,
    Unusable,
    conversation_reader,
    labelled_reader,
    preference_reader,
    prompt_reader,
    trees,
)
from hf_llm.data.files.file_formats import FORMATS, files_under
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import file_rows, hub_rows, unreadable

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT_NAMES = (*CONVERSATIONS, *PREFERENCES, *LABELLED, *PROMPTS)
_DOCUMENT_CHARS = 1_000_000  # of one document; what is longer is cut, and to the context in any case


@dataclass
class ConversationSource:
    """Where rows come from: exactly one of `path`, `hub`, `documents` and `installed`, and a licence."""

    license: str = field(metadata={"help": "SPDX identifier of the data's licence; `unknown` if you do not know"})
    path: str | None = field(default=None, metadata={"help": "a JSON, JSONL, CSV or Parquet file, a folder or a glob"})
    hub: str | None = field(default=None, metadata={"help": "id of a data set on the Hub"})
    documents: str | None = field(default=None, metadata={"help": "a folder or file of texts, learnt as they stand"})
    installed: Literal["docs"] | None = field(default=None, metadata={"help": "docs: Python's documentation"})
    format: str | None = field(default=None, metadata={"help": "the form of the rows, where their columns fit several"})
    share: float | None = field(default=None, metadata={"help": "of the training rows; all sources have one, or none"})
    subset: str | None = field(default=None, metadata={"help": "of the Hub data set"})
    split: str = field(default="train", metadata={"help": "of the Hub data set"})
    take: int | None = field(default=None, metadata={"help": "the first rows; all if left out"})

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.path, self.hub, self.documents, self.installed)) != 1:
            raise ValueError("a source has exactly one of `path`, `hub`, `documents` and `installed`")
        if not self.license.strip():
            raise ValueError("license is empty; name the data's licence, or write `unknown`")
        if not self.hub and (self.subset, self.split) != (None, "train"):
            raise ValueError("`subset` and `split` belong to `hub`")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out to read all rows")
        if self.format is not None and self.format not in _FORMAT_NAMES:
            raise ValueError(f"format {self.format!r} is unknown; one of {', '.join(dict.fromkeys(_FORMAT_NAMES))}")
        if self.format is not None and not (self.path or self.hub):
            raise ValueError("`format` belongs to `path` and `hub`")
        if self.share is not None and self.share <= 0:
            raise ValueError(f"share is {self.share}; give a number above 0, or leave the source out")

    @property
    def name(self) -> str:
        """What messages call this source."""
        return self.path or self.hub or self.documents or "the documentation on this disk"


@dataclass(frozen=True)
class _Kind:
    """What a stage learns from: the reader of its rows, their columns, those on this disk, and one to show."""

    reader: Callable[[set[str], str | None], Reader | None]
    columns: tuple[str, ...]
    documentation: Callable[[], Iterator[Row]]
    sample: str


def load_conversations(
    sources: list[ConversationSource], eval_share: float, seed: int, allow_drop: float = 0.01, documents: bool = False
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Training and evaluation rows with the columns `messages` and `source` (its number), and what was kept.

    The forms are those of `hf_llm.data.chat.formats.CONVERSATIONS`, known by their columns or named by a source's
    `format`.
    Where a row has `tools` there is that column too (JSON, None in rows without); where a source has `documents`, and
    the stage takes them (`documents`), the column `text`, with no messages beside it. Rows with the same first question
    go to the same side; shares hold for the training rows.

    The last value is `{"kept", "train", "eval", "dropped": {reason: rows}, "left_out": {reason: rows}, "samples",
    "licenses", "sources": [the same of each]}`; what is left out is sound, and for its makers or this stage no row to
    learn. Raises UserError for a form that is not known, and where more than the share `allow_drop` of a source's rows
    cannot be used.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_conversations

    sample = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
    kind = _Kind(conversation_reader, ("messages", "tools", "text", "source"), documentation_conversations, sample)
    if not documents:
        _refuse_documents(sources)
    return _load(sources, kind, eval_share, seed, allow_drop)


def load_preferences(
    sources: list[ConversationSource], eval_share: float, seed: int, allow_drop: float = 0.01
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Training and evaluation rows with the columns `prompt`, `chosen` and `rejected` (message lists), and the counts.

    The forms are those of `hf_llm.data.chat.formats.PREFERENCES`. Otherwise as `load_conversations`.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_preferences

    sample = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "What do you want?"}'
    kind = _Kind(preference_reader, ("prompt", "chosen", "rejected"), documentation_preferences, sample)
    _refuse_documents(sources)
    return _load(sources, kind, eval_share, seed, allow_drop)


def load_labelled(
    sources: list[ConversationSource], eval_share: float, seed: int, allow_drop: float = 0.01
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Training and evaluation rows with the columns `prompt`, `completion` (message lists) and `label`, and the counts.

    Of rows with a `label` (true: a good answer), or of preferences, whose answers become two rows. Otherwise as
    `load_conversations`.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_preferences

    def documentation() -> Iterator[Row]:
        for pair in documentation_preferences():
            for name in ("chosen", "rejected"):
                yield {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}

    sample = '{"prompt": "Hi", "completion": "Hello!", "label": true}'
    kind = _Kind(labelled_reader, ("prompt", "completion", "label"), documentation, sample)
    _refuse_documents(sources)
    return _load(sources, kind, eval_share, seed, allow_drop)


def load_prompts(
    sources: list[ConversationSource], eval_share: float, seed: int, allow_drop: float = 0.01
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Training and evaluation rows with the columns `prompt` (a message list) and `answer`, and the counts.

    Of conversations and preferences (`answer` is then the text of the last or the chosen answer, for reward functions
    that compare with it) and of bare prompts (it is None). Otherwise as `load_conversations`.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_conversations

    def documentation() -> Iterator[Row]:
        for row in documentation_conversations():
            *prompt, answer = row["messages"]
            yield {"prompt": prompt, "answer": answer["content"]}

    sample = '{"prompt": "How do birds find their way?"}'
    kind = _Kind(prompt_reader, ("prompt", "answer"), documentation, sample)
    _refuse_documents(sources)
    return _load(sources, kind, eval_share, seed, allow_drop)


def _refuse_documents(sources: list[ConversationSource]) -> None:
    for source in sources:
        if source.documents:
            raise UserError(f"{source.name}: `documents` are texts without questions; only the sft section takes them")


def _load(
    sources: list[ConversationSource], kind: _Kind, eval_share: float, seed: int, allow_drop: float
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    if len({source.share is None for source in sources}) > 1:
        bare = next(source for source in sources if source.share is None)
        raise UserError(f"{bare.name} has no `share` and others have; give every source one, or none")
    rows, reports = [], []
    for number, source in enumerate(sources):
        faults, left_out = Faults(), Counter()
        used = [{**row, "source": number} for row in _usable(source, faults, left_out, kind)]
        _check_dropped(source, faults, len(used), allow_drop)
        rows += used
        counts = {"dropped": dict(faults.dropped), "left_out": dict(left_out), "samples": faults.samples}
        reports.append({"source": source.name, "kept": len(used), **counts})
    report = {
        "kept": len(rows),
        "dropped": _added(each["dropped"] for each in reports),
        "left_out": _added(each["left_out"] for each in reports),
        "samples": [sample for each in reports for sample in each["samples"]],
        "licenses": sorted({source.license for source in sources}),
        "sources": reports,
    }
    train, held_out = _split(rows, eval_share, seed)
    train = _mixed(train, sources, seed)
    columns = [name for name in kind.columns if any(name in row for row in rows)]
    return *(_data_set(side, columns) for side in (train, held_out)), {
        **report,
        "train": len(train),
        "eval": len(held_out),
    }


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _data_set(rows: list[Row], columns: list[str]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})


def _usable(source: ConversationSource, faults: Faults, left_out: Counter, kind: _Kind) -> Iterator[Row]:
    """The rows of a source that can be used; the others are counted in `faults` and `left_out`."""
    if source.installed:
        yield from islice(kind.documentation(), source.take)
        return
    if source.documents:
        yield from islice(_documents(source, faults), source.take)
        return
    for where, row, reader in _read(source, faults, kind):
        try:
            yield from map(whole_characters, reader(row))
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except Unusable as reason:
            faults.drop(str(reason), where)
        except KeyError as missing:
            faults.drop(f"no column {missing}", where)


def _read(source: ConversationSource, faults: Faults, kind: _Kind) -> Iterator[tuple[str, Row, Reader]]:
    """Where each row stands, the row, and the reader of its file's form."""
    readers, messages = {}, []
    for file, number, row in islice(_rows(source, faults), source.take):
        where, columns = f"{file}, row {number}", set(row)
        if file not in readers:
            readers[file] = kind.reader(columns, source.format)
            if readers[file] is None:
                raise UserError(_unknown(where, row, source, kind))
        if columns >= NEEDS_TREES:
            messages.append((where, row))
        else:
            yield where, row, readers[file]
    for where, tree in trees(messages):
        yield where, tree, kind.reader({"message_tree_id", "prompt"}, None)


def _unknown(where: str, row: Row, source: ConversationSource, kind: _Kind) -> str:
    known = f"not what format {source.format!r} of this stage needs" if source.format else "no known form"
    return (
        f"{where} has the columns {', '.join(map(str, row))}, which is {known}.\n"
        f"  A row that is understood: {kind.sample}\n  Rename the columns, or leave the file out."
    )


def _rows(source: ConversationSource, faults: Faults) -> Iterator[tuple[str, int, Row]]:
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


def _documents(source: ConversationSource, faults: Faults) -> Iterator[Row]:
    """The texts below a folder, read as the corpus reads them (docs/sources.md)."""
    from hf_llm.data.corpus.reader_step import Read
    from hf_llm.data.corpus.sources import Source, parts_of

    parts = parts_of([Source(license=source.license, path=source.documents)])
    read = Read(parts, _DOCUMENT_CHARS)
    for rank in range(len(parts)):
        for document in read.run(None, rank, len(parts)):
            if document.text.strip():
                yield {"text": document.text.strip()}
    faults.add(read.faults)


def _check_dropped(source: ConversationSource, faults: Faults, used: int, allow_drop: float) -> None:
    bad = faults.dropped.total()
    if bad > allow_drop * (bad + used):
        raise UserError(too_many(source.name, faults.dropped, faults.samples, used))
    if not used:
        raise UserError(f"{source.name} holds no rows that can be used; correct the source or leave it out")


def too_many(name: str, dropped: dict[str, int], samples: list[str], used: int) -> str:
    """The message for a source of which more rows were dropped than `allow_drop` allows."""
    bad = sum(dropped.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(dropped).most_common())
    head = f"{name}: {bad:,} of {bad + used:,} rows cannot be used ({reasons}); for example"
    remedy = "Mend or leave out what holds them"
    if used:
        remedy += f", or write `allow_drop: {math.ceil(100 * bad / (bad + used)) / 100}` to go on without those rows"
    return "\n    ".join([head, *samples]) + f"\n  {remedy}."


def _split(rows: list[Row], eval_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide rows by a digest of seed and first question, so that no question is on both sides."""
    assert 0 <= eval_share < 1, f"eval_share is {eval_share}"
    keys = [_question_digest(row, seed) for row in rows]
    order = sorted(set(keys))
    count = max(1, round(len(order) * eval_share)) if eval_share else 0
    if count >= len(order):
        raise UserError(f"{len(order)} different question(s) are too few to hold some out; add data")
    held_out = set(order[:count])
    train = [row for key, row in zip(keys, rows, strict=True) if key not in held_out]
    evaluation = [row for key, row in zip(keys, rows, strict=True) if key in held_out]
    return train, evaluation


def _question_digest(row: Row, seed: int) -> int:
    if "text" in row:
        question = row["text"]
    else:
        messages = row.get("prompt") or row["messages"]
        question = next(message["content"] for message in messages if message["role"] == "user")
    return _digest(seed, question.strip())


def _digest(*values: Any) -> int:
    return xxhash.xxh3_64_intdigest(json.dumps(values).encode("utf-8"))


def _mixed(rows: list[Row], sources: list[ConversationSource], seed: int) -> list[Row]:
    """As many rows as there are, in the shares the sources ask for: a source's rows repeated, or a sample of them."""
    if sources[0].share is None:
        return rows
    total = sum(source.share for source in sources)
    mixed = []
    for number, source in enumerate(sources):
        own = [row for row in rows if row["source"] == number]
        if not own:
            raise UserError(f"{source.name}: all its rows are held out for evaluation, none are left for its share")
        times, rest = divmod(round(len(rows) * source.share / total), len(own))
        chosen = sorted(range(len(own)), key=lambda i: _digest(seed, number, i))[:rest]
        mixed += own * times + [own[i] for i in sorted(chosen)]
    return mixed
