"""Load conversations, preferences, labelled answers and prompts as data sets for TRL's trainers.

The sources are files, Hub data sets, plain documents and the Python documentation on this disk.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from hf_llm.core.errors import UserError
from hf_llm.core.surrogates import replace_lone_surrogates
from hf_llm.data.chat.formats import (
    CONVERSATION_FORMATS,
    LABELLED_FORMATS,
    PREFERENCE_FORMATS,
    PROMPT_FORMATS,
    TREE_MESSAGE_COLUMNS,
    RowReader,
    build_trees,
    find_conversation_reader,
    find_labelled_reader,
    find_preference_reader,
    find_prompt_reader,
    split_answer,
    unpair_preference,
)
from hf_llm.data.chat.messages import LeftOut, Row, Unusable
from hf_llm.data.chat.small_world_qa import world_conversations, world_preferences, world_test_questions
from hf_llm.data.files.archives import extract_members, is_archive
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.file_formats import FORMATS, check_origins, explain_exclusion, find_files
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.tabular import read_hub_rows, read_rows, unreadable_file_error

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_llm.data.corpus.sources import ReadTask

# The names that a source's `format` may have, each once.
_FORMAT_NAMES = list(dict.fromkeys([*CONVERSATION_FORMATS, *PREFERENCE_FORMATS, *LABELLED_FORMATS, *PROMPT_FORMATS]))
FILE_BESIDE = "file"  # begins a reason in `left_out` that counts files, where the others count rows
_MAX_DOCUMENT_CHARS = 1_000_000  # a longer document is cut here; all are cut to the model's context in any case


@dataclass
class ConversationSource:
    """Where rows come from: exactly one of `path`, `hub`, `documents`, `installed` and `synthetic`, and a licence."""

    license: str
    """SPDX identifier of the data's licence; `unknown` if you do not know it."""
    path: str | None = None
    """A JSON, JSONL, CSV, Parquet or Arrow file, a zip or tar of them, a folder or a glob pattern."""
    hub: str | None = None
    """Id of a data set on the Hub."""
    documents: str | None = None
    """A folder or file of texts, which are trained on as they are; only the sft section takes them."""
    installed: Literal["docs"] | None = None
    """`docs`: questions about the Python documentation on this disk."""
    synthetic: Literal["small_world", "small_world_test"] | None = None
    """`small_world`: questions about the small world that a corpus may hold; `small_world_test`: those that are never
    among the rows."""
    format: str | None = None
    """The format of the rows, where their columns fit several."""
    share: float | None = None
    """Share of this source in the training rows; give it to every source or to none."""
    subset: str | None = None
    """Subset (configuration) of the Hub data set."""
    split: str = "train"
    """Split of the Hub data set."""
    take: int | None = None
    """Take this many rows, the first ones; all where it is left out."""

    def __post_init__(self) -> None:
        for key in ("path", "hub", "documents"):
            value = getattr(self, key)
            if value is not None and not value.strip():
                raise ValueError(f"{key} is empty; name the data, or leave the key out")

        origins = (self.path, self.hub, self.documents, self.installed, self.synthetic)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("a source has exactly one of `path`, `hub`, `documents`, `installed` and `synthetic`")
        check_origins({"path": self.path, "hub": self.hub, "documents": self.documents})
        if not self.license.strip():
            raise ValueError("license is empty; name the data's licence, or write `unknown`")

        has_hub_keys = self.subset is not None or self.split != "train"
        if has_hub_keys and not self.hub:
            raise ValueError("`subset` and `split` belong to `hub`")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out to read all rows")

        if self.format is not None and self.format not in _FORMAT_NAMES:
            raise ValueError(f"format {self.format!r} is unknown; one of {', '.join(_FORMAT_NAMES)}")
        if self.format is not None and not (self.path or self.hub):
            raise ValueError("`format` belongs to `path` and `hub`")
        if self.share is not None and self.share <= 0:
            raise ValueError(f"share is {self.share}; give a number above 0, or leave the source out")

    @property
    def name(self) -> str:
        """What messages call this source."""
        return self.path or self.hub or self.documents or self.synthetic or "the documentation on this disk"


@dataclass(frozen=True)
class _RowKind:
    """The kind of rows that a stage trains on."""

    find_reader: Callable[[set[str], str | None], RowReader | None]
    """Finds the reader of rows with these columns and a named format, or None."""
    columns: tuple[str, ...]
    """The columns of the data set, except those that no row has."""
    documentation_rows: Callable[[Path | None, Counter], Iterator[Row]]
    """Yields the rows made from the documentation on this disk, and counts those left out because of the corpus."""
    world_rows: Callable[[], Iterator[Row]]
    """Yields the rows about the small world."""
    example: str
    """A row to show in an error."""


def load_conversations(
    sources: list[ConversationSource],
    eval_share: float,
    seed: int,
    allow_drop: float = 0.01,
    documents: bool = False,
    corpus: Path | None = None,
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Load training and evaluation rows with the columns `messages` and `source` (its number), and a report.

    The formats are those of `hf_llm.data.chat.formats.CONVERSATION_FORMATS`, known by their columns or named by a
    source's `format`. Where a row has `tools` there is that column too (JSON, None in rows without); where a source has
    `documents`, and the stage takes them (`documents`), the column `text`, with no messages beside it. Rows with the
    same first question go to the same side; shares hold for the training rows. Rows made from the documentation follow
    the splits of `corpus`, the folder of the run's corpus: what stands in its test split is left out, what stands in
    its validation split is held out.

    The report is `{"kept", "dropped": {reason: rows}, "left_out": {reason: rows}, "samples", "licenses", "sources":
    [the same of each], "train", "eval"}`; rows that are left out are valid, but their makers or this stage have no use
    for them. `follows_corpus` is true there where rows follow the corpus's splits. Raises UserError for an unknown
    format, and where more than the share `allow_drop` of a source's rows cannot be used.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_conversations

    if not documents:
        _refuse_documents(sources)
    _refuse_test_questions(sources)
    kind = _RowKind(
        find_reader=find_conversation_reader,
        columns=("messages", "tools", "text", "source"),
        documentation_rows=documentation_conversations,
        world_rows=world_conversations,
        example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    )
    return _load_rows(sources, kind, eval_share, seed, allow_drop, corpus)


def load_preferences(
    sources: list[ConversationSource],
    eval_share: float,
    seed: int,
    allow_drop: float = 0.01,
    corpus: Path | None = None,
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Load training and evaluation rows with the columns `prompt`, `chosen` and `rejected` (message lists), `tools`
    where a row has any (JSON), and a report.

    The formats are those of `hf_llm.data.chat.formats.PREFERENCE_FORMATS`. Otherwise as `load_conversations`.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_preferences

    _refuse_documents(sources)
    _refuse_test_questions(sources)
    kind = _RowKind(
        find_reader=find_preference_reader,
        columns=("prompt", "chosen", "rejected", "tools"),
        documentation_rows=documentation_preferences,
        world_rows=world_preferences,
        example='{"prompt": "Hi", "chosen": "Hello!", "rejected": "What do you want?"}',
    )
    return _load_rows(sources, kind, eval_share, seed, allow_drop, corpus)


def load_labelled_completions(
    sources: list[ConversationSource],
    eval_share: float,
    seed: int,
    allow_drop: float = 0.01,
    corpus: Path | None = None,
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Load training and evaluation rows with the columns `prompt`, `completion` (message lists) and `label`, `tools`
    where a row has any (JSON), and a report.

    They come from rows with a `label` (true: a good answer), or from preferences, whose answers become two rows.
    Otherwise as `load_conversations`.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_preferences

    def read_documentation(corpus: Path | None, left_out: Counter) -> Iterator[Row]:
        for pair in documentation_preferences(corpus, left_out):
            yield from unpair_preference(pair)

    def read_world() -> Iterator[Row]:
        for pair in world_preferences():
            yield from unpair_preference(pair)

    _refuse_documents(sources)
    _refuse_test_questions(sources)
    kind = _RowKind(
        find_reader=find_labelled_reader,
        columns=("prompt", "completion", "label", "tools"),
        documentation_rows=read_documentation,
        world_rows=read_world,
        example='{"prompt": "Hi", "completion": "Hello!", "label": true}',
    )
    return _load_rows(sources, kind, eval_share, seed, allow_drop, corpus)


def load_prompts(
    sources: list[ConversationSource],
    eval_share: float,
    seed: int,
    allow_drop: float = 0.01,
    corpus: Path | None = None,
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Load training and evaluation rows with the columns `prompt` (a message list) and `answer`, and a report.

    They come from conversations and preferences (`answer` is then the text of the last or the chosen answer, for reward
    functions that compare with it) and from bare prompts (it is None). `tools` (JSON) and the other columns of the data
    go along, for reward functions too; the report lists the latter under `columns`. Otherwise as `load_conversations`.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_conversations

    def read_documentation(corpus: Path | None, left_out: Counter) -> Iterator[Row]:
        for row in documentation_conversations(corpus, left_out):
            yield {**split_answer(row.pop("messages")), **row}

    def read_world() -> Iterator[Row]:
        for row in world_conversations():
            yield split_answer(row["messages"])

    _refuse_documents(sources)
    _refuse_test_questions(sources)
    kind = _RowKind(
        find_reader=find_prompt_reader,
        columns=("prompt", "answer", "tools"),
        documentation_rows=read_documentation,
        world_rows=read_world,
        example='{"prompt": "How do birds find their way?"}',
    )
    return _load_rows(sources, kind, eval_share, seed, allow_drop, corpus)


def _refuse_documents(sources: list[ConversationSource]) -> None:
    for source in sources:
        if source.documents:
            raise UserError(f"{source.name}: `documents` are texts without questions; only the sft section takes them")


def _refuse_test_questions(sources: list[ConversationSource]) -> None:
    for source in sources:
        if source.synthetic == "small_world_test":
            raise UserError("small_world_test holds the questions of the test, which no model is trained on")


def load_questions(sources: list[ConversationSource]) -> list[dict[str, str]]:
    """Load questions with right answers: `{"prompt", "answer"}` of each row, in their order.

    They are read as those of `load_prompts`; what a conversation says before its question is left out. Raises UserError
    for a row without an answer.
    """
    from hf_llm.data.chat.python_docs_qa import documentation_conversations

    def read_documentation(corpus: Path | None, left_out: Counter) -> Iterator[Row]:
        for row in documentation_conversations(corpus, left_out):
            yield split_answer(row["messages"])

    _refuse_documents(sources)
    kind = _RowKind(
        find_reader=find_prompt_reader,
        columns=("prompt", "answer"),
        documentation_rows=read_documentation,
        world_rows=world_test_questions,
        example='{"prompt": "How many legs has an ant?", "answer": "six"}',
    )
    questions = []
    for source in sources:
        errors = ReadErrors()
        left_out = Counter()
        count = 0
        for row in _read_usable_rows(source, kind, None, errors, left_out):
            if not row.get("answer"):
                raise UserError(f"{source.name}: a question has no answer, {row['prompt'][-1]['content']!r}")
            questions.append({"prompt": row["prompt"][-1]["content"], "answer": row["answer"]})
            count += 1
        _check_dropped(source, errors, count, allow_drop=0.01)
    return questions


def _load_rows(
    sources: list[ConversationSource],
    kind: _RowKind,
    eval_share: float,
    seed: int,
    allow_drop: float,
    corpus: Path | None,
) -> tuple["Dataset", "Dataset", dict[str, Any]]:
    """Read all sources, split them into training and evaluation, and mix the training rows by the sources' shares."""
    _check_every_share_or_none(sources)

    rows = []
    reports = []
    for number, source in enumerate(sources):
        errors = ReadErrors()
        left_out = Counter()
        source_rows = []
        for row in _read_usable_rows(source, kind, corpus, errors, left_out):
            source_rows.append({**row, "source": number})
        _check_dropped(source, errors, len(source_rows), allow_drop)

        rows += source_rows
        reports.append(
            {
                "source": source.name,
                "kept": len(source_rows),
                "dropped": dict(errors.dropped),
                "left_out": dict(left_out),
                "samples": errors.samples,
            }
        )

    train, evaluation = _split_rows(rows, eval_share, seed)
    train = _mix_by_share(train, sources, seed)

    report = {
        "kept": len(rows),
        "dropped": _sum_counts(each["dropped"] for each in reports),
        "left_out": _sum_counts(each["left_out"] for each in reports),
        "samples": [sample for each in reports for sample in each["samples"]],
        "licenses": sorted({source.license for source in sources}),
        "sources": reports,
        "train": len(train),
        "eval": len(evaluation),
    }
    if any("split" in row for row in rows):
        report["follows_corpus"] = True

    # The columns that rows of prompts bring along go beside the stage's own, under their own names.
    brought = list(dict.fromkeys(name for row in rows for name in row.get("columns", ())))
    if brought:
        report["columns"] = brought
        train = [{**row, **row.get("columns", {})} for row in train]
        evaluation = [{**row, **row.get("columns", {})} for row in evaluation]

    columns = [name for name in kind.columns if any(name in row for row in rows)]
    columns += [name for name in brought if name not in columns]
    return _build_dataset(train, columns), _build_dataset(evaluation, columns), report


def _check_every_share_or_none(sources: list[ConversationSource]) -> None:
    without_share = [source for source in sources if source.share is None]
    if without_share and len(without_share) < len(sources):
        name = without_share[0].name
        raise UserError(f"{name} has no `share` and others have; give every source one, or none")


def _sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _build_dataset(rows: list[Row], columns: list[str]) -> "Dataset":
    """Build a data set of these columns; None stands where a row lacks one.

    Objects with different fields are kept as JSON, so that none gets the fields of others, which templates would see.
    """
    from datasets import Dataset

    table = {name: [row.get(name) for row in rows] for name in columns}
    return Dataset.from_dict(table, on_mixed_types="use_json")


def _read_usable_rows(
    source: ConversationSource, kind: _RowKind, corpus: Path | None, errors: ReadErrors, left_out: Counter
) -> Iterator[Row]:
    """Yield the rows of a source that can be used; count the others in `errors` and `left_out`."""
    if source.installed:
        yield from islice(kind.documentation_rows(corpus, left_out), source.take)
        return
    if source.synthetic:
        rows = world_test_questions() if source.synthetic == "small_world_test" else kind.world_rows()
        yield from islice(rows, source.take)
        return
    if source.documents:
        yield from islice(_read_documents(source, errors, left_out), source.take)
        return

    for where, row, reader in _read_rows(source, kind, errors, left_out):
        try:
            for usable in reader(row):
                yield replace_lone_surrogates(usable)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except Unusable as reason:
            errors.drop_record(str(reason), where)
        except KeyError as missing:
            errors.drop_record(f"no column {missing}", where)


def _read_rows(
    source: ConversationSource, kind: _RowKind, errors: ReadErrors, left_out: Counter
) -> Iterator[tuple[str, Row, RowReader]]:
    """Yield the location of each row, the row, and the reader of its format.

    Raises UserError for a file whose first row is of no known format.
    """
    readers: dict[frozenset[str], RowReader | None] = {}  # by the columns that a row has
    first_readers: dict[str, RowReader] = {}  # by file
    # OpenAssistant's single messages become trees, when all of them have been read.
    tree_messages = []
    for file, number, row in islice(_read_source(source, errors, left_out), source.take):
        where = f"{file}, row {number}"

        # A table has the columns of all its rows, null where a row lacks one.
        columns = frozenset(name for name, value in row.items() if value is not None)
        if columns not in readers:
            readers[columns] = kind.find_reader(set(columns), source.format)
        reader = readers[columns] or first_readers.get(file) or kind.find_reader(set(row), source.format)
        if reader is None:
            raise UserError(_describe_unknown_format(where, row, source, kind))
        first_readers.setdefault(file, reader)

        if row.keys() >= TREE_MESSAGE_COLUMNS:
            tree_messages.append((where, row))
        else:
            yield where, row, reader

    tree_reader = kind.find_reader({"message_tree_id", "prompt"}, None)
    assert tree_reader is not None, "every kind of rows is read from trees, too"
    for where, tree in build_trees(tree_messages):
        yield where, tree, tree_reader


def _describe_unknown_format(where: str, row: Row, source: ConversationSource, kind: _RowKind) -> str:
    problem = "which is not a known format"
    if source.format:
        problem = f"which is not what format {source.format!r} of this stage needs"
    return (
        f"{where} has the columns {', '.join(map(str, row))}, {problem}.\n"
        f"  A row of a known format: {kind.example}\n  Rename the columns, or leave the file out."
    )


def _read_source(source: ConversationSource, errors: ReadErrors, left_out: Counter) -> Iterator[tuple[str, int, Row]]:
    """Yield the file (or Hub id), number and columns of every row of a source."""
    if source.hub:
        is_streamed = source.take is not None
        for number, row in read_hub_rows(source.hub, source.subset, source.split, is_streamed, source.take):
            yield source.hub, number, row
        return

    assert source.path is not None
    listing = ReadErrors()
    files = find_files(source.path, FORMATS["rows"], archives=True, errors=listing)
    _count_files(listing, left_out)
    for path, _ in files:
        try:
            if is_archive(path):
                yield from _read_archive(path, errors, left_out)
                continue
            for number, row in read_rows(path, errors):
                yield str(path), number, row
        except OSError as error:
            raise unreadable_file_error(path, error) from error


def _count_files(listing: ReadErrors, left_out: Counter) -> None:
    """Add to `left_out` the files that lie beside those of a source and are not read."""
    for reason, count in (listing.left_out + listing.dropped).items():
        left_out[f"{FILE_BESIDE}: {reason}"] += count


def _read_archive(path: Path, errors: ReadErrors, left_out: Counter) -> Iterator[tuple[str, int, Row]]:
    """Yield the file, number and columns of every row in an archive. Files that hold no rows are counted."""
    for name, unpacked in extract_members(path, errors):
        exclusion = explain_exclusion(name)
        if exclusion:
            left_out[f"a file in the archive: {exclusion}"] += 1
            continue
        if content_suffix(unpacked) not in FORMATS["rows"]:
            left_out[f"a file in the archive that holds no rows ({Path(name).suffix or name})"] += 1
            continue

        file = f"{path}/{name}"
        member_errors = ReadErrors()
        for number, row in read_rows(unpacked, member_errors):
            yield file, number, row
        for reason, examples in member_errors.examples.items():
            member_errors.examples[reason] = [example.replace(str(unpacked), file) for example in examples]
        errors.add(member_errors)


def _read_documents(source: ConversationSource, errors: ReadErrors, left_out: Counter) -> Iterator[Row]:
    """Yield the texts below a folder, read as the corpus reads them (docs/sources.md)."""
    from hf_llm.data.corpus.reader_step import SourceReader

    parts = _list_document_parts(source)
    for part in parts:
        _count_files(part.listing, left_out)
    step = SourceReader(parts, _MAX_DOCUMENT_CHARS)
    try:
        for rank in range(len(parts)):
            for document in step.run(None, rank, len(parts)):
                text = document.text.strip()
                if text:
                    yield {"text": text}
                else:
                    left_out[NO_TEXT] += 1
    finally:  # also where no more rows are taken
        errors.add(step.faults)
        left_out.update(step.faults.left_out)


def _list_document_parts(source: ConversationSource) -> "list[ReadTask]":
    from hf_llm.data.corpus.config import Source
    from hf_llm.data.corpus.sources import list_read_tasks

    try:
        return list_read_tasks([Source(license=source.license, path=source.documents)])
    except UserError as error:
        raise UserError(str(error).removeprefix("corpus.sources[0]: ")) from None


def check_source_exists(source: ConversationSource) -> None:
    """Raise UserError where a source on this disk has no file to read."""
    if source.path:
        find_files(source.path, FORMATS["rows"], archives=True)
    elif source.documents:
        _list_document_parts(source)


def _check_dropped(source: ConversationSource, errors: ReadErrors, kept: int, allow_drop: float) -> None:
    dropped = errors.dropped.total()
    if dropped > allow_drop * (dropped + kept):
        raise UserError(describe_dropped_rows(source.name, errors.dropped, errors.samples, kept))
    if not kept:
        raise UserError(f"{source.name} holds no rows that can be used; correct the source or leave it out")


def describe_dropped_rows(name: str, dropped: dict[str, int], samples: list[str], kept: int) -> str:
    """Return the error message for a source of which more rows were dropped than `allow_drop` allows."""
    dropped_count = sum(dropped.values())
    total = dropped_count + kept
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(dropped).most_common())
    problem = f"{name}: {dropped_count:,} of {total:,} rows cannot be used ({reasons}); for example"

    remedy = "Correct or leave out what holds them"
    if kept:
        percent = math.ceil(100 * dropped_count / total)
        remedy += f", or write `allow_drop: {percent / 100}` to continue without those rows"
    return "\n    ".join([problem, *samples]) + f"\n  {remedy}."


def format_row_counts(report: dict[str, Any]) -> str:
    """Format how many rows of each source are kept, dropped and left out, and why; a line for each source."""
    lines = []
    for source in report["sources"]:
        counts = [f"{source['kept']:,} rows kept"]
        for name in ("dropped", "left_out"):
            reasons = [f"{count:,} {reason}" for reason, count in Counter(source[name]).most_common()]
            if reasons:
                counts.append(f"{sum(source[name].values()):,} {name.replace('_', ' ')} ({', '.join(reasons)})")
        lines.append(f"{source['source']}: {', '.join(counts)}")
    return "\n".join(lines)


def _split_rows(rows: list[Row], eval_share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and evaluation by a digest of the seed and the first question.

    No question is in both. Rows of the corpus's validation split are held out; if they are fewer than the share, and
    for the rows of other sources, questions are held out by their digest. Of labelled rows both labels are held out,
    each by the share. Raises UserError if there are too few different questions.
    """
    assert 0 <= eval_share < 1, f"eval_share is {eval_share}"
    digests = [_hash_question(row, seed) for row in rows]
    held_out = {digest for digest, row in zip(digests, rows, strict=True) if row.get("split") == "validation"}
    sources_with_splits = {row["source"] for row in rows if "split" in row}

    if eval_share:
        pools: dict[bool, dict[int, set[bool]]] = {False: {}, True: {}}  # the labels of each question
        for digest, row in zip(digests, rows, strict=True):
            labels = pools[row["source"] in sources_with_splits].setdefault(digest, set())
            if "label" in row:
                labels.add(row["label"])
        for pool in pools.values():
            held_out |= _choose_held_out(pool, held_out, eval_share)

    if len(held_out) >= len(set(digests)):
        raise UserError(f"{len(set(digests))} different question(s) are too few to hold some out; add data")

    train = []
    evaluation = []
    for digest, row in zip(digests, rows, strict=True):
        side = evaluation if digest in held_out else train
        side.append(row)
    return train, evaluation


def _choose_held_out(pool: dict[int, set[bool]], held_out: set[int], eval_share: float) -> set[int]:
    """Choose the share of the questions (digests) of a pool, the smallest digests first; those held out count.

    Where questions have labels, the share holds for those of each label, and at least one is chosen if there are two.
    """
    strata: dict[frozenset[bool], list[int]] = {}
    for digest in sorted(pool):
        strata.setdefault(frozenset(pool[digest]), []).append(digest)

    chosen = set()
    for digests in strata.values():
        missing = round(len(digests) * eval_share) - len(held_out.intersection(digests))
        others = [digest for digest in digests if digest not in held_out]
        chosen.update(others[: max(0, missing)])

    for label in (True, False):
        labelled = [digest for digests in strata.values() for digest in digests if label in pool[digest]]
        if len(labelled) > 1 and not (chosen | held_out).intersection(labelled):
            chosen.add(labelled[0])
    if pool and not (chosen | held_out).intersection(pool):
        chosen.add(min(pool))
    return chosen


def _hash_question(row: Row, seed: int) -> int:
    """Return a digest of the seed and the first question of a row, or its text where it is a document."""
    if "text" in row:
        question = row["text"]
    else:
        messages = row.get("prompt") or row["messages"]
        question = next(turn["content"] for turn in messages if turn["role"] == "user")
    return _hash_values(seed, question.strip())


def _hash_values(*values: Any) -> int:
    return xxhash.xxh3_64_intdigest(json.dumps(values).encode("utf-8"))


def _mix_by_share(rows: list[Row], sources: list[ConversationSource], seed: int) -> list[Row]:
    """Mix the rows in the shares that the sources ask for; their total number stays the same.

    The rows of a source are repeated, or a sample of them is taken, which depends only on `seed`.
    """
    shares = [source.share for source in sources if source.share is not None]
    if not shares:
        return rows

    total_share = sum(shares)
    mixed = []
    for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
        source_rows = [row for row in rows if row["source"] == number]
        if not source_rows:
            raise UserError(f"{source.name}: all its rows are held out for evaluation, none are left for its share")

        count = round(len(rows) * share / total_share)
        repeats, remainder = divmod(count, len(source_rows))
        mixed += source_rows * repeats
        mixed += [source_rows[i] for i in _sample_indices(len(source_rows), remainder, seed, number)]
    return mixed


def _sample_indices(size: int, count: int, *seeds: int) -> list[int]:
    """Return a sample of `count` indices below `size`, ascending, that depends only on the seeds."""
    by_digest = sorted(range(size), key=lambda i: _hash_values(*seeds, i))
    return sorted(by_digest[:count])
