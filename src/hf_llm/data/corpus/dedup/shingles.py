"""Texts into hashes of their words and of every run of n words: what all duplicate steps and decontamination compare.

A text is hashed once, in numpy, whole batches at a time. A word's hash is a difference of prefix sums of a polynomial
over its characters (Karp and Rabin, 1987) modulo 2^64, mixed by splitmix64's finaliser; the hash of n words comes from
those of n/2 words, so runs of 50 words cost little more than runs of 5. Nothing depends on the machine, the number of
workers or PYTHONHASHSEED; the tables of characters are those of Python's `unicodedata`.

Two readings of a text: `folded`, where case is folded and everything that is no letter, mark or digit parts words, and
exact, where only white space does. In scripts written without spaces every character is a word of its own.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import xxhash

BLOCK = 1 << 16  # characters hashed at a time: the arrays of a block stay in a core's cache
BASE = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1

# Kana, Han, Thai, Lao, Myanmar, Khmer: first and last code point of what is written without spaces.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_LAST_NAMED = 0x1FFFF  # beyond it are Han characters, tags and private use: no case and no punctuation


@dataclass
class Words:
    """The words of several texts, one after the other."""

    hashes: np.ndarray  # uint64 (words,)
    bounds: np.ndarray  # int64 (texts + 1,): words bounds[i] to bounds[i + 1] are those of text i


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, in place: every bit of the input moves every bit of the output. uint64 (n,)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def word_hashes(texts: list[str], folded: bool = True) -> Words:
    """The hash of every word of every text."""
    hashes, counts = [], np.zeros(len(texts) + 1, np.int64)
    for numbers, pieces in _blocks(texts):
        codes = code_points(" ".join(pieces))
        found, starts = _hash_block(codes, folded)
        hashes.append(found)
        edges = np.cumsum([0, *(len(piece) + 1 for piece in pieces)])
        np.add.at(counts, np.asarray(numbers) + 1, np.diff(np.searchsorted(starts, edges)))
    return Words(np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), np.cumsum(counts))


def word_spans(text: str, folded: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """First character of every word of a text and the one after its last: int64 (words,), twice."""
    starts, ends, position = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for piece in _pieces(text):
        codes = code_points(piece)
        inside, first = _letters(codes, np.take(_values(folded), codes, mode="clip"))
        last = inside & np.append(~inside[1:] | first[1:], True)
        starts.append(np.flatnonzero(first) + position)
        ends.append(np.flatnonzero(last) + position + 1)
        position += len(piece)
    return np.concatenate(starts), np.concatenate(ends)


def windows(words: Words, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash of every run of `length` words that lies in one text.

    Returns the hashes, uint64 (runs,), and where each starts in `words.hashes`, int64 (runs,).
    """
    counts = np.maximum(np.diff(words.bounds) - length + 1, 0)
    ends = np.cumsum(counts)
    places = np.arange(counts.sum()) + np.repeat(words.bounds[:-1] - ends + counts, counts)
    return mix(_runs(words.hashes, length)[places]), places


def shingles(texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash of every run of `length` folded words of every text: at least one for each text.

    A text of fewer words is one shingle, one without any word (rows of dashes, say) is the shingle of its characters.
    Returns hashes, uint64 (shingles,), and where each text's start, int64 (texts,).
    """
    words = word_hashes(texts)
    counts = np.diff(words.bounds)
    hashes, _ = windows(words, length)
    if (counts >= length).all():
        return hashes, words.bounds[:-1] - np.arange(len(texts)) * (length - 1)
    starts = np.append(0, np.cumsum(np.maximum(counts - length + 1, 1)))
    everything = np.empty(starts[-1], np.uint64)
    short = np.flatnonzero(counts < length)
    long = np.ones(len(everything), bool)
    long[starts[short]] = False
    everything[long] = hashes
    for count in np.unique(counts[short]):
        which = np.flatnonzero(counts == count)
        everything[starts[which]] = (
            mix(_runs(words.hashes, count)[words.bounds[which]])
            if count
            else [xxhash.xxh3_64_intdigest(texts[i].encode("utf-8", "surrogatepass")) for i in which]
        )
    return everything, starts[:-1]


def batches(texts: list[str], characters: int) -> Iterator[tuple[int, list[str]]]:
    """The texts in batches of about so many characters, each with the number of its first text."""
    start, size = 0, 0
    for number, text in enumerate(texts):
        if size and size + len(text) > characters:
            yield start, texts[start:number]
            start, size = number, 0
        size += len(text)
    if start < len(texts):
        yield start, texts[start:]


def code_points(text: str) -> np.ndarray:
    """The characters of a text: uint32 (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _runs(hashes: np.ndarray, length: int) -> np.ndarray:
    """The hash of every run of `length` of the hashes, by doubling. uint64 (n - length + 1,)."""
    if len(hashes) < length:
        return np.zeros(0, np.uint64)
    out = hashes
    for bit in f"{length:b}"[1:]:
        half = len(hashes) - len(out) + 1
        out = _join(out[:-half], out[half:])
        if bit == "1":
            out = _join(out[:-1], hashes[2 * half :])
    return out.copy() if out is hashes else out


def _join(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The hash of two things said one after the other; not linear, so that no two orders or splits cancel out."""
    joined = left * np.uint64(BASE)
    joined ^= joined >> np.uint64(32)
    joined += right
    joined *= np.uint64(0xD6E8FEB86659FD93)
    return joined


def _hash_block(codes: np.ndarray, folded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words of a block, uint64, and the characters they start at, int64."""
    values = np.take(_values(folded), codes, mode="clip")
    _, first = _letters(codes, values)
    starts = np.flatnonzero(first)
    powers, inverses = _powers()
    values *= powers[: len(codes)]
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return mix(np.diff(sums[np.append(starts, len(codes))]) * inverses[starts]), starts


def _letters(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which characters belong to words, and which of them start one: bool (characters,), twice."""
    inside = values != 0
    first = inside.copy()
    first[1:] &= ~inside[:-1]
    if len(codes) and codes.max() >= UNSPACED[0][0]:
        alone = np.take(_unspaced(), codes, mode="clip") & inside
        first |= alone
        first[1:] |= alone[:-1] & inside[1:]
    return inside, first


def _blocks(texts: list[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Texts, or pieces of long ones, that have at most BLOCK characters with a space after each."""
    numbers, pieces, size = [], [], 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            if pieces and size + len(piece) + 1 > BLOCK:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
            numbers.append(number)
            pieces.append(piece)
            size += len(piece) + 1
    if pieces:
        yield numbers, pieces


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of fewer than BLOCK characters that end at white space (a longer word is cut)."""
    start = 0
    while len(text) - start >= BLOCK:
        end = start + BLOCK - 1
        while end > start and not text[end - 1].isspace():
            end -= 1
        end = end if end > start else start + BLOCK - 1
        yield text[start:end]
        start = end
    yield text[start:] if start else text


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """BASE^i and BASE^-i modulo 2^64: uint64 (BLOCK,), twice."""
    return tuple(
        np.cumprod(np.append(np.uint64(1), np.full(BLOCK - 1, factor, np.uint64)))
        for factor in (BASE, pow(BASE, -1, 1 << 64))
    )


@cache
def _values(folded: bool) -> np.ndarray:
    """A random number for every code point, the same for those that are read alike; 0 where words part. uint64."""
    kept = np.arange(0x110000, dtype=np.uint64)
    parts = np.zeros(len(kept), bool)
    for code in range(_LAST_NAMED + 1):
        character = chr(code)
        if folded:
            kept[code] = _fold(character)
            parts[code] = unicodedata.category(character)[0] not in "LMN"
        else:
            parts[code] = character.isspace()
    values = mix(kept + np.uint64(1))
    values[parts] = 0
    return values


def _fold(character: str) -> int:
    for folded in (character.casefold(), character.lower()):
        if len(folded) == 1:
            return ord(folded)
    return ord(character)


@cache
def _unspaced() -> np.ndarray:
    """Whether a code point is a word by itself: bool."""
    alone = np.zeros(0x110000, bool)
    for first, last in UNSPACED:
        alone[first : last + 1] = True
    return alone
