import numpy
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_top_duplicate, get_n_grams

from hf_llm.data.corpus.filters.gopher_repetition import (
    GopherRepetition,
    GopherRepetitionFilter,
    count_duplicates,
    hash_ngrams,
)
from hf_llm.data.corpus.filters.word_tokenizer import split_words


def reason(text: str, **settings) -> str:
    """Why a text is dropped; empty where it is kept."""
    return GopherRepetitionFilter(GopherRepetition(**settings)).filter(Document(text=text, id="")).reason


def random_text(seed: int) -> str:
    """Words drawn from few, with passages copied: near the limits as often as not."""
    draw = numpy.random.default_rng(seed)
    vocabulary = [f"w{'x' * int(draw.integers(1, 9))}{i}" for i in range(draw.integers(5, 120))]
    chosen = [vocabulary[i] for i in draw.integers(0, len(vocabulary), draw.integers(1, 250))]
    for _ in range(draw.integers(0, 6)):
        start, to = draw.integers(0, len(chosen), 2)
        chosen[to:to] = chosen[start : start + draw.integers(1, 20)]
    return " ".join(chosen)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_shares_are_those_of_a_plain_count(n):
    for seed in range(150):
        text = random_text(seed)
        words = split_words(text)
        if len(words) < n:
            continue
        top = find_top_duplicate(get_n_grams(words, n)) / len(text)
        again = find_all_duplicate(words, n) / len(text)
        off = {"duplicate_ngrams": {}, "top_ngrams": {}}
        for share, kind, name in (
            (top, "top_ngrams", f"top_{n}_gram"),
            (again, "duplicate_ngrams", f"duplicated_{n}_n_grams"),
        ):
            if share > 0:
                assert reason(text, **off | {kind: {n: share * 1.0001}}) == ""
                assert reason(text, **off | {kind: {n: share * 0.9999}}) == name
            else:
                assert reason(text, **off | {kind: {n: 1e-9}}) == ""


def test_keys_are_equal_exactly_for_equal_ngrams():
    ids = numpy.random.default_rng(0).integers(0, 4, 2000).astype(numpy.uint64)
    keys = hash_ngrams(ids, 5)
    grams = [tuple(ids[i : i + 5]) for i in range(len(ids) - 4)]
    assert len(keys) == len(grams)
    assert len(set(keys.tolist())) == len(set(grams)) == len(set(zip(keys.tolist(), grams, strict=True)))


def test_duplicates_are_counted_from_the_second_on():
    assert count_duplicates(["ab", "c", "ab", "ab"]) == (2, 4)
    assert count_duplicates(["a", "b"]) == count_duplicates([]) == (0, 0)


def test_limits_of_zero_are_not_applied():
    off = dict.fromkeys(
        ("duplicate_lines", "duplicate_paragraphs", "duplicate_line_characters", "duplicate_paragraph_characters"), 0
    )
    text = "the same line\n" * 40
    assert reason(text) == "dup_line_frac"
    assert reason(text, **off, top_ngrams={}, duplicate_ngrams={}) == ""


def test_ngrams_have_words():
    with pytest.raises(ValueError, match="starts at 1"):
        GopherRepetition(top_ngrams={0: 0.2})
