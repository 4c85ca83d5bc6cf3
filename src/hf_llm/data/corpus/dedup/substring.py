"""Find passages that occur more than once in a corpus, and cut out every occurrence but the first.

Lee et al. (2022, arXiv 2107.06499) find them with a suffix array of the whole corpus in memory. Here less memory is
needed: a passage of at least n words repeats where a window of n words repeats, so every window of n words is hashed
and written to one of several partitions, by ranges of the hash. Each partition is searched separately for hashes that
occur more than once. A word is cut if it lies in a window that also occurs earlier. Words are compared exactly, the
white space between them is not compared.

    write_windows            one task per shard of documents
    find_repeated_windows    one task per partition
    merge_repeated_windows   once
    PassageCutter            in each task that cuts documents

Two different windows have the same hashes with probability 2^-96: for all pairs of 10^10 windows together (60 GB of
English), less than 10^-9.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np

from hf_llm.core.atomic_io import atomic_path
from hf_llm.data.corpus.dedup.shingles import (
    WordHashes,
    batch_stream,
    find_word_spans,
    hash_windows,
    hash_words,
    mix_bits,
)

BATCH_CHARS = 1 << 19  # characters hashed at a time
MAX_BUFFERED_WINDOWS = 1 << 20  # windows held before they are written
# A window: its hash, the order of its document, a second hash to check it by, and the number of its first word in the
# document. 24 bytes on the disk.
WINDOW = np.dtype([("hash", "<u8"), ("order", "<u8"), ("check", "<u4"), ("word", "<u4")])
HASH, CHECK, ORDER, WORD = range(4)  # rows of a table of repeated windows


@dataclass
class RepeatedPassages:
    """Passages of at least this many words that repeat word for word are cut out everywhere but at the first place."""

    words: int = 50
    """Words in the shortest passage that is cut (in Chinese or Thai a character is a word)."""

    def __post_init__(self) -> None:
        if self.words < 2:
            raise ValueError(f"words is {self.words}; it has to be at least 2 (50 is usual)")


def write_windows(
    documents: Iterable[tuple[int, str]], folder: Path, name: str, partitions: int, settings: RepeatedPassages
) -> None:
    """Write every window of the documents to `folder/<name>.<partition>.windows`, one file for each partition.

    A document is its order (uint64, unique; the document with the smaller one keeps a passage) and its text. Takes 24
    bytes per word on the disk and about 120 MB of memory. The files are renamed to their names when all are written.
    """
    files = [folder / f"{name}.{number:05d}.windows" for number in range(partitions)]
    with ExitStack() as stack:
        unfinished = [stack.enter_context(atomic_path(path)) for path in files]
        for path in unfinished:
            path.write_bytes(b"")

        buffered = []
        for batch in batch_stream(documents, BATCH_CHARS, itemgetter(1)):
            buffered.append(_hash_documents(batch, settings))
            if sum(map(len, buffered)) >= MAX_BUFFERED_WINDOWS:
                _append_to_partitions(np.concatenate(buffered), unfinished)
                buffered = []
        last = np.concatenate([np.zeros(0, WINDOW), *buffered])
        _append_to_partitions(last, unfinished)


def find_repeated_windows(files: list[Path], output: Path) -> None:
    """Find the windows of one partition that occur more than once, and where each of them occurs first.

    Writes a table, uint64 (4, windows): hash, check, and the order and word number of the first occurrence, sorted by
    hash and check. Takes 16 bytes of memory for each window of the partition and 80 for each that repeats.
    """
    files = [path for path in files if path.stat().st_size]
    candidates = _read_windows(files, _find_repeated_hashes(files))
    candidates = _sort_windows(candidates)
    first_windows = candidates[_starts_repetition(candidates)]
    columns = [first_windows[name].astype(np.uint64) for name in ("hash", "check", "order", "word")]
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        np.save(file, np.stack(columns))


def _find_repeated_hashes(files: list[Path]) -> np.ndarray:
    """Find the hashes that occur more than once, sorted. One that occurs n times is returned n - 1 times."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(_map_windows(path)["hash"].copy() for path in files)])
    hashes.sort()
    return hashes[1:][hashes[1:] == hashes[:-1]]


def _read_windows(files: list[Path], sorted_hashes: np.ndarray) -> np.ndarray:
    """Read the windows whose hash is one of these, one file open at a time: WINDOW (windows,)."""
    chosen = [np.zeros(0, WINDOW)]
    for path in files:
        file_windows = _map_windows(path)
        chosen.append(file_windows[_is_in_sorted(file_windows["hash"], sorted_hashes)])
        del file_windows
    return np.concatenate(chosen)


def _sort_windows(unsorted: np.ndarray) -> np.ndarray:
    """Sort windows by hash, check, document and word."""
    keys = [unsorted[name] for name in ("word", "order", "check", "hash")]  # numpy sorts by the last key first
    return unsorted[np.lexsort(keys)]


def _starts_repetition(sorted_windows: np.ndarray) -> np.ndarray:
    """Mark each window that equals the next one and not the one before: bool (windows,)."""
    if not len(sorted_windows):
        return np.zeros(0, bool)
    same_hash = sorted_windows["hash"][1:] == sorted_windows["hash"][:-1]
    same_check = sorted_windows["check"][1:] == sorted_windows["check"][:-1]
    same_as_next = same_hash & same_check
    equals_previous = np.append(False, same_as_next)
    equals_next = np.append(same_as_next, False)
    return equals_next & ~equals_previous


def merge_repeated_windows(files: list[Path], output: Path) -> None:
    """Concatenate the tables of `find_repeated_windows`, in the order of their partitions, for `PassageCutter`."""
    lengths = [np.load(path, mmap_mode="r").shape[1] for path in files]
    bounds = np.cumsum([0, *lengths])
    with atomic_path(output) as temporary:
        merged = np.lib.format.open_memmap(temporary, "w+", np.uint64, (4, int(bounds[-1])))
        for path, (start, end) in zip(files, pairwise(bounds), strict=True):
            table = np.load(path, mmap_mode="r")
            if start and len(table[HASH]):
                assert merged[HASH, start - 1] < table[HASH, 0], "out of order"
            merged[:, start:end] = table
        merged.flush()
        del merged


class PassageCutter:
    """Cuts passages that occur earlier in the corpus out of documents, by the file of `merge_repeated_windows`."""

    def __init__(self, path: Path, settings: RepeatedPassages):
        self.table = np.asarray(np.load(path, mmap_mode="r"))  # asarray: still memory-mapped, but faster to index
        self.settings = settings

    def cut_passages(self, order: int, text: str) -> tuple[str, list[str]]:
        """Cut one document; `order` is as in `write_windows`. Returns the remaining text and the passages cut out."""
        is_repeated = self.mark_repeated_words(order, text)
        if not is_repeated.any():
            return text, []

        # Runs of repeated words: first as (first word, word after the last), then as spans of characters.
        run_bounds = np.flatnonzero(np.diff(is_repeated, prepend=False, append=False)).reshape(-1, 2)
        starts, ends = find_word_spans(text, folded=False)
        spans = [(int(starts[first]), int(ends[stop - 1])) for first, stop in run_bounds]

        passages = [text[start:end] for start, end in spans]
        return _remove_spans(text, spans), passages

    def mark_repeated_words(self, order: int, text: str) -> np.ndarray:
        """Mark the words of a document that are to be cut: bool (words,)."""
        words = hash_words([text], folded=False)
        hashes, first_words = hash_windows(words, self.settings.words)
        candidates = np.flatnonzero(_is_in_sorted(hashes, self.table[HASH]))
        if not len(candidates):
            return np.zeros(len(words.hashes), bool)

        # The windows that are in the table, each beside its column there.
        checks = _check_hashes(words, self.settings)[candidates]
        columns = self._find_columns(hashes[candidates], checks)
        is_known = columns >= 0
        columns = columns[is_known]
        first_words = first_words[candidates[is_known]]

        # A window repeats unless it is itself the first occurrence.
        other_document = self.table[ORDER, columns] != np.uint64(order)
        other_word = self.table[WORD, columns] != first_words.astype(np.uint64)
        repeated_first_words = first_words[other_document | other_word]

        # How many repeated windows cover each word: +1 where one begins, -1 after its end.
        changes = np.zeros(len(words.hashes) + 1, np.int64)
        np.add.at(changes, repeated_first_words, 1)
        np.add.at(changes, repeated_first_words + self.settings.words, -1)
        return np.cumsum(changes[:-1]) > 0

    def _find_columns(self, hashes: np.ndarray, checks: np.ndarray) -> np.ndarray:
        """Find the column of the table for each window, -1 if it is not there: int64 (windows,).

        All `hashes` are in the table, but maybe with another check.
        """
        columns = np.searchsorted(self.table[HASH], hashes)
        while True:  # more than once only if two different windows that repeat have the same hash
            wrong = np.flatnonzero((columns >= 0) & (self.table[CHECK, columns] != checks))
            if not len(wrong):
                return columns

            # Move on by one column, as long as that has the same hash.
            columns[wrong] += 1
            has_same_hash = columns[wrong] < self.table.shape[1]
            inside = wrong[has_same_hash]
            has_same_hash[has_same_hash] = self.table[HASH, columns[inside]] == hashes[inside]
            columns[wrong[~has_same_hash]] = -1


def _hash_documents(batch: list[tuple[int, str]], settings: RepeatedPassages) -> np.ndarray:
    """Hash the windows of documents: WINDOW (windows,)."""
    texts = [text for _, text in batch]
    orders = np.array([order for order, _ in batch], np.uint64)
    words = hash_words(texts, folded=False)
    hashes, first_words = hash_windows(words, settings.words)
    document_numbers = np.searchsorted(words.bounds, first_words, side="right") - 1

    result = np.empty(len(hashes), WINDOW)
    result["hash"] = hashes
    result["check"] = _check_hashes(words, settings)
    result["order"] = orders[document_numbers]
    result["word"] = first_words - words.bounds[document_numbers]
    return result


def _check_hashes(words: WordHashes, settings: RepeatedPassages) -> np.ndarray:
    """Compute a second hash of every window, of 32 bits: uint64 (windows,)."""
    other_words = WordHashes(mix_bits(~words.hashes), words.bounds)
    hashes, _ = hash_windows(other_words, settings.words)
    return hashes >> np.uint64(32)


def _append_to_partitions(new_windows: np.ndarray, files: list[Path]) -> None:
    """Append each window to the file of its range of hashes."""
    high_bits = new_windows["hash"] >> np.uint64(32)
    partitions = (high_bits * np.uint64(len(files))) >> np.uint64(32)
    new_windows = new_windows[np.argsort(partitions, kind="stable")]
    counts = np.bincount(partitions.astype(np.int64), minlength=len(files))
    for path, end, count in zip(files, np.cumsum(counts), counts, strict=True):
        if count:
            with open(path, "ab") as file:
                new_windows[end - count : end].tofile(file)


def _map_windows(path: Path) -> np.ndarray:
    return np.memmap(path, WINDOW, "r")


def _is_in_sorted(hashes: np.ndarray, sorted_hashes: np.ndarray) -> np.ndarray:
    """Mark the hashes that are among `sorted_hashes`: bool (hashes,)."""
    if not len(sorted_hashes):
        return np.zeros(len(hashes), bool)
    nearest = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    return sorted_hashes[nearest] == hashes


def _remove_spans(text: str, spans: list[tuple[int, int]]) -> str:
    """Remove these spans from the text. Of the white space before and after a span, the wider gap is kept."""
    parts = []
    position = 0
    for start, end in spans:
        parts.append(text[position:start])
        position = end
    parts.append(text[position:])

    result = parts[0]
    for part in parts[1:]:
        before = result.rstrip()
        after = part.lstrip()
        gap_before = result[len(before) :]
        gap_after = part[: len(part) - len(after)]
        widest = max(gap_before, gap_after, key=lambda gap: (gap.count("\n"), len(gap)))
        gap = widest if before and after else ""
        result = before + gap + after
    return result
