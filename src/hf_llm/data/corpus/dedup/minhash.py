"""Find near-duplicates by MinHash and locality-sensitive hashing (Broder, 1997; Indyk and Motwani, 1998).

`compute_signatures` turns each text into numbers; the share of equal numbers in two signatures estimates the Jaccard
similarity of the texts' sets of word n-grams. `find_representatives` finds documents whose signatures agree in a band,
compares their whole signatures, and returns for every document the one that is kept for its group.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_llm.data.corpus.dedup.shingles import hash_shingles, mix_bits, split_into_batches

BATCH_CHARS = 1 << 19  # characters whose shingles are permuted at a time; they stay in a core's cache
SIGNATURES_PER_READ = 1 << 16
PAIRS_PER_COMPARISON = 1 << 14
MAX_LEADERS = 16  # documents in a bucket (equal in one band) that the others in it are compared with


@dataclass
class NearDuplicates:
    """One document is kept of each group whose documents share most of their word n-grams.

    Two documents of similarity s agree in at least one band with probability 1 - (1 - s^rows)^bands: 0.977 for s = 0.8
    with the default values.
    """

    words: int = 5
    """Words in a shingle (the n of the word n-grams)."""
    bands: int = 16
    """Bands of a signature: documents that agree in one of them are compared."""
    rows: int = 7
    """Hashes in a band."""
    threshold: float = 0.7
    """Estimated similarity from which two documents count as duplicates of each other."""

    def __post_init__(self) -> None:
        for name in ("words", "bands", "rows"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it has to be at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it is a share between 0 and 1")

    @property
    def signature_length(self) -> int:
        """Hashes in a signature."""
        return self.bands * self.rows


def compute_signatures(texts: list[str], settings: NearDuplicates) -> np.ndarray:
    """Compute the MinHash signature of every text: uint32 (texts, bands * rows)."""
    factors, offsets = _draw_permutations(settings.signature_length)
    result = np.empty((len(texts), settings.signature_length), np.uint32)

    # Each hash of a signature is the minimum over a text's shingles of one permutation of their 32-bit hashes.
    for first_text, batch in split_into_batches(texts, BATCH_CHARS):
        shingle_hashes, starts = hash_shingles(batch, settings.words)
        values = (shingle_hashes >> np.uint64(32)).astype(np.uint32)
        permuted = np.empty_like(values)
        minima = np.empty((settings.signature_length, len(batch)), np.uint32)
        for i in range(settings.signature_length):
            np.multiply(values, factors[i], out=permuted)
            np.add(permuted, offsets[i], out=permuted)
            np.minimum.reduceat(permuted, starts, out=minima[i])
        result[first_text : first_text + len(batch)] = minima.T
    return result


def find_representatives(files: list[Path], order: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """Find the document that is kept for each document: the first, by `order`, of its group of near-duplicates.

    `files` hold signatures, N rows in all, as `numpy.save` writes them; the document of row i takes precedence over
    another with a larger `order`, int64 or uint64 (N,) without ties. Returns row numbers, int64 (N,): a document's own
    where it is kept. The groups depend on the signatures and `order` alone, not on how the rows lie in files. Memory:
    128 bytes a document at most, beside a fixed 30 MB; the files are read by memory map, once for each band.
    """
    table = _SignatureFiles(files)
    assert len(order) == table.count

    # From here on a document is identified by its rank in the order of precedence. `root` holds for every document the
    # first document of its group; at the start each is a group of one.
    by_rank = np.argsort(order)  # the row of each rank
    root = np.arange(table.count)
    for band in range(settings.bands):
        columns = slice(band * settings.rows, (band + 1) * settings.rows)
        band_keys = table.hash_columns(columns)[by_rank]
        for first, second in _find_similar_pairs(band_keys, root, table, by_rank, settings.threshold):
            _unite_groups(root, first, second)

    kept = np.empty_like(root)
    kept[by_rank] = by_rank[root]
    return kept


class _SignatureFiles:
    """Several files of signatures, read like one array of N rows that stays on the disk."""

    def __init__(self, files: list[Path]):
        self.files = files
        lengths = [len(_map_signatures(path)) for path in files]
        self.bounds = np.cumsum([0, *lengths])
        self.count = int(self.bounds[-1])

    def hash_columns(self, columns: slice) -> np.ndarray:
        """Hash these columns of each signature to one number: uint64 (N,)."""
        keys = np.zeros(self.count, np.uint64)
        for path, file_start in zip(self.files, self.bounds, strict=False):
            file_rows = _map_signatures(path)
            for first in range(0, len(file_rows), SIGNATURES_PER_READ):
                block = np.array(file_rows[first : first + SIGNATURES_PER_READ, columns], np.uint64)
                start = file_start + first
                block_keys = keys[start : start + len(block)]  # a view: changed in place
                for column in block.T:
                    block_keys ^= column
                    mix_bits(block_keys)
        return keys

    def read_rows(self, rows: np.ndarray) -> np.ndarray:
        """Read the signatures of these rows: uint32 (rows, hashes)."""
        file_numbers = np.searchsorted(self.bounds, rows, side="right") - 1
        result = None
        for number in np.unique(file_numbers):
            file_rows = _map_signatures(self.files[number])
            in_file = file_numbers == number
            if result is None:
                result = np.empty((len(rows), file_rows.shape[1]), np.uint32)
            result[in_file] = file_rows[rows[in_file] - self.bounds[number]]
        assert result is not None, "at least one row is asked for"
        return result


def _find_similar_pairs(
    keys: np.ndarray, root: np.ndarray, table: _SignatureFiles, by_rank: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of ranks, int64 (pairs,) twice, that have a key in common and are similar enough.

    All documents with one key are compared with the first of them; those that are not similar to it are compared with
    the first of the remaining ones, and so on, at most MAX_LEADERS times.
    """
    members, bucket = _find_shared_buckets(keys)
    for _ in range(MAX_LEADERS):
        if not len(members):
            return

        # Split each bucket into its first member, the leader, and the others; `leaders` holds the leader of each other.
        is_leader = np.append(True, bucket[1:] != bucket[:-1])
        leader_numbers = np.cumsum(is_leader)[~is_leader] - 1
        leaders = members[is_leader][leader_numbers]
        members = members[~is_leader]
        bucket = bucket[~is_leader]

        # A member that is already in its leader's group need not be compared.
        is_similar = root[leaders] == root[members]
        compared = np.flatnonzero(~is_similar)
        if len(compared):
            part_count = math.ceil(len(compared) / PAIRS_PER_COMPARISON)
            for part in np.array_split(compared, part_count):
                leader_rows = table.read_rows(by_rank[leaders[part]])
                member_rows = table.read_rows(by_rank[members[part]])
                similarity = np.mean(np.equal(leader_rows, member_rows), axis=-1)
                is_similar[part] = similarity >= threshold

        new_pairs = compared[is_similar[compared]]
        yield leaders[new_pairs], members[new_pairs]
        members = members[~is_similar]
        bucket = bucket[~is_similar]


def _find_shared_buckets(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the ranks that share their key with others, ordered by key and rank.

    Returns the ranks, int64 (members,), and their keys, uint64 (members,).
    """
    ranks = np.argsort(keys, kind="stable")
    keys = keys[ranks]
    same_as_next = keys[1:] == keys[:-1]
    if len(keys):
        is_shared = np.append(same_as_next, False) | np.append(False, same_as_next)
    else:
        is_shared = same_as_next
    return ranks[is_shared], keys[is_shared]


def _unite_groups(root: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Merge the groups of each pair of documents, in place. `root` holds the first of every document's group."""
    while len(first):
        first = root[first]
        second = root[second]
        is_apart = first != second
        first = first[is_apart]
        second = second[is_apart]
        np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))

        # A root may now have a root itself: follow the chains until every document has the first of its group.
        while True:
            next_root = root[root]
            if np.array_equal(next_root, root):
                break
            root[:] = next_root


def _draw_permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` permutations x -> factor * x + offset modulo 2^32.

    Returns their odd factors and their offsets: uint32 (count,), twice.
    """
    numbers = mix_bits(np.arange(1, 2 * count + 1, dtype=np.uint64)) >> np.uint64(32)
    factors, offsets = numbers.astype(np.uint32).reshape(2, count)
    return factors | np.uint32(1), offsets


def _map_signatures(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
