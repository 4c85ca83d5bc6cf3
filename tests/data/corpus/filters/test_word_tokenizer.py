import os
import time
from pathlib import Path

import pytest

from hf_llm.data.corpus.filters.word_tokenizer import (
    MAX_CACHED_CHUNKS,
    _ChunkWords,
    count_sentences,
    count_words,
    has_words,
    split_words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't go; it's here.", ["Do", "n't", "go", ";", "it", "'s", "here", "."]),
        ("Dr. Smith can’t pay $3.50!", ["Dr.", "Smith", "ca", "n’t", "pay", "$", "3.50", "!"]),
        ("(well-known, e.g. at 10km)", ["(", "well", "-", "known", ",", "e.g.", "at", "10", "km", ")"]),
        ("see http://a.org/b?c=d.", ["see", "http://a.org/b?c=d", "."]),
        ("the U.S.A. and the end.Then", ["the", "U.S.A.", "and", "the", "end", ".", "Then"]),
        ("wait... what", ["wait", "...", "what"]),
        (" a\u00a0b\n\tc ", ["a", "b", "c"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_are_those_of_spacy(text, expected):
    assert split_words(text) == expected


def test_words_agree_with_spacy_where_it_is_installed():
    spacy = pytest.importorskip("spacy")
    data = os.environ.get("HF_LLM_DATA")
    if not data:
        pytest.skip("HF_LLM_DATA is not set")
    tokenizer = spacy.blank("en").tokenizer
    same = total = 0
    for name in ("wikitext2/valid.txt", "gutenberg/alice_pg11.txt", "tinyshakespeare/input.txt"):
        for line in Path(data, name).read_text(encoding="utf-8").splitlines()[:1500]:
            expected = [token.text.strip() for token in tokenizer(line) if token.text.strip()]
            total += 1
            same += split_words(line) == expected
    assert same / total > 0.998


def test_sentences_are_counted_up_to_what_is_asked_for():
    assert count_sentences('"Stop!" he said. "Why?" Nobody knew.', 9) == 4
    assert count_sentences("One. Two. Three. Four.", 2) == 2
    assert count_sentences("no mark at all", 5) == 1
    assert count_sentences("", 5) == 0
    assert count_sentences("It is 3.5 m at 10 a.m. today", 5) == 1


def test_counts_ignore_capitals_and_follow_the_text():
    assert count_words("The cat and the CAT") == {"the": 2, "cat": 2, "and": 1}
    assert count_words("another") == {"another": 1}


def test_scripts_without_spaces_have_no_words():
    assert has_words("plain English") and has_words("Größe und Maß") and has_words("Привет, мир") and has_words("")
    assert not has_words("这是一个没有空格的句子。") and not has_words("ภาษาไทยไม่มีช่องว่างระหว่างคำ")
    assert has_words("The character 中 means middle.")


def test_extreme_texts_do_not_take_long():
    start = time.perf_counter()
    for text in ("(" * 200_000, "a" * 2_000_000, "." * 200_000, "x-" * 200_000, "http://" * 50_000, "'" * 999):
        assert "".join(split_words(text)) == text
    assert time.perf_counter() - start < 5


def test_the_cache_of_chunks_is_bounded():
    chunks = _ChunkWords()
    for number in range(MAX_CACHED_CHUNKS + 10):
        chunks[str(number)]
    assert len(chunks) <= MAX_CACHED_CHUNKS
