"""Drop documents that contain text of the evaluation sets, so that a score measures ability and not memory.

An item is a text in a row of an evaluation set: a string in a column, or in a list there. A document is dropped if it
shares a run of `ngram` words with an item, or contains all of a shorter item. What is searched for, and what is not, is
in `hf_llm.data.corpus.dedup.text_overlap`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash

from hf_llm.core.atomic_io import atomic_path, write_text
from hf_llm.core.errors import UserError
from hf_llm.data.corpus.dedup.text_overlap import (
    MIN_WORDS,
    NGRAM,
    IndexTables,
    TextIndex,
    index_set,
    merge_tables,
    walk_strings,
)
from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, Verdict
from hf_llm.data.files.file_formats import FORMATS, check_origins, find_files
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import get_column, read_hub_rows, read_rows, unreadable_file_error

MAX_HEADER_WORDS = 4  # a column name with more words is a text: the file has no header
INDEX = "evaluation_texts.npz"
REPORT = "evaluation_texts.json"


@dataclass
class EvaluationSet:
    """An evaluation set whose text must not be in the corpus: exactly one of `path` and `hub`."""

    path: str | None = None
    """A file of rows, a folder or a glob pattern."""

    hub: str | None = None
    """The id of a data set on the Hub."""

    subset: str | None = None
    """The subset (configuration) of the Hub data set."""

    split: str = "test"
    """The split of the Hub data set."""

    columns: list[str] | None = None
    """The columns that hold the texts; all if left out."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError("an evaluation set has exactly one of `path` and `hub`")
        check_origins({"path": self.path, "hub": self.hub})
        if not self.hub and (self.subset, self.split) != (None, "test"):
            raise ValueError("`subset` and `split` belong to `hub`")
        if self.columns == []:
            raise ValueError("columns is empty; name one, or leave it out to take all that hold text")

    @property
    def name(self) -> str:
        """What the set is called in reports."""
        return self.path or " ".join(filter(None, [self.hub, self.subset, self.split]))


@dataclass
class Decontaminate:
    """`corpus.decontaminate`: documents with text of these evaluation sets are dropped."""

    against: list[EvaluationSet]
    """The evaluation sets."""

    ngram: int = NGRAM
    """How many words in a row a document may not share with an item."""

    min_words: int = MIN_WORDS
    """Shorter items are not searched for."""

    def __post_init__(self) -> None:
        if not self.against:
            raise ValueError("against is empty; name at least one evaluation set")
        if not 2 <= self.min_words <= self.ngram:
            raise ValueError(f"min_words ({self.min_words}) has to be at least 2 and at most ngram ({self.ngram})")

    def write_index(self, folder: Path) -> None:
        """Read the evaluation sets and write an index of their texts to `folder`, unless an equal one is there already.

        Raises UserError for a set that cannot be read or has no text to search for.
        """
        files_of_sets = [_list_files(evaluation_set) for evaluation_set in self.against]
        digests = [[_digest_file(path) for path, _ in files] for files in files_of_sets]
        state = json.dumps([asdict(self), digests])
        key = xxhash.xxh3_128_hexdigest(state.encode())
        if (folder / REPORT).exists() and _read_report(folder)["key"] == key:
            return

        tables = []
        reports = []
        labels = []
        for evaluation_set, files in zip(self.against, files_of_sets, strict=True):
            set_labels, texts = _collect_texts(_read_rows(evaluation_set, files))
            indexed = index_set(texts, len(set_labels), self.ngram, self.min_words)
            if not indexed.counts["long"] and not indexed.counts["short"]:
                raise UserError(
                    f"corpus.decontaminate: {evaluation_set.name} has {len(set_labels):,} rows and no text of "
                    f"{self.min_words} words or more; correct `columns`, lower min_words or leave the set out"
                )
            # In the tables of one set, an item is the number of a text; here it is a row, numbered over all sets.
            for table in (indexed.tables.runs, indexed.tables.whole_texts):
                table["item"] = indexed.first_rows[table["item"]] + len(labels)
            tables.append(indexed.tables)
            reports.append({"name": evaluation_set.name, "rows": len(set_labels), **indexed.counts})
            labels += set_labels

        folder.mkdir(parents=True, exist_ok=True)
        merged = merge_tables(tables)
        # A run that several rows have is kept for the first of them.
        _, first = np.unique(merged.runs["hash"], return_index=True)
        with atomic_path(folder / INDEX) as temporary, open(temporary, "wb") as file:
            np.savez(file, runs=merged.runs[first], whole=merged.whole_texts)
        report = {"key": key, "sets": reports, "items": labels}
        write_text(folder / REPORT, json.dumps(report, ensure_ascii=False))

    def make_filter(self, folder: Path) -> "DecontaminationFilter":
        """Build the filter that drops documents by the index that `write_index` wrote to `folder`."""
        return DecontaminationFilter(self, folder)


def evaluation_sets(folder: Path) -> list[dict]:
    """Return the counts that `write_index` made of each set: its rows, and its different texts by kind.

    Texts counted as `long` and `short` are searched for; those counted as `too_short` and `form` are not.
    """
    return _read_report(folder)["sets"]


class DecontaminationFilter(Filter):
    """Drop documents that hold text of an evaluation item."""

    name = "decontamination"

    def __init__(self, settings: Decontaminate, folder: Path):
        super().__init__(settings)
        self.folder = folder
        self._index: TextIndex | None = None
        self._labels: list[str] = []

    def filter(self, document: Document) -> Verdict:
        if self._index is None:
            self._index = self._read_index()
            self._labels = _read_report(self.folder)["items"]

        for item, shared in self._index.find_items([document.text]):
            return Verdict("evaluation_text", f"{self._labels[item]}: {shared!r}")
        return KEPT

    def _read_index(self) -> TextIndex:
        with np.load(self.folder / INDEX) as index:
            tables = IndexTables(index["runs"], index["whole"])
        return TextIndex(tables, self.settings.ngram, self.settings.min_words)


def _list_files(evaluation_set: EvaluationSet) -> list[tuple[Path, str]]:
    if not evaluation_set.path:
        return []
    return find_files(evaluation_set.path, FORMATS["rows"])


def _read_rows(evaluation_set: EvaluationSet, files: list[tuple[Path, str]]) -> Iterator[tuple[str, dict]]:
    """Yield every row of a set with its label, which is shown as the reason why a document was dropped.

    A row without one of the columns is a read error. Raises UserError if there are too many, or no row has a column.
    """
    errors = ReadErrors()
    missing: UserError | None = None
    has_columns = False
    for label, row in _read_all_rows(evaluation_set, files, errors):
        try:
            selected = _select_columns(row, evaluation_set)
        except UserError as error:
            missing = missing or error
            errors.drop_record("no column of that name", label, str(row))
            continue
        has_columns = True
        yield label, selected
    if missing and not has_columns:
        raise missing
    errors.check_dropped_share(f"corpus.decontaminate: {evaluation_set.name}")


def _read_all_rows(
    evaluation_set: EvaluationSet, files: list[tuple[Path, str]], errors: ReadErrors
) -> Iterator[tuple[str, dict]]:
    if evaluation_set.hub:
        rows = read_hub_rows(evaluation_set.hub, evaluation_set.subset, evaluation_set.split, True, None)
        for number, row in rows:
            errors.records += 1
            yield f"{evaluation_set.name}, row {number}", row

    for path, name in files:
        # In a CSV file without a header, the keys of a row are the texts of the first row.
        is_first = True
        for number, row in read_rows(path, errors):
            if is_first and not _has_header(row) and evaluation_set.columns is None:
                yield f"{name}, row 0", {"": list(row)}
            is_first = False
            yield f"{name}, row {number}", row


def _has_header(row: dict) -> bool:
    """Whether the keys of a row are names of columns rather than texts."""
    return all(len(str(key).split()) <= MAX_HEADER_WORDS for key in row)


def _select_columns(row: dict, evaluation_set: EvaluationSet) -> dict:
    if evaluation_set.columns is None:
        return row
    return {name: get_column(row, name, evaluation_set.name) for name in evaluation_set.columns}


def _collect_texts(rows: Iterator[tuple[str, dict]]) -> tuple[list[str], dict[str, list[int]]]:
    """Return the labels of the rows, and for each different text the numbers of the rows that it stands in."""
    labels = []
    texts = {}
    for label, row in rows:
        for text in dict.fromkeys(walk_strings(row)):
            texts.setdefault(text, []).append(len(labels))
        labels.append(label)
    return labels, texts


def _digest_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return xxhash.xxh3_128_hexdigest(file.read())
    except OSError as error:
        raise unreadable_file_error(path, error) from None


def _read_report(folder: Path) -> dict:
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))
