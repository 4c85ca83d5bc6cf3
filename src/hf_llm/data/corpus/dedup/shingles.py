"""Hash the words and the word n-grams of texts, for deduplication and decontamination to compare.

Texts are hashed in batches with numpy. A word's hash is a difference of prefix sums of a polynomial
over its characters (Karp and Rabin, 1987) modulo 2^64, mixed by splitmix64's finaliser; the hash of n words is computed
from the hashes of n/2 words, so n-grams of 50 words cost little more than n-grams of 5. The hashes do not depend on the
machine, the number of workers or PYTHONHASHSEED, only on the Unicode tables of Python's `unicodedata`.

There are two ways to split a text into words. Folded: case is folded, and all characters except letters, marks and
digits separate words. Exact: only white space separates words. In both, every character of a script written without
spaces is a word.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import xxhash

T = TypeVar("T")

BLOCK_CHARS = 1 << 16  # characters hashed at a time: the arrays of a block stay in a core's cache
HASH_BASE = 0x9E3779B97F4A7C15
CODE_POINTS = 0x110000

# Kana, Han, Thai, Lao, Myanmar, Khmer: first and last code point of the scripts written without spaces.
UNSPACED_RANGES = (
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
_FIRST_UNSPACED = UNSPACED_RANGES[0][0]
_LAST_NAMED = 0x1FFFF  # beyond it are Han characters, tags and private use: no case and no punctuation


@dataclass
class WordHashes:
    """The hashed words of several texts, one text after the other."""

    hashes: np.ndarray  # uint64 (words,)
    bounds: np.ndarray  # int64 (texts + 1,): words bounds[i] to bounds[i + 1] are those of text i


def mix_bits(values: np.ndarray) -> np.ndarray:
    """Apply splitmix64's finaliser in place: every input bit affects every output bit. uint64 (n,)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def hash_words(texts: list[str], folded: bool = True) -> WordHashes:
    """Hash every word of every text."""
    hashes = []
    word_counts = np.zeros(len(texts) + 1, np.int64)  # the words of text i are counted at i + 1

    for text_numbers, pieces in _pack_blocks(texts):
        codes = encode_code_points(" ".join(pieces))
        block_hashes, starts = _hash_block(codes, folded)
        hashes.append(block_hashes)

        # In the block, one space follows every piece.
        piece_lengths = [len(piece) + 1 for piece in pieces]
        piece_bounds = np.cumsum([0, *piece_lengths])
        words_per_piece = np.diff(np.searchsorted(starts, piece_bounds))
        np.add.at(word_counts, np.asarray(text_numbers) + 1, words_per_piece)

    all_hashes = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    return WordHashes(all_hashes, np.cumsum(word_counts))


def find_word_spans(text: str, folded: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Find the first character of every word of a text, and the one after its last: int64 (words,), twice."""
    starts = [np.zeros(0, np.int64)]
    ends = [np.zeros(0, np.int64)]
    offset = 0
    for piece in _split_long_text(text):
        codes = encode_code_points(piece)
        values = np.take(_character_values(folded), codes, mode="clip")
        in_word, is_first = _mark_words(codes, values)

        # A character is the last of its word if the next one is outside of words or starts another word.
        next_ends_word = np.append(~in_word[1:] | is_first[1:], True)
        is_last = in_word & next_ends_word

        starts.append(np.flatnonzero(is_first) + offset)
        ends.append(np.flatnonzero(is_last) + offset + 1)
        offset += len(piece)
    return np.concatenate(starts), np.concatenate(ends)


def hash_windows(words: WordHashes, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `length` words that lies within one text.

    Returns the hashes, uint64 (runs,), and the index in `words.hashes` at which each run starts, int64 (runs,).
    """
    runs_per_text = np.maximum(np.diff(words.bounds) - length + 1, 0)
    run_ends = np.cumsum(runs_per_text)

    # Runs are numbered over all texts. The number of a run plus an offset of its text is the index of its first word.
    word_offsets = words.bounds[:-1] - run_ends + runs_per_text
    first_words = np.arange(runs_per_text.sum()) + np.repeat(word_offsets, runs_per_text)

    return mix_bits(_hash_runs(words.hashes, length)[first_words]), first_words


def hash_shingles(texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `length` folded words of every text: at least one shingle for each text.

    A text of fewer words is one shingle; a text without any word (rows of dashes, for example) is the shingle of its
    characters. Returns the hashes, uint64 (shingles,), and the index of each text's first one, int64 (texts,).
    """
    words = hash_words(texts)
    word_counts = np.diff(words.bounds)
    run_hashes, _ = hash_windows(words, length)
    if (word_counts >= length).all():
        return run_hashes, words.bounds[:-1] - np.arange(len(texts)) * (length - 1)

    shingles_per_text = np.maximum(word_counts - length + 1, 1)
    starts = np.append(0, np.cumsum(shingles_per_text))
    short_texts = np.flatnonzero(word_counts < length)

    # The texts that are long enough have the runs' hashes, in their order.
    is_run = np.ones(starts[-1], bool)
    is_run[starts[short_texts]] = False
    all_hashes = np.empty(starts[-1], np.uint64)
    all_hashes[is_run] = run_hashes

    for count in np.unique(word_counts[short_texts]):
        same_count = np.flatnonzero(word_counts == count)
        if count:
            first_words = words.bounds[same_count]
            short_hashes = mix_bits(_hash_runs(words.hashes, count)[first_words])
        else:
            short_hashes = [_hash_characters(texts[i]) for i in same_count]
        all_hashes[starts[same_count]] = short_hashes
    return all_hashes, starts[:-1]


def split_into_batches(texts: list[str], max_chars: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the texts in batches of at most `max_chars` characters, each with the index of its first text.

    A longer text is a batch by itself.
    """
    start = 0
    size = 0
    for number, text in enumerate(texts):
        if size and size + len(text) > max_chars:
            yield start, texts[start:number]
            start = number
            size = 0
        size += len(text)
    if start < len(texts):
        yield start, texts[start:]


def batch_stream(items: Iterable[T], max_chars: int, text_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Yield the items of a stream in batches; each but the last ends with the item that brings it to `max_chars`."""
    batch = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(text_of(item))
        if size >= max_chars:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def encode_code_points(text: str) -> np.ndarray:
    """Convert a text to its code points: uint32 (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _hash_characters(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _hash_runs(hashes: np.ndarray, length: int) -> np.ndarray:
    """Hash every run of `length` hashes, with about log2(length) passes over the array: uint64 (n - length + 1,)."""
    if len(hashes) < length:
        return np.zeros(0, np.uint64)

    # `runs` holds the hashes of all runs of a length that grows to `length`, as its binary digits say from the second
    # on: every digit doubles the length, and a 1 then adds one word.
    runs = hashes
    for digit in f"{length:b}"[1:]:
        run_length = len(hashes) - len(runs) + 1
        runs = _combine_hashes(runs[:-run_length], runs[run_length:])
        if digit == "1":
            runs = _combine_hashes(runs[:-1], hashes[2 * run_length :])
    return runs.copy() if runs is hashes else runs


def _combine_hashes(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Hash two runs that follow each other; not linear, so that no two orders or splits cancel out."""
    combined = left * np.uint64(HASH_BASE)
    combined ^= combined >> np.uint64(32)
    combined += right
    combined *= np.uint64(0xD6E8FEB86659FD93)
    return combined


def _hash_block(codes: np.ndarray, folded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Hash the words of a block. Returns the hashes, uint64, and the characters the words start at, int64."""
    values = np.take(_character_values(folded), codes, mode="clip")
    _, is_first = _mark_words(codes, values)
    starts = np.flatnonzero(is_first)
    powers, inverse_powers = _base_powers()

    # Prefix sums of value[i] * BASE^i. The sum over a word, divided by BASE^start, does not depend on its position.
    # Characters between two words have the value 0, so a word's sum may include all up to the start of the next word.
    values *= powers[: len(codes)]
    prefix_sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(values, out=prefix_sums[1:])
    word_sums = np.diff(prefix_sums[np.append(starts, len(codes))])
    return mix_bits(word_sums * inverse_powers[starts]), starts


def _mark_words(codes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mark the characters that belong to words, and those of them that start one: bool (characters,), twice."""
    in_word = values != 0
    is_first = in_word.copy()
    is_first[1:] &= ~in_word[:-1]

    if len(codes) and codes.max() >= _FIRST_UNSPACED:
        is_unspaced = np.take(_unspaced_characters(), codes, mode="clip") & in_word
        is_first |= is_unspaced
        is_first[1:] |= is_unspaced[:-1] & in_word[1:]
    return in_word, is_first


def _pack_blocks(texts: list[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Pack texts, or pieces of long ones, into blocks of at most BLOCK_CHARS characters with a space after each.

    Yields the numbers of the texts and the pieces.
    """
    text_numbers = []
    pieces = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _split_long_text(text):
            if pieces and size + len(piece) + 1 > BLOCK_CHARS:
                yield text_numbers, pieces
                text_numbers = []
                pieces = []
                size = 0
            text_numbers.append(number)
            pieces.append(piece)
            size += len(piece) + 1
    if pieces:
        yield text_numbers, pieces


def _split_long_text(text: str) -> Iterator[str]:
    """Split a text into pieces of fewer than BLOCK_CHARS characters that end at white space (a longer word is cut)."""
    start = 0
    while len(text) - start >= BLOCK_CHARS:
        longest_end = start + BLOCK_CHARS - 1
        end = longest_end
        while end > start and not text[end - 1].isspace():
            end -= 1
        if end == start:
            end = longest_end
        yield text[start:end]
        start = end
    yield text[start:] if start else text


@cache
def _base_powers() -> tuple[np.ndarray, np.ndarray]:
    """Compute HASH_BASE^i and HASH_BASE^-i modulo 2^64: uint64 (BLOCK_CHARS,), twice."""
    inverse_base = pow(HASH_BASE, -1, 1 << 64)
    return _consecutive_powers(HASH_BASE), _consecutive_powers(inverse_base)


def _consecutive_powers(factor: int) -> np.ndarray:
    factors = np.full(BLOCK_CHARS - 1, factor, np.uint64)
    return np.cumprod(np.append(np.uint64(1), factors))


@cache
def _character_values(folded: bool) -> np.ndarray:
    """Return a pseudo-random number for every code point: uint64 (CODE_POINTS,).

    Characters that differ only in case have the same number if `folded`; those that separate words have 0.
    """
    characters = np.arange(CODE_POINTS, dtype=np.uint64)
    is_separator = np.zeros(len(characters), bool)
    for code in range(_LAST_NAMED + 1):
        character = chr(code)
        if folded:
            characters[code] = _fold_case(character)
            is_separator[code] = unicodedata.category(character)[0] not in "LMN"  # letters, marks, numbers
        else:
            is_separator[code] = character.isspace()

    values = mix_bits(characters + np.uint64(1))
    values[is_separator] = 0
    return values


def _fold_case(character: str) -> int:
    """Return the code point of a character without its case, where that is a single one."""
    for folded in (character.casefold(), character.lower()):
        if len(folded) == 1:
            return ord(folded)
    return ord(character)


@cache
def _unspaced_characters() -> np.ndarray:
    """Mark the code points that are words by themselves: bool (CODE_POINTS,)."""
    is_unspaced = np.zeros(CODE_POINTS, bool)
    for first, last in UNSPACED_RANGES:
        is_unspaced[first : last + 1] = True
    return is_unspaced
