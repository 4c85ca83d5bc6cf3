"""The index of texts by their runs of words, as decontamination and the overlap of benchmarks use it."""

import random

import numpy as np

from hf_llm.data.corpus.dedup.text_overlap import TextIndex, index_set, merge_tables


def words(count, seed):
    rng = random.Random(seed)
    return " ".join(f"w{rng.getrandbits(30):x}" for _ in range(count))


def make_index(texts):
    return TextIndex(merge_tables([index_set({text: [n] for n, text in enumerate(texts)}, len(texts)).tables]))


def items(index, texts, known=None):
    return sorted({item for item, _ in index.find_items(texts, known)})


def test_find_items_yields_every_item_that_has_the_shared_run():
    passage = words(20, 0)
    texts = [f"{passage} {words(3, seed)}" for seed in (1, 2, 3)] + [words(30, 4)]
    index = make_index(texts)
    assert items(index, [f"before it {passage} after it"]) == [0, 1, 2]
    assert items(index, [texts[3]]) == [3]


def test_find_items_reads_a_batch_as_separate_texts():
    short = words(8, 0)
    long = words(30, 1)
    index = make_index([short, long])
    assert items(index, [words(50, 9), "", short, long]) == [0, 1]
    half = short.split()
    assert items(index, [" ".join(half[:7]), half[7]]) == []  # the two texts together would be the item
    begin = long.split()
    assert items(index, [" ".join(begin[:12]), " ".join(begin[12:24])]) == []


def test_find_items_gives_the_words_of_the_right_text():
    short = words(8, 0)
    index = make_index([short])
    shared = [text for _, text in index.find_items([words(5, 2), f"and so: {short.upper()}!", short])]
    assert shared == [short.upper(), short]


def test_find_items_passes_over_what_is_known_also_while_it_reads():
    texts = [words(8, seed) for seed in range(4)]
    index = make_index(texts)
    known = np.array([False, True, False, False])
    seen = []
    for item, _ in index.find_items([*texts, *texts], known):
        seen.append(item)
        known[item] = True
    assert sorted(seen) == [0, 2, 3]


def test_an_index_of_nothing_finds_nothing():
    assert items(make_index(["too short"]), [words(40, 0)]) == []
