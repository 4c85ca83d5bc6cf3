"""Drop documents that contain text of the evaluation sets, so that a score measures ability and not memory.

An item is a text in a row of an evaluation set: a string in a column, or in a list there. A document is dropped if it
shares a run of `ngram` words with an item (13, as for GPT-3: Brown et al., 2020, arXiv 2005.14165, appendix C), or
contains all of a shorter item. Case and punctuation are ignored; in scripts without spaces a character is a word.

Two kinds of text are not searched for, only counted. One is the form of a set's questions, which recurs (`Choose the
right answer`): runs and shorter items that are in more than MAX_SHARED_ROWS rows, and long items that are in most rows.
The other is items of fewer than `min_words` words, phrases that anyone may write.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from hf_llm.core.atomic_io import atomic_path, write_text
from hf_llm.core.errors import UserError
from hf_llm.data.corpus.dedup.shingles import WordHashes, find_word_spans, hash_windows, hash_words
from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, Verdict
from hf_llm.data.files.file_formats import FORMATS, check_origins, find_files
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import get_column, read_hub_rows, read_rows, unreadable_file_error

MAX_SHARED_ROWS = 10  # rows of a set that may share words before these are taken for the form of its questions
MAX_HEADER_WORDS = 4  # a column name with more words is a text: the file has no header
INDEX = "evaluation_texts.npz"
REPORT = "evaluation_texts.json"

# The two kinds of text that are searched for. A run of `ngram` words: its hash, and the number of its item.
RUN = np.dtype([("hash", "<u8"), ("item", "<i8")])
# A whole shorter text: the hash of its first `min_words` words, its number of words, the hash of all, and its item.
WHOLE_TEXT = np.dtype([("begin", "<u8"), ("words", "<i8"), ("hash", "<u8"), ("item", "<i8")])


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

    ngram: int = 13
    """How many words in a row a document may not share with an item."""

    min_words: int = 6
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

        indexes = []
        reports = []
        labels = []
        for evaluation_set, files in zip(self.against, files_of_sets, strict=True):
            set_labels, texts = _collect_texts(_read_rows(evaluation_set, files))
            index, counts = _index_set(texts, len(set_labels), self)
            if not counts["long"] and not counts["short"]:
                raise UserError(
                    f"corpus.decontaminate: {evaluation_set.name} has {len(set_labels):,} rows and no text of "
                    f"{self.min_words} words or more; correct `columns`, lower min_words or leave the set out"
                )
            # In the index of one set, items are numbered from 0; number them over all sets.
            for table in index.values():
                table["item"] += len(labels)
            indexes.append(index)
            reports.append({"name": evaluation_set.name, "rows": len(set_labels), **counts})
            labels += set_labels

        folder.mkdir(parents=True, exist_ok=True)
        index = _merge_indexes(indexes)
        with atomic_path(folder / INDEX) as temporary, open(temporary, "wb") as file:
            np.savez(file, runs=index["runs"], whole=index["whole"])
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
        self._index: _EvaluationIndex | None = None

    def filter(self, document: Document) -> Verdict:
        if self._index is None:
            self._index = _EvaluationIndex(self.folder, self.settings)

        text = document.text
        words = hash_words([text])
        matches = chain(self._index.find_runs(words), self._index.find_whole_texts(words))
        for first, count, item in matches:
            starts, ends = find_word_spans(text)
            start = starts[first]
            end = ends[first + count - 1]
            shared = " ".join(text[start:end].split())
            if any(map(str.isalpha, shared)):  # numbers alone may be equal by chance
                label = self._index.labels[item]
                return Verdict("evaluation_text", f"{label}: {shared!r}")
        return KEPT


class _EvaluationIndex:
    """The index that `write_index` wrote, in memory.

    A match is given as its first word in the document, its number of words, and the number of the item.
    """

    def __init__(self, folder: Path, settings: Decontaminate):
        with np.load(folder / INDEX) as index:
            self.runs = index["runs"]
            self.whole_texts = index["whole"]
        self.run_hashes = _HashSet(self.runs["hash"])
        self.begin_hashes = _HashSet(self.whole_texts["begin"])
        self.labels = _read_report(folder)["items"]
        self.settings = settings

    def find_runs(self, words: WordHashes) -> Iterator[tuple[int, int, int]]:
        """Yield the matches of runs: `ngram` words in a row that an item has, too."""
        hashes, first_words = hash_windows(words, self.settings.ngram)
        for window, row in self.run_hashes.find_known(hashes):
            yield int(first_words[window]), self.settings.ngram, int(self.runs["item"][row])

    def find_whole_texts(self, words: WordHashes) -> Iterator[tuple[int, int, int]]:
        """Yield the matches of whole texts that are shorter than a run.

        They are looked up by their first `min_words` words, then compared as a whole.
        """
        hashes, first_words = hash_windows(words, self.settings.min_words)
        for window, row in self.begin_hashes.find_known(hashes):
            first = int(first_words[window])
            # Several texts may begin with the same words: they are in consecutive rows.
            while row < len(self.whole_texts) and self.whole_texts["begin"][row] == hashes[window]:
                count = int(self.whole_texts["words"][row])
                candidate = words.hashes[first : first + count]
                if len(candidate) == count and _hash_sequence(candidate) == self.whole_texts["hash"][row]:
                    yield first, count, int(self.whole_texts["item"][row])
                row += 1


class _HashSet:
    """A set of sorted hashes. A table of their first bits quickly excludes nearly all other hashes."""

    PREFIX_BITS = 22

    def __init__(self, hashes: np.ndarray):
        self.hashes = np.ascontiguousarray(hashes)
        self.has_prefix = np.zeros(1 << self.PREFIX_BITS, bool)
        self.has_prefix[self._prefix_of_each(hashes)] = True

    def _prefix_of_each(self, hashes: np.ndarray) -> np.ndarray:
        return hashes >> np.uint64(64 - self.PREFIX_BITS)

    def find_known(self, hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield those of `hashes` that are in the set: the index in `hashes`, and the first row in the set."""
        likely = np.flatnonzero(self.has_prefix[self._prefix_of_each(hashes)])
        rows = np.searchsorted(self.hashes, hashes[likely])
        nearest = self.hashes[np.minimum(rows, len(self.hashes) - 1)]
        is_known = nearest == hashes[likely]
        yield from zip(likely[is_known].tolist(), rows[is_known].tolist(), strict=True)


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
        for text in dict.fromkeys(_walk_strings(row)):
            texts.setdefault(text, []).append(len(labels))
        labels.append(label)
    return labels, texts


def _walk_strings(value: object) -> Iterator[str]:
    """Yield all strings in a value of a row, except URLs."""
    if isinstance(value, str):
        is_url = "://" in value and len(value.split()) <= 1
        if not is_url:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk_strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk_strings(item)


def _index_set(
    texts: dict[str, list[int]], row_count: int, settings: Decontaminate
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the index of one set, and the counts that `evaluation_sets` shows.

    `texts` are the different texts, each with the numbers of its rows. The index is RUN (runs,) and WHOLE_TEXT
    (short texts,).
    """
    words = hash_words(list(texts))
    lengths = np.diff(words.bounds)
    is_long = lengths >= settings.ngram
    is_too_short = lengths < settings.min_words
    row_counts = np.array([len(rows) for rows in texts.values()], np.int64)
    first_row = np.array([rows[0] for rows in texts.values()], np.int64)

    # A text in many rows is the form of the questions, if it is in most rows or is not a long text.
    is_frequent = row_counts > MAX_SHARED_ROWS
    is_in_most_rows = row_counts > row_count / 2
    is_form = is_frequent & (is_in_most_rows | ~is_long)

    # Long texts are searched for by their runs. One that has only common runs is form, too.
    hashes, first_words = hash_windows(words, settings.ngram)
    text_of_run = np.searchsorted(words.bounds, first_words, side="right") - 1
    runs, is_distinctive = _select_distinctive_runs(hashes, text_of_run, is_form[text_of_run], first_row)
    is_form |= is_long & ~is_distinctive

    # Shorter texts are searched for as a whole.
    is_short = ~is_too_short & ~is_long & ~is_form
    short_texts = np.flatnonzero(is_short)
    whole_texts = _hash_whole_texts(words, short_texts, settings.min_words)
    whole_texts["item"] = first_row[short_texts]

    is_found_by_runs = is_long & ~is_form
    is_ignored_form = is_form & ~is_too_short
    counts = {
        "long": int(is_found_by_runs.sum()),
        "short": int(is_short.sum()),
        "too_short": int(is_too_short.sum()),
        "form": int(is_ignored_form.sum()),
    }
    return {"runs": runs, "whole": whole_texts}, counts


def _hash_whole_texts(words: WordHashes, numbers: np.ndarray, min_words: int) -> np.ndarray:
    """Hash the texts of these numbers: WHOLE_TEXT (texts,), their items not yet filled in."""
    whole_texts = np.zeros(len(numbers), WHOLE_TEXT)
    for row, number in enumerate(numbers):
        start = words.bounds[number]
        end = words.bounds[number + 1]
        whole_texts["begin"][row] = _hash_sequence(words.hashes[start : start + min_words])
        whole_texts["words"][row] = end - start
        whole_texts["hash"][row] = _hash_sequence(words.hashes[start:end])
    return whole_texts


def _select_distinctive_runs(
    hashes: np.ndarray, texts: np.ndarray, is_form: np.ndarray, first_row: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Select the runs that are in few rows, and not in a text that is the form of the questions.

    For every run, `hashes`, uint64 (runs,), is its hash, `texts`, int64 (runs,), the text it is in, and `is_form`, bool
    (runs,), whether that text is form. `first_row`, int64 (texts,), is the first row that has each text.

    Returns the selected runs, RUN (selected,), each once with the first row that has it, sorted by hash; and which
    texts have a selected run, bool (texts,).
    """
    # Sort by hash and then by row, so that equal runs are next to each other.
    rows = first_row[texts]
    order = np.lexsort((rows, hashes))
    hashes = hashes[order]
    rows = rows[order]
    texts = texts[order]
    is_form = is_form[order]

    is_first_of_hash = _differs_from_previous(hashes)
    is_first_of_row = is_first_of_hash | _differs_from_previous(rows)
    number_of_hash = np.cumsum(is_first_of_hash) - 1  # 0 for all runs of the first hash, 1 for those of the next ...

    # For each different hash: the number of rows that have it, and of texts that are form.
    row_counts = np.bincount(number_of_hash, weights=is_first_of_row)
    form_counts = np.bincount(number_of_hash, weights=is_form)
    is_common = (row_counts > MAX_SHARED_ROWS) | (form_counts > 0)

    runs = np.empty(len(is_common), RUN)
    runs["hash"] = hashes[is_first_of_hash]
    runs["item"] = rows[is_first_of_hash]

    has_distinctive_run = np.zeros(len(first_row), bool)
    is_run_distinctive = ~is_common[number_of_hash]
    has_distinctive_run[texts[is_run_distinctive]] = True
    return runs[~is_common], has_distinctive_run


def _differs_from_previous(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it; the first does. bool, of the same length."""
    differs = np.ones(len(values), bool)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _merge_indexes(indexes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Merge the indexes of all sets, sorted by hash. A run that several sets have is kept for the first of them."""
    runs = np.concatenate([index["runs"] for index in indexes])
    _, first = np.unique(runs["hash"], return_index=True)
    whole_texts = np.concatenate([index["whole"] for index in indexes])
    by_begin = np.argsort(whole_texts["begin"], kind="stable")
    return {"runs": runs[first], "whole": whole_texts[by_begin]}


def _hash_sequence(hashes: np.ndarray) -> np.uint64:
    """Hash some consecutive words to one number."""
    words = WordHashes(hashes, np.array([0, len(hashes)]))
    window_hashes, _ = hash_windows(words, len(hashes))
    return window_hashes[0]


def _digest_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return xxhash.xxh3_128_hexdigest(file.read())
    except OSError as error:
        raise unreadable_file_error(path, error) from None


def _read_report(folder: Path) -> dict:
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))
