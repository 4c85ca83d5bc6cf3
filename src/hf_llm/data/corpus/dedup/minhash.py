"""Near-duplicates by MinHash and locality-sensitive hashing (Broder, 1997; Indyk and Motwani, 1998).

`signatures` turns texts into numbers whose share in common estimates the Jaccard similarity of the texts' sets of word
n-grams. `representatives` finds the documents whose signatures agree in a band, compares what it finds over the whole
signature, and names for every document the one that stands for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_llm.data.corpus.dedup.shingles import batches, mix, shingles

BATCH = 1 << 19  # characters whose shingles are permuted at a time; they stay in a core's cache
ROWS = 1 << 16  # signatures read at a time
PAIRS = 1 << 14  # pairs compared at a time
LEADERS = 16  # documents of a band's bucket that the others of the bucket are compared with


@dataclass
class NearDuplicates:
    """Documents that share most of their words in a row: one of each group stays.

    A pair of similarity s meets in one of the bands with probability 1 - (1 - s^rows)^bands: 0.977 at 0.8 here.
    """

    words: int = field(default=5, metadata={"help": "words in a shingle"})
    bands: int = 16
    rows: int = field(default=7, metadata={"help": "hashes in a band"})
    threshold: float = field(default=0.7, metadata={"help": "estimated similarity from which two documents are one"})

    def __post_init__(self) -> None:
        for name in ("words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it is a share between 0 and 1")

    @property
    def hashes(self) -> int:
        """Numbers in a signature."""
        return self.bands * self.rows


def signatures(texts: list[str], settings: NearDuplicates) -> np.ndarray:
    """The MinHash signature of every text: uint32 (texts, bands * rows)."""
    factors, offsets = _permutations(settings.hashes)
    out = np.empty((len(texts), settings.hashes), np.uint32)
    for first, batch in batches(texts, BATCH):
        hashes, starts = shingles(batch, settings.words)
        values = (hashes >> np.uint64(32)).astype(np.uint32)
        permuted = np.empty_like(values)
        least = np.empty((settings.hashes, len(batch)), np.uint32)
        for i in range(settings.hashes):
            np.multiply(values, factors[i], out=permuted)
            np.add(permuted, offsets[i], out=permuted)
            np.minimum.reduceat(permuted, starts, out=least[i])
        out[first : first + len(batch)] = least.T
    return out


def representatives(files: list[Path], order: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """The document that stands for each document: the first, by `order`, of its group of near-duplicates.

    `files` hold signatures, N rows in all, as `numpy.save` writes them; the document of row i takes precedence over
    another with a larger `order`, int64 or uint64 (N,) without ties. Returns row numbers, int64 (N,): a document's own
    where it is kept. The groups depend on the signatures and `order` alone, not on how the rows lie in files. Memory:
    128 bytes a document at most, beside a fixed 30 MB; the files are read by memory map, once for each band.
    """
    rows = _Signatures(files)
    assert len(order) == rows.count
    by_rank = np.argsort(order)  # documents are known by their rank in the order of precedence from here on
    root = np.arange(rows.count)
    for band in range(settings.bands):
        keys = rows.keys(slice(band * settings.rows, (band + 1) * settings.rows))[by_rank]
        for first, second in _similar(keys, root, rows, by_rank, settings.threshold):
            _unite(root, first, second)
    out = np.empty_like(root)
    out[by_rank] = by_rank[root]
    return out


class _Signatures:
    """The rows of several files of signatures as one array that stays on the disk."""

    def __init__(self, files: list[Path]):
        self.files = files
        self.bounds = np.cumsum([0, *(len(_load(path)) for path in files)])
        self.count = int(self.bounds[-1])

    def keys(self, columns: slice) -> np.ndarray:
        """One number for what each signature has in these columns: uint64 (N,)."""
        keys = np.zeros(self.count, np.uint64)
        for path, start in zip(self.files, self.bounds, strict=False):
            signatures = _load(path)
            for first in range(0, len(signatures), ROWS):
                block = np.array(signatures[first : first + ROWS, columns], np.uint64)
                part = keys[start + first : start + first + len(block)]
                for column in block.T:
                    part ^= column
                    mix(part)
        return keys

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The signatures of these rows: uint32 (rows, hashes)."""
        file = np.searchsorted(self.bounds, rows, side="right") - 1
        out = None
        for number in np.unique(file):
            signatures, here = _load(self.files[number]), file == number
            if out is None:
                out = np.empty((len(rows), signatures.shape[1]), np.uint32)
            out[here] = signatures[rows[here] - self.bounds[number]]
        return out


def _similar(
    keys: np.ndarray, root: np.ndarray, rows: _Signatures, by_rank: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of ranks, int64 (pairs,) twice, that have a key in common and are similar enough.

    Of the documents of one key, all are compared with the first; those unlike it with the first of them, and so on.
    """
    members, bucket = _buckets(keys)
    for _ in range(LEADERS):
        if not len(members):
            return
        starts = np.append(True, bucket[1:] != bucket[:-1])
        leaders = members[starts][np.cumsum(starts)[~starts] - 1]
        members, bucket = members[~starts], bucket[~starts]
        alike = root[leaders] == root[members]
        new = np.flatnonzero(~alike)
        for part in np.array_split(new, -(-len(new) // PAIRS) or 1):
            left, right = (rows.take(by_rank[which[part]]) for which in (leaders, members)) if len(part) else ((), ())
            alike[part] = np.mean(np.equal(left, right), axis=-1) >= threshold if len(part) else False
        found = new[alike[new]]
        yield leaders[found], members[found]
        members, bucket = members[~alike], bucket[~alike]


def _buckets(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranks whose key is not theirs alone, and that key, ordered by key and rank: int64 and uint64 (members,)."""
    ranks = np.argsort(keys, kind="stable")
    keys = keys[ranks]
    same = keys[1:] == keys[:-1]
    shared = np.append(same, False) | np.append(False, same) if len(keys) else same
    return ranks[shared], keys[shared]


def _unite(root: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Join the groups of each pair, in place. `root` names the first document of every document's group."""
    while len(first):
        first, second = root[first], root[second]
        apart = first != second
        first, second = first[apart], second[apart]
        np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))
        while True:
            above = root[root]
            if np.array_equal(above, root):
                break
            root[:] = above


def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets of `count` permutations x -> factor * x + offset modulo 2^32: uint32 (count,), twice."""
    numbers = mix(np.arange(1, 2 * count + 1, dtype=np.uint64)) >> np.uint64(32)
    factors, offsets = numbers.astype(np.uint32).reshape(2, count)
    return factors | np.uint32(1), offsets


def _load(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
