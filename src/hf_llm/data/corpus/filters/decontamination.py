"""Drop documents that hold text of the evaluation sets, so that a score says what the model can do, not what it read.

A document goes if it shares a run of `ngram` words (13, as for GPT-3: Brown et al., 2020, arXiv 2005.14165, appendix C)
with an item, or holds the whole of an item that is shorter than that. Case and punctuation make no difference; in
scripts without spaces a character is a word. An item is a text of a row: a string in a column, or in a list there.

What stands in more than FORM different texts of one set, or as a text of its own in most of its rows, is the form of
its questions, not their content, and condemns nothing. Texts of fewer than `min_words` words are phrases anyone may
write; they are counted, not looked for.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.core.atomic_io import whole, write_text
from hf_llm.core.errors import UserError
from hf_llm.data.corpus.dedup.shingles import Words, windows, word_hashes, word_spans
from hf_llm.data.corpus.sources import FORMATS, files_under
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import column, file_rows, hub_rows, unreadable

FORM = 10  # texts of a set that may have words in common before these are taken for the set's form
INDEX, REPORT = "evaluation_texts.npz", "evaluation_texts.json"


@dataclass
class EvaluationSet:
    """Rows the model will be judged on: exactly one of `path` and `hub`."""

    path: str | None = field(default=None, metadata={"help": "a file of rows, a folder or a glob pattern"})
    hub: str | None = field(default=None, metadata={"help": "id of a data set on the Hub"})
    subset: str | None = field(default=None, metadata={"help": "of the Hub data set"})
    split: str = field(default="test", metadata={"help": "of the Hub data set"})
    columns: list[str] | None = field(default=None, metadata={"help": "where the texts are; all columns if left out"})

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError("an evaluation set has exactly one of `path` and `hub`")
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
    """Documents with text of these evaluation sets are dropped."""

    against: list[EvaluationSet]
    ngram: int = field(default=13, metadata={"help": "words in a row that a document may not share with an item"})
    min_words: int = field(default=6, metadata={"help": "shorter items are not looked for"})

    def __post_init__(self) -> None:
        if not self.against:
            raise ValueError("against is empty; name at least one evaluation set")
        if not 2 <= self.min_words <= self.ngram:
            raise ValueError(f"min_words ({self.min_words}) has to be at least 2 and at most ngram ({self.ngram})")

    def prepare(self, folder: Path) -> None:
        """Read the evaluation sets and write what is looked for to `folder`, unless it is there already.

        Raises UserError for a set that cannot be read or holds nothing to look for.
        """
        files = [files_under(each.path, FORMATS["rows"]) if each.path else [] for each in self.against]
        contents = [[_digest(path) for path, _ in each] for each in files]
        key = xxhash.xxh3_128_hexdigest(json.dumps([asdict(self), contents]).encode())
        if (folder / REPORT).exists() and _report(folder)["key"] == key:
            return
        sought, sets, labels = [], [], []
        for each, paths in zip(self.against, files, strict=True):
            names, texts = _texts(_rows(each, paths))
            found, counts = _sought(texts, len(names), self)
            if not counts["long"] and not counts["short"]:
                raise UserError(
                    f"corpus.decontaminate: {each.name} has {len(names):,} rows and no text of {self.min_words} words "
                    "or more; correct `columns`, lower min_words or leave the set out"
                )
            for kind in found.values():
                kind["item"] += len(labels)
            sought.append(found)
            sets.append({"name": each.name, "rows": len(names), **counts})
            labels += names
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / INDEX) as temporary, open(temporary, "wb") as file:
            np.savez(file, **_index(sought))
        write_text(folder / REPORT, json.dumps({"key": key, "sets": sets, "items": labels}, ensure_ascii=False))

    def step(self, folder: Path) -> BaseFilter:
        """The step that drops documents, by what `prepare` wrote to `folder`."""
        return DecontaminationFilter(self, folder)


def evaluation_sets(folder: Path) -> list[dict]:
    """What `prepare` found in each set: its rows, and how many different texts there are of each kind.

    `long` and `short` ones are looked for; `too_short` ones and those that are the set's `form` are not.
    """
    return _report(folder)["sets"]


class DecontaminationFilter(BaseFilter):
    """Drop documents that hold text of an evaluation item."""

    name = "decontamination"

    def __init__(self, settings: Decontaminate, folder: Path):
        super().__init__()
        self.settings = settings
        self.folder = folder
        self._sought: _Sought | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self._sought is None:
            self._sought = _Sought(self.folder, self.settings)
        words = word_hashes([doc.text])
        for first, count, item in chain(self._sought.runs_in(words), self._sought.whole_texts_in(words)):
            starts, ends = word_spans(doc.text)
            shared = " ".join(doc.text[starts[first] : ends[first + count - 1]].split())
            if any(map(str.isalpha, shared)):  # numbers in a row are anyone's
                doc.metadata["because"] = f"{self._sought.labels[item]}: {shared!r}"
                return False, "evaluation_text"
        return True


class _Sought:
    """What `prepare` wrote, in memory. Finds it as first word, number of words, and number of the item."""

    def __init__(self, folder: Path, settings: Decontaminate):
        with np.load(folder / INDEX) as index:
            self.runs, self.whole = index["runs"], index["whole"]
        self.known_runs, self.known_begins = _Sorted(self.runs["hash"]), _Sorted(self.whole["begin"])
        self.labels = _report(folder)["items"]
        self.settings = settings

    def runs_in(self, words: Words) -> Iterator[tuple[int, int, int]]:
        """The runs of a document that are in an item."""
        hashes, places = windows(words, self.settings.ngram)
        for place, row in self.known_runs.among(hashes):
            yield int(places[place]), self.settings.ngram, int(self.runs["item"][row])

    def whole_texts_in(self, words: Words) -> Iterator[tuple[int, int, int]]:
        """The same of texts shorter than a run: found by how they begin, then compared to their end."""
        hashes, places = windows(words, self.settings.min_words)
        for place, row in self.known_begins.among(hashes):
            while row < len(self.whole) and self.whole["begin"][row] == hashes[place]:
                count = int(self.whole["words"][row])
                here = words.hashes[places[place] : places[place] + count]
                if len(here) == count and _hash(here) == self.whole["hash"][row]:
                    yield int(places[place]), count, int(self.whole["item"][row])
                row += 1


class _Sorted:
    """Sorted hashes, and a table of how they begin by which nearly all that are not among them are told."""

    BITS = 22

    def __init__(self, hashes: np.ndarray):
        self.hashes = np.ascontiguousarray(hashes)
        self.begins = np.zeros(1 << self.BITS, bool)
        self.begins[self._begin(hashes)] = True

    def _begin(self, hashes: np.ndarray) -> np.ndarray:
        return hashes >> np.uint64(64 - self.BITS)

    def among(self, hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """Which of these hashes are known: the number of each, and the first row it has here."""
        likely = np.flatnonzero(self.begins[self._begin(hashes)])
        rows = np.searchsorted(self.hashes, hashes[likely])
        known = self.hashes[np.minimum(rows, len(self.hashes) - 1)] == hashes[likely]
        yield from zip(likely[known].tolist(), rows[known].tolist(), strict=True)


RUN = np.dtype([("hash", "<u8"), ("item", "<i8")])
WHOLE = np.dtype([("begin", "<u8"), ("words", "<i8"), ("hash", "<u8"), ("item", "<i8")])


def _rows(evaluation_set: EvaluationSet, files: list[tuple[Path, str]]) -> Iterator[tuple[str, dict]]:
    """Every row of a set, and what it is called in explanations."""
    if evaluation_set.hub:
        rows = hub_rows(evaluation_set.hub, evaluation_set.subset, evaluation_set.split, True, None)
        for number, row in rows:
            yield f"{evaluation_set.name}, row {number}", _chosen(row, evaluation_set)
    faults = Faults()
    for path, name in files:
        for count, (number, row) in enumerate(file_rows(path, faults)):
            if not count and any(len(str(key).split()) > 4 for key in row):
                yield f"{name}, row 0", {"": list(row)}  # a CSV without a header: its first row went for the names
            yield f"{name}, row {number}", _chosen(row, evaluation_set)
    faults.check(f"corpus.decontaminate: {evaluation_set.name}")


def _chosen(row: dict, evaluation_set: EvaluationSet) -> dict:
    names = evaluation_set.columns
    return row if names is None else {name: column(row, name, evaluation_set.name) for name in names}


def _texts(rows: Iterator[tuple[str, dict]]) -> tuple[list[str], dict[str, list[int]]]:
    """The rows' labels, and the numbers of the rows each different text stands in."""
    labels, texts = [], {}
    for label, row in rows:
        for text in dict.fromkeys(_strings(row)):
            texts.setdefault(text, []).append(len(labels))
        labels.append(label)
    return labels, texts


def _strings(value: object) -> Iterator[str]:
    """All strings in a value of a row, addresses aside."""
    if isinstance(value, str):
        if "://" not in value or len(value.split()) > 1:
            yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _sought(
    texts: dict[str, list[int]], row_count: int, settings: Decontaminate
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """RUN (runs,) and WHOLE (short texts,) of one set, and the counts of `evaluation_sets`."""
    words = word_hashes(list(texts))
    lengths = np.diff(words.bounds)
    rows = np.array([len(each) for each in texts.values()], np.int64)
    first = np.array([each[0] for each in texts.values()], np.int64)
    form = (rows > FORM) & ((rows > row_count / 2) | (lengths < settings.ngram))

    hashes, places = windows(words, settings.ngram)
    text = np.searchsorted(words.bounds, places, side="right") - 1
    runs, distinctive = _distinctive(hashes, text, form[text], first)
    long = lengths >= settings.ngram
    form |= long & ~distinctive

    short = np.flatnonzero((lengths >= settings.min_words) & ~long & ~form)
    whole = np.empty(len(short), WHOLE)
    for row, number in enumerate(short):
        start, end = words.bounds[number : number + 2]
        begin = _hash(words.hashes[start : start + settings.min_words])
        whole[row] = begin, end - start, _hash(words.hashes[start:end]), first[number]
    too_short = lengths < settings.min_words
    counts = {
        "long": long & ~form,
        "short": ~long & ~form & ~too_short,
        "too_short": too_short,
        "form": form & ~too_short,
    }
    return {"runs": runs, "whole": whole}, {name: int(which.sum()) for name, which in counts.items()}


def _distinctive(
    hashes: np.ndarray, text: np.ndarray, form: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The runs that stand in few rows, RUN (runs,), and which texts have one, bool (texts,).

    `hashes`, `text` and `form` say of every run what it is, which text it is in, and whether that is all form;
    `first` says of every text in which row it stands first.
    """
    order = np.lexsort((first[text], hashes))
    hashes, text, form = hashes[order], text[order], form[order]
    row = first[text]
    new = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    new_row = new | np.append(True, row[1:] != row[:-1])[: len(hashes)]
    number = np.cumsum(new) - 1
    common = (np.bincount(number, new_row) > FORM) | (np.bincount(number, form) > 0)
    runs = np.empty(len(common), RUN)
    runs["hash"], runs["item"] = hashes[new], row[new]
    distinctive = np.zeros(len(first), bool)
    distinctive[text[~common[number]]] = True
    return runs[~common], distinctive


def _index(sought: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What is looked for of all sets, sorted; of a run that several sets have, the first."""
    runs = np.concatenate([each["runs"] for each in sought])
    runs = runs[np.unique(runs["hash"], return_index=True)[1]]
    whole = np.concatenate([each["whole"] for each in sought])
    return {"runs": runs, "whole": whole[np.argsort(whole["begin"], kind="stable")]}


def _hash(hashes: np.ndarray) -> np.uint64:
    """The hash of some words in a row."""
    return windows(Words(hashes, np.array([0, len(hashes)])), len(hashes))[0][0]


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return xxhash.xxh3_128_hexdigest(file.read())
    except OSError as error:
        raise unreadable(path, error) from None


def _report(folder: Path) -> dict:
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))
