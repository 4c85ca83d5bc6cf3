"""Index texts by their runs of words and find them in others: evaluation items in what a model is trained on.

Two texts overlap if they share a run of `ngram` words (13, as for GPT-3: Brown et al., 2020, arXiv 2005.14165, appendix
C), or one contains all of a shorter one. Case and punctuation are ignored; in scripts without spaces a character is a
word.

Two kinds of text are not searched for, only counted. One is the form of a set's questions, which recurs (`Choose the
right answer`): runs and shorter texts that are in more than MAX_SHARED_ROWS rows, and long texts that are in most rows.
The other is texts of fewer than `min_words` words, phrases that anyone may write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from hf_llm.data.corpus.dedup.shingles import WordHashes, find_word_spans, hash_windows, hash_words

NGRAM = 13
MIN_WORDS = 6
MAX_SHARED_ROWS = 10  # rows of a set that may share words before these are taken for the form of its questions

# The two kinds of text that are searched for. A run of `ngram` words: its hash, and the number of its item.
RUN = np.dtype([("hash", "<u8"), ("item", "<i8")])
# A whole shorter text: the hash of its first `min_words` words, its number of words, the hash of all, and its item.
WHOLE_TEXT = np.dtype([("begin", "<u8"), ("words", "<i8"), ("hash", "<u8"), ("item", "<i8")])


@dataclass
class IndexTables:
    """What is searched for: RUN (runs,), sorted by hash, and WHOLE_TEXT (shorter texts,), sorted by `begin`."""

    runs: np.ndarray
    whole_texts: np.ndarray


@dataclass
class IndexedSet:
    """The texts of one set of rows. Of its tables, an item is the number of a text."""

    tables: IndexTables
    counts: dict[str, int]
    """How many texts there are of each kind: `long` and `short` are searched for, `too_short` and `form` are not."""
    first_rows: np.ndarray
    """The first row that each text stands in: int64 (texts,)."""


def walk_strings(value: object) -> Iterator[str]:
    """Yield all strings in a value of a row, except URLs."""
    if isinstance(value, str):
        is_url = "://" in value and len(value.split()) <= 1
        if not is_url:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from walk_strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk_strings(item)


def index_set(
    texts: dict[str, list[int]], row_count: int, ngram: int = NGRAM, min_words: int = MIN_WORDS
) -> IndexedSet:
    """Index the texts of a set of `row_count` rows: each different text, with the numbers of the rows it stands in."""
    words = hash_words(list(texts))
    lengths = np.diff(words.bounds)
    is_long = lengths >= ngram
    is_too_short = lengths < min_words
    row_counts = np.array([len(rows) for rows in texts.values()], np.int64)
    first_rows = np.array([rows[0] for rows in texts.values()], np.int64)

    # A text in many rows is the form of the questions, if it is in most rows or is not a long text.
    is_frequent = row_counts > MAX_SHARED_ROWS
    is_in_most_rows = row_counts > row_count / 2
    is_form = is_frequent & (is_in_most_rows | ~is_long)

    # Long texts are searched for by their runs. One that has only common runs is form, too.
    hashes, first_words = hash_windows(words, ngram)
    text_of_run = np.searchsorted(words.bounds, first_words, side="right") - 1
    runs, is_distinctive = _select_distinctive_runs(hashes, text_of_run, is_form[text_of_run], first_rows)
    is_form |= is_long & ~is_distinctive

    # Shorter texts are searched for as a whole.
    is_short = ~is_too_short & ~is_long & ~is_form
    whole_texts = _hash_whole_texts(words, np.flatnonzero(is_short), min_words)

    is_found_by_runs = is_long & ~is_form
    is_ignored_form = is_form & ~is_too_short
    counts = {
        "long": int(is_found_by_runs.sum()),
        "short": int(is_short.sum()),
        "too_short": int(is_too_short.sum()),
        "form": int(is_ignored_form.sum()),
    }
    return IndexedSet(IndexTables(runs, whole_texts), counts, first_rows)


def merge_tables(tables: list[IndexTables]) -> IndexTables:
    """Merge tables whose items are numbered over all of them; equal hashes stay in the order of `tables`."""
    runs = np.concatenate([table.runs for table in tables])
    whole_texts = np.concatenate([table.whole_texts for table in tables])
    by_hash = np.argsort(runs["hash"], kind="stable")
    by_begin = np.argsort(whole_texts["begin"], kind="stable")
    return IndexTables(runs[by_hash], whole_texts[by_begin])


class TextIndex:
    """Finds the items of tables in texts."""

    def __init__(self, tables: IndexTables, ngram: int = NGRAM, min_words: int = MIN_WORDS):
        self.runs = tables.runs
        self.whole_texts = tables.whole_texts
        self.ngram = ngram
        self.min_words = min_words
        self._run_hashes = _HashSet(self.runs["hash"])
        self._begin_hashes = _HashSet(self.whole_texts["begin"])

    def find_items(self, texts: list[str], known: np.ndarray | None = None) -> Iterator[tuple[int, str]]:
        """Yield every item that one of the texts shares words with, and these words; an item may come several times.

        Words without a letter do not count: numbers alone may be equal by chance. Items that are `known`, bool
        (items,), are passed over; the caller may add to these while it reads.
        """
        words = hash_words(texts)
        spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of the words of a text, by its number
        for first, count, item in chain(self._find_runs(words), self._find_whole_texts(words)):
            if known is not None and known[item]:
                continue
            number = _number_of_text(words, first)
            if number not in spans:
                spans[number] = find_word_spans(texts[number])
            starts, ends = spans[number]
            first_in_text = first - words.bounds[number]
            shared = texts[number][starts[first_in_text] : ends[first_in_text + count - 1]]
            if any(map(str.isalpha, shared)):
                yield item, " ".join(shared.split())

    def _find_runs(self, words: WordHashes) -> Iterator[tuple[int, int, int]]:
        """Yield each run of `ngram` words that an item has, too: its first word, `ngram`, and the item."""
        hashes, first_words = hash_windows(words, self.ngram)
        for window, row in self._run_hashes.find_known(hashes):
            while row < len(self.runs) and self.runs["hash"][row] == hashes[window]:
                yield int(first_words[window]), self.ngram, int(self.runs["item"][row])
                row += 1

    def _find_whole_texts(self, words: WordHashes) -> Iterator[tuple[int, int, int]]:
        """Yield each item shorter than a run that is there as a whole: its first word, its length, and the item.

        They are looked up by their first `min_words` words, then compared as a whole.
        """
        hashes, first_words = hash_windows(words, self.min_words)
        for window, row in self._begin_hashes.find_known(hashes):
            first = int(first_words[window])
            end_of_text = words.bounds[_number_of_text(words, first) + 1]
            # Several items may begin with the same words: they are in consecutive rows.
            while row < len(self.whole_texts) and self.whole_texts["begin"][row] == hashes[window]:
                item = self.whole_texts[row]
                count = int(item["words"])
                candidate = words.hashes[first : min(first + count, end_of_text)]
                is_whole = len(candidate) == count
                if is_whole and _hash_sequence(candidate) == item["hash"]:
                    yield first, count, int(item["item"])
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


def _number_of_text(words: WordHashes, word: int) -> int:
    """Return the number of the text that a word is in."""
    return int(np.searchsorted(words.bounds, word, side="right")) - 1


def _hash_whole_texts(words: WordHashes, numbers: np.ndarray, min_words: int) -> np.ndarray:
    """Hash the texts of these numbers, which are their items: WHOLE_TEXT (texts,), sorted by `begin`."""
    whole_texts = np.zeros(len(numbers), WHOLE_TEXT)
    whole_texts["item"] = numbers
    for row, number in enumerate(numbers):
        start = words.bounds[number]
        end = words.bounds[number + 1]
        whole_texts["begin"][row] = _hash_sequence(words.hashes[start : start + min_words])
        whole_texts["words"][row] = end - start
        whole_texts["hash"][row] = _hash_sequence(words.hashes[start:end])
    return whole_texts[np.argsort(whole_texts["begin"], kind="stable")]


def _select_distinctive_runs(
    hashes: np.ndarray, texts: np.ndarray, is_form: np.ndarray, first_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Select the runs that are in few rows, and not in a text that is the form of the questions.

    For every run, `hashes`, uint64 (runs,), is its hash, `texts`, int64 (runs,), the text it is in, and `is_form`, bool
    (runs,), whether that text is form. `first_rows`, int64 (texts,), is the first row that has each text.

    Returns the selected runs, RUN (selected,), each once for every text that has it, sorted by hash and then by first
    row; and which texts have a selected run, bool (texts,).
    """
    # Sort by hash and then by row, so that equal runs are next to each other.
    rows = first_rows[texts]
    order = np.lexsort((texts, rows, hashes))
    hashes = hashes[order]
    rows = rows[order]
    texts = texts[order]
    is_form = is_form[order]

    is_first_of_hash = _differs_from_previous(hashes)
    is_first_of_row = is_first_of_hash | _differs_from_previous(rows)
    is_first_of_text = is_first_of_hash | _differs_from_previous(texts)
    number_of_hash = np.cumsum(is_first_of_hash) - 1  # 0 for all runs of the first hash, 1 for those of the next ...

    # For each different hash: the number of rows that have it, and of texts that are form.
    row_counts = np.bincount(number_of_hash, weights=is_first_of_row)
    form_counts = np.bincount(number_of_hash, weights=is_form)
    is_common = (row_counts > MAX_SHARED_ROWS) | (form_counts > 0)

    is_run_distinctive = ~is_common[number_of_hash]
    has_distinctive_run = np.zeros(len(first_rows), bool)
    has_distinctive_run[texts[is_run_distinctive]] = True

    is_selected = is_run_distinctive & is_first_of_text
    runs = np.empty(int(is_selected.sum()), RUN)
    runs["hash"] = hashes[is_selected]
    runs["item"] = texts[is_selected]
    return runs, has_distinctive_run


def _differs_from_previous(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it; the first does. bool, of the same length."""
    differs = np.ones(len(values), bool)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _hash_sequence(hashes: np.ndarray) -> np.uint64:
    """Hash some consecutive words to one number."""
    words = WordHashes(hashes, np.array([0, len(hashes)]))
    window_hashes, _ = hash_windows(words, len(hashes))
    return window_hashes[0]
