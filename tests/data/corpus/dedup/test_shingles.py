import os
import random
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from hf_llm.data.corpus.dedup import shingles as module
from hf_llm.data.corpus.dedup.shingles import batch_stream, find_word_spans, hash_shingles, hash_windows, hash_words

ALPHABET = "abcABCéÉßжЖ0٣ \n\t.,-'’“”。、—…$+𝒳😀中文字かナกขกြ́\u200d\u00a0\u3000"


def random_texts(seed, count=200):
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randrange(0, 80))) for _ in range(count)]


def unspaced(character):
    return any(first <= ord(character) <= last for first, last in module.UNSPACED_RANGES)


def folded_words(text):
    """What the module's words are, one character at a time."""
    words, inside = [], False
    for character in text:
        if unicodedata.category(character)[0] not in "LMN":
            inside = False
            continue
        folded = character.casefold() if len(character.casefold()) == 1 else character
        if unspaced(character) or not inside:
            words.append(folded)
        else:
            words[-1] += folded
        inside = not unspaced(character)
    return words


def same_classes(hashes, words):
    """Whether equal words, and only they, have equal hashes."""
    return len(set(hashes)) == len(set(words)) == len(set(zip(hashes, words, strict=True)))


def test_two_words_have_one_hash_where_they_are_the_same_but_for_case_and_punctuation():
    texts = random_texts(0)
    words = hash_words(texts)
    expected = [folded_words(text) for text in texts]
    assert np.diff(words.bounds).tolist() == list(map(len, expected))
    assert same_classes(words.hashes.tolist(), [word for each in expected for word in each])


def test_exact_words_are_those_between_white_space():
    texts = [re.sub("[中文字かナกขြก]", "x", text) for text in random_texts(1)]
    words = hash_words(texts, folded=False)
    expected = [text.split() for text in texts]
    assert np.diff(words.bounds).tolist() == list(map(len, expected))
    assert same_classes(words.hashes.tolist(), [word for each in expected for word in each])
    for text, each in zip(texts, expected, strict=True):
        assert [text[start:end] for start, end in zip(*find_word_spans(text, folded=False), strict=True)] == each


def test_spans_hold_the_words():
    for text in random_texts(2):
        spans = [text[start:end] for start, end in zip(*find_word_spans(text), strict=True)]
        assert [folded_words(word) for word in spans] == [[word] for word in folded_words(text)]


def test_unicode_is_read_like_ascii():
    plain, fancy = "it's a \"TEST\" - of word-breaks, isn't it?", "It’s a “test” — of WORD‐breaks… isn’t it？"
    assert hash_words([plain]).hashes.tolist() == hash_words([fancy]).hashes.tolist()
    assert hash_words(["ÉTUDE ΛΌΓΟΣ ПРАВДА"]).hashes.tolist() == hash_words(["étude λόγος правда"]).hashes.tolist()


def test_a_text_of_many_blocks_is_read_as_one(monkeypatch):
    text = " ".join(random_texts(3, 100))
    whole, spans = hash_words([text, "last"]), find_word_spans(text)
    monkeypatch.setattr(module, "BLOCK_CHARS", 100)
    module._base_powers.cache_clear()
    pieces = hash_words([text, "last"])
    assert np.array_equal(whole.hashes, pieces.hashes) and np.array_equal(whole.bounds, pieces.bounds)
    assert np.array_equal(spans, find_word_spans(text))
    assert len(hash_words(["x" * 250]).hashes) == 3  # a word longer than a block is cut
    module._base_powers.cache_clear()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 13, 50])
def test_windows_are_all_runs_of_words_inside_a_text(length):
    rng = random.Random(length)
    texts = [" ".join(rng.choices("ab", k=rng.randrange(0, 3 * length))) for _ in range(100)]
    words = hash_words(texts)
    hashes, places = hash_windows(words, length)
    expected, starts = [], []
    for first, text in zip(words.bounds, texts, strict=False):
        runs = range(len(text.split()) - length + 1)
        expected += [tuple(text.split()[i : i + length]) for i in runs]
        starts += [first + i for i in runs]
    assert places.tolist() == starts
    assert same_classes(hashes.tolist(), expected)


def test_a_window_says_in_which_order_its_words_stand():
    texts = ["a b c d e", "b a c d e", "a c b d e", "e d c b a", "a a b b c", "a b a b c", "b b a a c"]
    assert len(set(hash_windows(hash_words(texts), 5)[0].tolist())) == len(texts)


def test_every_text_has_a_shingle():
    texts = ["a b c d e f", "a b c", "", "A, b: c!", "----", "----", "=== ===", "x", "e f g h i"]
    hashes, starts = hash_shingles(texts, 5)
    assert starts.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9] and len(hashes) == 10
    each = hashes[starts].tolist()
    assert each[1] == each[3] and each[4] == each[5]
    assert len(set(hashes.tolist())) == 8
    assert hash_shingles([], 5)[0].tolist() == []


def test_hashes_are_the_same_in_every_process():
    code = (
        "from hf_llm.data.corpus.dedup.shingles import hash_shingles; "
        "print(hash_shingles(['Eins zwei drei vier fünf'], 5)[0])"
    )
    for seed in ("0", "1"):
        output = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            check=True,
        ).stdout
        assert output.split("[")[1] == str(hash_shingles(["eins Zwei drei vier fünf."], 5)[0])[1:] + "\n"


def test_a_stream_is_batched_by_its_characters():
    items = [(0, "abc"), (1, "de"), (2, "f"), (3, "ghijkl"), (4, "m")]
    batches = list(batch_stream(items, 5, lambda item: item[1]))
    assert batches == [items[:2], items[2:4], items[4:]]
    assert list(batch_stream([], 5, str)) == []
