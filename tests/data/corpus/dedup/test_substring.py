import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from hf_llm.data.corpus.dedup import substring
from hf_llm.data.corpus.dedup.shingles import find_word_spans
from hf_llm.data.corpus.dedup.substring import (
    PassageCutter,
    RepeatedPassages,
    find_repeated_windows,
    merge_repeated_windows,
    write_windows,
)

DATA = os.environ.get("HF_LLM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")


def build_cutter(folder, documents, words, shards=1, partitions=3):
    settings = RepeatedPassages(words)
    for shard in range(shards):
        write_windows(documents[shard::shards], folder, f"shard-{shard}", partitions, settings)
    tables = []
    for number in range(partitions):
        tables.append(folder / f"{number}.npy")
        find_repeated_windows(sorted(folder.glob(f"*.{number:05d}.windows")), tables[-1])
    merge_repeated_windows(tables, folder / "repeated.npy")
    return PassageCutter(folder / "repeated.npy", settings)


def brute_force(documents, words):
    """For every document, whether each word is in a window that stands earlier."""
    seen, cut = set(), {}
    for order, text in sorted(documents):
        tokens = text.split()
        cut[order] = [False] * len(tokens)
        for i in range(len(tokens) - words + 1):
            window = tuple(tokens[i : i + words])
            if window in seen:
                cut[order][i : i + words] = [True] * words
            seen.add(window)
    return cut


def random_documents(seed, count=60, vocabulary=3):
    """Few words, so that passages of a few words repeat everywhere, also overlapping themselves."""
    rng = random.Random(seed)
    orders = [rng.getrandbits(64) for _ in range(count)]
    texts = [" ".join(rng.choices("abcdefgh"[:vocabulary], k=rng.randrange(0, 60))) for _ in range(count)]
    return list(zip(orders, texts, strict=True))


@pytest.mark.parametrize("words", [2, 3, 5, 8, 50])
@pytest.mark.parametrize("shards", [1, 4])
def test_the_words_cut_are_those_brute_force_finds(tmp_path, words, shards):
    documents = random_documents(words)
    if words == 50:
        documents += [(order // 3, f"{text} {text} {text} x") for order, text in documents]
    passage_cutter = build_cutter(tmp_path, documents, words, shards)
    expected = brute_force(documents, words)
    assert any(map(any, expected.values()))
    for order, text in documents:
        assert passage_cutter.mark_repeated_words(order, text).tolist() == expected[order]
        remaining, passages = passage_cutter.cut_passages(order, text)
        kept = [word for word, cut in zip(text.split(), expected[order], strict=True) if not cut]
        assert remaining.split() == kept
        assert sum(len(passage.split()) for passage in passages) == sum(expected[order])


def test_a_shared_passage_stays_in_the_document_that_takes_precedence(tmp_path):
    shared = " ".join(f"word{i}" for i in range(50))
    documents = [
        (9, f"Before it.\n\n{shared}\nAfter it, more."),
        (2, f"The first of them: {shared.replace(' ', '   ')} ends here."),
        (5, f"{shared}"),
        (7, f"Only part: {shared.removesuffix(' word49')} stands here."),
    ]
    passage_cutter = build_cutter(tmp_path, documents, 50, shards=2)
    assert passage_cutter.cut_passages(*documents[0]) == ("Before it.\n\nAfter it, more.", [shared])
    assert passage_cutter.cut_passages(*documents[1]) == (documents[1][1], [])
    assert passage_cutter.cut_passages(*documents[2]) == ("", [shared])
    assert passage_cutter.cut_passages(*documents[3]) == (documents[3][1], [])


def test_a_passage_said_twice_in_one_document_is_said_once(tmp_path):
    passage = " ".join(f"word{i}" for i in range(60))
    text = f"{passage}\nand again:\n{passage}\nthe end"
    assert build_cutter(tmp_path, [(1, text)], 50).cut_passages(1, text) == (
        f"{passage}\nand again:\nthe end",
        [passage],
    )


def test_characters_are_words_where_no_spaces_are_written(tmp_path):
    shared = "".join(chr(0x4E00 + i) for i in range(50))
    documents = [(1, f"甲乙{shared}丙丁"), (2, f"戊己{shared}庚辛"), (3, f"子{shared[:-1]}丑")]
    passage_cutter = build_cutter(tmp_path, documents, 50)
    assert passage_cutter.cut_passages(*documents[0])[1] == [] and passage_cutter.cut_passages(*documents[2])[1] == []
    assert passage_cutter.cut_passages(*documents[1]) == ("戊己庚辛", [shared])


@pytest.mark.parametrize("text", ["", "   \n", "a few words"])
def test_documents_too_short_to_repeat_are_left_alone(tmp_path, text):
    passage_cutter = build_cutter(tmp_path, [(1, text), (2, text)], 50)
    assert passage_cutter.cut_passages(2, text) == (text, [])


def test_the_table_is_the_same_for_any_number_of_shards_buffers_and_partitions(tmp_path, monkeypatch):
    documents = random_documents(11)
    tables = []
    for number, (shards, partitions, size) in enumerate([(1, 1, 1 << 20), (5, 7, 1 << 20), (3, 2, 100)]):
        monkeypatch.setattr(substring, "BATCH_CHARS", size)
        monkeypatch.setattr(substring, "MAX_BUFFERED_WINDOWS", size)
        (tmp_path / str(number)).mkdir()
        build_cutter(tmp_path / str(number), documents, 4, shards, partitions)
        tables.append((tmp_path / str(number) / "repeated.npy").read_bytes())
        assert not list((tmp_path / str(number)).glob("*.tmp"))
    assert tables[0] == tables[1] == tables[2]


def test_windows_with_one_hash_and_different_checks_are_told_apart(tmp_path):
    windows = np.array(
        [(7, 1, 100, 0), (7, 2, 100, 4), (7, 3, 200, 0), (7, 4, 300, 1), (7, 1, 300, 9), (8, 1, 100, 0)],
        substring.WINDOW,
    )
    windows.tofile(tmp_path / "a.windows")
    find_repeated_windows([tmp_path / "a.windows"], tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").T.tolist() == [[7, 100, 1, 0], [7, 300, 1, 9]]
    columns = PassageCutter(tmp_path / "a.npy", RepeatedPassages())._find_columns(
        np.array([7, 7, 7], np.uint64), np.array([300, 100, 200], np.uint64)
    )
    assert columns.tolist() == [1, 0, -1]


def real_documents():
    web = Path(DATA, "web_text/c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    articles = Path(DATA, "wikitext2/valid.txt").read_text(encoding="utf-8").split("\n = ")
    texts = [json.loads(line)["text"] for line in web] + articles
    rng = random.Random(0)
    for _ in range(40):  # passages of 30 to 120 words planted elsewhere
        words = rng.choice(texts).split()
        start = rng.randrange(max(1, len(words) - 120))
        where = rng.randrange(len(texts))
        texts[where] += "\n" + " ".join(words[start : start + rng.randrange(30, 120)])
    return [(rng.getrandbits(64), text) for text in texts]


@needs_data
def test_real_text_is_cut_as_a_suffix_array_says(tmp_path):
    divsufsort = pytest.importorskip("pydivsufsort")
    documents = sorted(real_documents())
    words, numbers = [], {}
    for i, (_, text) in enumerate(documents):
        words_of_text = [text[start:end] for start, end in zip(*find_word_spans(text, folded=False), strict=True)]
        words += [numbers.setdefault(word, len(numbers)) for word in words_of_text] + [-1 - i]
    words = np.array(words)
    words[words < 0] = len(numbers) - 1 - words[words < 0]  # every document ends in a word of its own
    order = divsufsort.divsufsort(words)
    common = divsufsort.kasai(words, order)[: len(words) - 1]  # with the next suffix
    group = np.cumsum(np.append(True, common < 50))
    first = np.minimum.reduceat(order, np.flatnonzero(np.append(True, common < 50)))[group - 1]
    cut = np.zeros(len(words), bool)
    for start in order[order != first]:
        cut[start : start + 50] = True
    passage_cutter = build_cutter(tmp_path, documents, 50, shards=3)
    repeated = [np.append(passage_cutter.mark_repeated_words(*document), False) for document in documents]
    assert cut.sum() > 1000
    assert np.array_equal(np.concatenate(repeated), cut)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="at least 2"):
        RepeatedPassages(1)
