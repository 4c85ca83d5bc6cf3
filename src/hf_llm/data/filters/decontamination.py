"""Drop documents that hold text of the evaluation sets, so that a score says what the model can do, not what it read.

A document goes if it shares a run of `ngram` words (13, as for GPT-3: Brown et al., 2020, arXiv 2005.14165, appendix C)
with an item, or holds the whole of an item that is shorter than that. Case and punctuation make no difference; in
scripts without spaces a character is a word. An item is a text of a row: a string in a column, or in a list there.

What stands in more than TEMPLATE different items of one set is the form of its questions, not their content, and
condemns nothing. Items of fewer than `min_words` words are phrases anyone may write; they are counted, not looked for.
"""

import json
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.data.deduplication.shingles import Words, windows, word_hashes, word_spans
from hf_llm.data.sources import FORMATS, files_under
from hf_llm.errors import UserError

TEMPLATE = 10  # items of a set that may have words in common before these are taken for the set's form
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
    min_words: int = field(default=8, metadata={"help": "shorter items are not looked for"})

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
        sets = [_Items(each, paths, self) for each, paths in zip(self.against, files, strict=True)]
        for each in sets:
            each.check(self)
        folder.mkdir(parents=True, exist_ok=True)
        labels = list(chain.from_iterable(each.labels for each in sets))
        _write(folder / INDEX, lambda file: np.savez(file, **_index(sets)))
        report = {"key": key, "sets": [each.report for each in sets], "items": labels}
        _write(folder / REPORT, lambda file: file.write(json.dumps(report, ensure_ascii=False).encode()))

    def step(self, folder: Path) -> BaseFilter:
        """The step that drops documents, by what `prepare` wrote to `folder`."""
        return DecontaminationFilter(self, folder)


def evaluation_sets(folder: Path) -> list[dict]:
    """What `prepare` found in each set: rows, and different texts that are long, short, too short, only a form."""
    return _report(folder)["sets"]


class DecontaminationFilter(BaseFilter):
    """Drop documents that hold text of an evaluation item."""

    name = "decontamination"

    def __init__(self, settings: Decontaminate, folder: Path):
        super().__init__()
        self.settings = settings
        self.folder = folder
        self._index: dict[str, np.ndarray] | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self._index is None:
            with np.load(self.folder / INDEX) as index:
                self._index = dict(index)
        words = word_hashes([doc.text])
        found = self._shared_run(words) or self._whole_item(words)
        if found is None:
            return True
        first, count, item = found
        starts, ends = word_spans(doc.text)
        shared = " ".join(doc.text[starts[first] : ends[first + count - 1]].split())
        doc.metadata["because"] = f"{_report(self.folder)['items'][item]}: {shared!r}"
        return False, "evaluation_text"

    def _shared_run(self, words: Words) -> tuple[int, int, int] | None:
        """First word, number of words and item of the first run that is in an item."""
        hashes, places = windows(words, self.settings.ngram)
        rows = _find(self._index["runs"], hashes)
        hits = np.flatnonzero(rows >= 0)
        if not len(hits):
            return None
        return int(places[hits[0]]), self.settings.ngram, int(self._index["run_items"][rows[hits[0]]])

    def _whole_item(self, words: Words) -> tuple[int, int, int] | None:
        """The same for items shorter than a run: found by how they begin, then compared to their end."""
        index = self._index
        hashes, places = windows(words, self.settings.min_words)
        rows = _find(index["begins"], hashes)
        for place, row in zip(places[rows >= 0], rows[rows >= 0], strict=True):
            while row < len(index["begins"]) and index["begins"][row] == index["begins"][rows[place]]:
                count = int(index["short_words"][row])
                if _run(words.hashes[place : place + count], count) == index["shorts"][row]:
                    return int(place), count, int(index["short_items"][row])
                row += 1
        return None


class _Items:
    """The texts of one evaluation set, each once, and what to look for."""

    def __init__(self, evaluation_set: EvaluationSet, files: list[tuple[Path, str]], settings: Decontaminate):
        self.name = evaluation_set.name
        self.texts: dict[str, set[int]] = {}  # numbers of the rows each stands in
        self.labels: list[str] = []
        for label, texts in _rows_of(evaluation_set, files, settings):
            for text in texts:
                self.texts.setdefault(text, set()).add(len(self.labels))
            self.labels.append(label)
        self._hash(settings)

    def _hash(self, settings: Decontaminate) -> None:
        texts = list(self.texts)
        first = np.array([min(rows) for rows in self.texts.values()], np.int64)
        words = word_hashes(texts)
        counts = np.diff(words.bounds)
        hashes, places = windows(words, settings.ngram)
        text = np.searchsorted(words.bounds, places, side="right") - 1
        self.runs, self.run_rows, kept = _distinctive(hashes, first[text])
        common = sum(len(rows) > TEMPLATE for rows in self.texts.values())
        begins, at = windows(words, settings.min_words)
        begin_of = dict(zip(at.tolist(), begins.tolist(), strict=True))
        self.shorts = [
            (begin_of[int(start)], int(_run(words.hashes[start : start + count], count)), int(count), int(row))
            for start, count, row, rows in zip(words.bounds, counts, first, self.texts.values(), strict=False)
            if settings.min_words <= count < settings.ngram and len(rows) <= TEMPLATE
        ]
        long = int((counts >= settings.ngram).sum())
        self.report = {
            "name": self.name,
            "rows": len(self.labels),
            "long": long,
            "short": len(self.shorts),
            "too_short": int((counts < settings.min_words).sum()),
            "form_only": long - len(np.unique(text[kept])) + common,
        }

    def check(self, settings: Decontaminate) -> None:
        """Raise UserError where there is nothing to look for."""
        if not len(self.runs) and not self.shorts:
            raise UserError(
                f"corpus.decontaminate: {self.name} has {len(self.labels):,} rows and no text of "
                f"{settings.min_words} words or more; correct `columns`, lower min_words or leave the set out"
            )
