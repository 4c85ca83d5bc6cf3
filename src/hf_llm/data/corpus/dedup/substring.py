"""Passages that stand in several places of a corpus, found exactly, and cut out of all but the first.

Lee et al. (2022, arXiv 2107.06499) find them with a suffix array of the whole corpus in memory. A passage of at least
n words repeats exactly where some window of n words repeats, so here every window is hashed and written to one of
several partitions of the hashes, each partition is searched by itself for hashes that come twice, and a word is cut
where it stands in a window that stands earlier too. Words are compared as they are written, the white space between
them is not.

    write_windows    one task per shard of documents
    find_repeated    one task per partition
    merge_repeated   once
    Cutter           one per task that cuts

Two different windows are taken for the same with probability 2^-96: for all pairs of 10^10 windows together (60 GB of
English), less than 10^-9.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_llm.core.atomic_io import whole
from hf_llm.data.corpus.dedup.shingles import Words, mix, windows, word_hashes, word_spans

BATCH = 1 << 19  # characters hashed at a time
BUFFER = 1 << 20  # windows held before they are written
WINDOW = np.dtype([("hash", "<u8"), ("order", "<u8"), ("check", "<u4"), ("word", "<u4")])  # 24 bytes on the disk
HASH, CHECK, ORDER, WORD = range(4)  # rows of a table of repeated windows


@dataclass
class RepeatedPassages:
    """Passages of so many words that stand word for word elsewhere are cut out, all but the first."""

    words: int = field(default=50, metadata={"help": "the shortest passage (a character of Chinese or Thai is a word)"})

    def __post_init__(self) -> None:
        if self.words < 2:
            raise ValueError(f"words is {self.words}; it has to be at least 2 (50 is usual)")


def write_windows(
    documents: Iterable[tuple[int, str]], folder: Path, name: str, partitions: int, settings: RepeatedPassages
) -> None:
    """Write every window of the documents to `folder/<name>.<partition>.windows`, one file for each partition.

    A document is its order (uint64, unique; the smaller takes precedence) and its text. Takes 24 bytes a word on the
    disk and about 120 MB of memory. The files have their names only when all of it is written.
    """
    files = [folder / f"{name}.{number:05d}.windows" for number in range(partitions)]
    with ExitStack() as stack:
        unfinished = [stack.enter_context(whole(path)) for path in files]
        for path in unfinished:
            path.write_bytes(b"")
        held = []
        for batch in _batched(documents):
            held.append(_windows_of(batch, settings))
            if sum(map(len, held)) >= BUFFER:
                _append(np.concatenate(held), unfinished)
                held = []
        _append(np.concatenate([np.zeros(0, WINDOW), *held]), unfinished)


def find_repeated(files: list[Path], output: Path) -> None:
    """Find the windows of one partition that stand in more than one place, and where the first of each stands.

    Writes a table, uint64 (4, windows): hash, check, order and word number of the first, sorted by hash and check.
    Takes 16 bytes of memory for each window of the partition and 80 for each that repeats.
    """
    files = [path for path in files if path.stat().st_size]
    hashes = np.concatenate([np.zeros(0, np.uint64), *(np.memmap(path, WINDOW, "r")["hash"].copy() for path in files)])
    hashes.sort()
    twice = hashes[1:][hashes[1:] == hashes[:-1]]
    del hashes
    parts = (np.memmap(path, WINDOW, "r") for path in files)  # one file open at a time
    found = np.concatenate([np.zeros(0, WINDOW), *(part[_among(part["hash"], twice)] for part in parts)])
    found = found[np.lexsort((found["word"], found["order"], found["check"], found["hash"]))]
    same = (found["hash"][1:] == found["hash"][:-1]) & (found["check"][1:] == found["check"][:-1])
    first = ~np.append(False, same) & np.append(same, False) if len(found) else np.zeros(0, bool)
    table = np.stack([found[column][first].astype(np.uint64) for column in ("hash", "check", "order", "word")])
    with whole(output) as temporary, open(temporary, "wb") as file:
        np.save(file, table)


def merge_repeated(files: list[Path], output: Path) -> None:
    """Put the tables of `find_repeated`, in the order of their partitions, into one file for `Cutter`."""
    edges = np.cumsum([0, *(np.load(path, mmap_mode="r").shape[1] for path in files)])
    with whole(output) as temporary:
        merged = np.lib.format.open_memmap(temporary, "w+", np.uint64, (4, int(edges[-1])))
        for path, start, end in zip(files, edges, edges[1:], strict=False):
            table = np.load(path, mmap_mode="r")
            assert not start or not len(table[HASH]) or merged[HASH, start - 1] < table[HASH, 0], "out of order"
            merged[:, start:end] = table
        merged.flush()
        del merged


class Cutter:
    """Cuts out of documents what stands earlier in the corpus, by the file of `merge_repeated`."""

    def __init__(self, path: Path, settings: RepeatedPassages):
        self.table = np.asarray(np.load(path, mmap_mode="r"))  # asarray: memory-mapped still, indexed faster
        self.settings = settings

    def cut(self, order: int, text: str) -> tuple[str, list[str]]:
        """What is left of a document, and the passages cut out. Takes what `write_windows` was given."""
        cut = self.repeated_words(order, text)
        if not cut.any():
            return text, []
        starts, ends = word_spans(text, folded=False)
        edges = np.flatnonzero(np.diff(cut, prepend=False, append=False)).reshape(-1, 2)
        spans = [(int(starts[first]), int(ends[last - 1])) for first, last in edges]
        return _without(text, spans), [text[start:end] for start, end in spans]

    def repeated_words(self, order: int, text: str) -> np.ndarray:
        """Which words of a document are to be cut: bool (words,)."""
        words = word_hashes([text], folded=False)
        hashes, places = windows(words, self.settings.words)
        likely = np.flatnonzero(_among(hashes, self.table[HASH]))
        if not len(likely):
            return np.zeros(len(words.hashes), bool)
        rows = self._rows(hashes[likely], _checks(words, self.settings)[likely])
        rows, places = rows[rows >= 0], places[likely[rows >= 0]]
        earlier = (self.table[ORDER, rows] != np.uint64(order)) | (self.table[WORD, rows] != places.astype(np.uint64))
        depth = np.zeros(len(words.hashes) + 1, np.int64)
        np.add.at(depth, places[earlier], 1)
        np.add.at(depth, places[earlier] + self.settings.words, -1)
        return np.cumsum(depth[:-1]) > 0

    def _rows(self, hashes: np.ndarray, checks: np.ndarray) -> np.ndarray:
        """The column of the table each window stands in, -1 for none: int64 (windows,). All hashes are in the table."""
        rows = np.searchsorted(self.table[HASH], hashes)
        while True:  # a second time only where two windows that repeat have one hash
            wrong = np.flatnonzero((rows >= 0) & (self.table[CHECK, rows] != checks))
            if not len(wrong):
                return rows
            rows[wrong] += 1
            same = rows[wrong] < self.table.shape[1]
            same[same] = self.table[HASH, rows[wrong[same]]] == hashes[wrong[same]]
            rows[wrong[~same]] = -1


def _batched(documents: Iterable[tuple[int, str]]) -> Iterable[list[tuple[int, str]]]:
    batch, size = [], 0
    for order, text in documents:
        batch.append((order, text))
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _windows_of(batch: list[tuple[int, str]], settings: RepeatedPassages) -> np.ndarray:
    """WINDOW (windows,)."""
    words = word_hashes([text for _, text in batch], folded=False)
    hashes, places = windows(words, settings.words)
    document = np.searchsorted(words.bounds, places, side="right") - 1
    out = np.empty(len(hashes), WINDOW)
    out["hash"], out["check"] = hashes, _checks(words, settings)
    out["order"] = np.array([order for order, _ in batch], np.uint64)[document]
    out["word"] = places - words.bounds[document]
    return out


def _checks(words: Words, settings: RepeatedPassages) -> np.ndarray:
    """Of every window another hash, of 32 bits: uint64 (windows,)."""
    other = Words(mix(~words.hashes), words.bounds)
    return windows(other, settings.words)[0] >> np.uint64(32)


def _append(found: np.ndarray, files: list[Path]) -> None:
    """Each window goes to the file of its range of hashes."""
    partition = ((found["hash"] >> np.uint64(32)) * np.uint64(len(files))) >> np.uint64(32)
    found = found[np.argsort(partition, kind="stable")]
    counts = np.bincount(partition.astype(np.int64), minlength=len(files))
    for path, end, count in zip(files, np.cumsum(counts), counts, strict=True):
        if count:
            with open(path, "ab") as file:
                found[end - count : end].tofile(file)


def _among(hashes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Which hashes are in `chosen`, which is sorted: bool (hashes,)."""
    if not len(chosen):
        return np.zeros(len(hashes), bool)
    return chosen[np.minimum(np.searchsorted(chosen, hashes), len(chosen) - 1)] == hashes


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """The text without these spans; of the white space around one, the wider break stays."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    out, *parts = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    for part in parts:
        left, right = out.rstrip(), part.lstrip()
        gaps = out[len(left) :], part[: len(part) - len(right)]
        widest = max(gaps, key=lambda gap: (gap.count("\n"), len(gap)))
        out = left + (widest if left and right else "") + right
    return out
