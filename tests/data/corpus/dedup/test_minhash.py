import json
import os
import random
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from hf_llm.data.corpus.dedup import minhash
from hf_llm.data.corpus.dedup.minhash import NearDuplicates, compute_signatures, find_representatives
from hf_llm.data.corpus.dedup.shingles import hash_shingles

DATA = os.environ.get("HF_LLM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
SETTINGS = NearDuplicates()


def word_sets(texts, words=5):
    """The texts' sets of word n-grams, by plain Python."""
    tokens = ["".join(c if c.isalnum() else " " for c in text.lower()).split() for text in texts]
    return [{tuple(t[i : i + words]) for i in range(len(t) - words + 1)} for t in tokens]


def jaccard(left, right):
    return len(left & right) / len(left | right)


def replace_words(text, similarity, rng):
    """The text with so many words replaced, spread evenly, that about this share of its 5-grams stays."""
    words = text.split()
    lost = round((1 - similarity) / (1 + similarity) * len(words) / 5)
    for i in range(lost):
        words[int((i + rng.random()) * len(words) / lost)] = f"new{rng.getrandbits(32)}"
    return " ".join(words)


def random_text(rng, words=300):
    return " ".join(f"w{rng.getrandbits(20)}" for _ in range(words))


def find_groups(folder, parts, order, settings=SETTINGS):
    files = []
    for number, part in enumerate(parts):
        files.append(folder / f"{number}.npy")
        np.save(files[-1], part)
    return find_representatives(files, np.asarray(order), settings)


def share_of_equal_hashes(left, right):
    return np.mean(left == right, axis=-1)


def test_a_signature_does_not_depend_on_the_texts_beside_it(monkeypatch):
    rng = random.Random(0)
    texts = [random_text(rng, rng.randrange(0, 400)) for _ in range(100)]
    together = compute_signatures(texts, SETTINGS)
    assert together.shape == (100, 112) and together.dtype == np.uint32
    assert np.array_equal(together, np.concatenate([compute_signatures([text], SETTINGS) for text in texts]))
    monkeypatch.setattr(minhash, "BATCH_CHARS", 1000)
    assert np.array_equal(together, compute_signatures(texts, SETTINGS))
    assert compute_signatures([], SETTINGS).shape == (0, 112)


def test_signatures_stay_what_they_were():
    values = compute_signatures(["The quick brown fox jumps over the lazy dog.", "東京は日本の首都です"], SETTINGS)
    assert values[:, [0, 50, 111]].tolist() == [[521845261, 270012730, 771738757], [268342989, 413430735, 1435591]]


def test_shares_of_equal_hashes_estimate_jaccard():
    """Unbiased, and with the spread of independent permutations: sqrt(J (1 - J) / hashes)."""
    rng = np.random.default_rng(0)
    settings = NearDuplicates(words=1, bands=128, rows=1)
    for similarity in (0.5, 0.8):
        errors = []
        for _ in range(300):
            words = [f"w{number}" for number in rng.integers(0, 1 << 62, 300)]
            own = round(300 * (1 - similarity) / 2)
            pair = compute_signatures([" ".join(words[own:]), " ".join(words[: len(words) - own])], settings)
            errors.append(share_of_equal_hashes(*pair) - (300 - 2 * own) / 300)
        spread = (similarity * (1 - similarity) / 128) ** 0.5
        assert abs(np.mean(errors)) < 3 * spread / 300**0.5
        assert 0.85 * spread < np.std(errors) < 1.15 * spread


def test_case_punctuation_and_white_space_make_no_difference():
    pair = compute_signatures(["One, two: “three”\nfour – five (six)!", "one two three four five SIX"], SETTINGS)
    assert share_of_equal_hashes(*pair) == 1


def test_chinese_texts_are_compared_by_characters():
    rng = random.Random(0)
    text = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(400))
    near, other = text[:200] + "新" + text[201:], "".join(rng.sample(text, 400))
    left, right, far = compute_signatures([text, near, other], SETTINGS)
    assert share_of_equal_hashes(left, right) > 0.9 and share_of_equal_hashes(left, far) < 0.1


def test_the_first_in_order_stands_for_its_group(tmp_path):
    rng = random.Random(1)
    texts = [random_text(rng) for _ in range(3)]
    texts += [replace_words(texts[0], 0.9, rng), texts[1], replace_words(texts[0], 0.9, rng), "", "", "---"]
    order = np.array([2**63 + 5, 1, 2**64 - 1, 2**63 + 4, 0, 2**63 + 6, 7, 6, 8], np.uint64)
    kept = find_groups(tmp_path, [compute_signatures(texts, SETTINGS)], order)
    assert kept.dtype == np.int64
    assert kept.tolist() == [3, 4, 2, 3, 4, 3, 7, 7, 8]


def test_groups_do_not_depend_on_how_documents_lie_in_files(tmp_path):
    rng = random.Random(2)
    texts = [random_text(rng, 100) for _ in range(60)]
    texts += [replace_words(rng.choice(texts), similarity, rng) for similarity in np.linspace(0.5, 1, 140)]
    order = np.array([rng.getrandbits(64) for _ in texts], np.uint64)
    table = compute_signatures(texts, SETTINGS)
    whole = order[find_groups(tmp_path, [table], order)]
    assert 60 < len(set(whole.tolist())) < 150
    for _ in range(3):
        shuffled = np.array(rng.sample(range(200), 200))
        kept = find_groups(tmp_path, np.split(table[shuffled], [0, 17, 17, 120]), order[shuffled])
        assert np.array_equal(order[shuffled][kept], whole[shuffled])


def test_a_chain_of_near_duplicates_is_one_group(tmp_path):
    rng = random.Random(3)
    texts = [random_text(rng)]
    for _ in range(30):
        texts.append(replace_words(texts[-1], 0.93, rng))
    table = compute_signatures(texts, SETTINGS)
    assert share_of_equal_hashes(table[0], table[-1]) < 0.5
    assert set(find_groups(tmp_path, [table], np.arange(31)).tolist()) == {0}


def test_what_meets_in_a_band_is_compared_as_a_whole(tmp_path):
    """Documents that share one band by chance, and pairs of them that are alike, in one bucket."""
    rng = np.random.default_rng(4)
    table = np.repeat(rng.integers(0, 2**32, (10, 112), dtype=np.uint32), 2, axis=0)
    table[:, 21:28] = 5
    table[1::2, 90:] += 1  # 80% stays
    assert find_groups(tmp_path, [table], np.arange(20)).tolist() == [i // 2 * 2 for i in range(20)]
    strict = NearDuplicates(threshold=0.85)
    assert find_groups(tmp_path, [table], np.arange(20), strict).tolist() == list(range(20))


def test_memory_is_bounded_by_the_number_of_documents(tmp_path):
    count = 400_000
    rng = np.random.default_rng(5)
    settings = NearDuplicates(bands=2, rows=2)
    table = rng.integers(0, 2**32, (count // 4, 4), dtype=np.uint32)
    files = []
    for number in range(4):  # every document four times
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], table)
    tracemalloc.start()
    kept = find_representatives(files, rng.permutation(count), settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(kept)) == count // 4
    assert peak < 128 * count


def real_texts():
    lines = Path(DATA, "web_text/c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    texts += Path(DATA, "wikitext2/valid.txt").read_text(encoding="utf-8").split("\n = ")
    for book in ("moby_dick_pg2701", "alice_pg11"):
        words = Path(DATA, f"gutenberg/{book}.txt").read_text(encoding="utf-8").split()
        texts += [" ".join(words[i : i + 400]) for i in range(0, len(words), 400)]
    return [text for text in texts if len(text.split()) > 60]


@needs_data
def test_recall_and_precision_on_real_documents_with_planted_near_duplicates(tmp_path):
    """Against exact Jaccard of all pairs, the issue's floor: 0.95 of those at 0.8 or more are found."""
    rng = random.Random(6)
    originals = rng.sample(real_texts(), 800)
    texts = originals + [replace_words(rng.choice(originals), rng.uniform(0.4, 0.99), rng) for _ in range(1200)]
    sets = word_sets(texts)
    holders = {}
    for number, each in enumerate(sets):
        for gram in each:
            holders.setdefault(gram, []).append(number)
    near = {pair for numbers in holders.values() if len(numbers) < 50 for pair in combinations(numbers, 2)}
    exact = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in near}
    table = compute_signatures(texts, SETTINGS)
    bands = table.reshape(len(texts), SETTINGS.bands, SETTINGS.rows)
    pairs = {
        pair
        for pair in exact
        if (bands[pair[0]] == bands[pair[1]]).all(axis=1).any()
        and share_of_equal_hashes(table[pair[0]], table[pair[1]]) >= 0.7
    }
    at_least = {pair for pair, similarity in exact.items() if similarity >= 0.8}
    around = {pair for pair, similarity in exact.items() if 0.78 <= similarity < 0.82}
    assert len(at_least) > 400 and len(around) > 50
    assert len(at_least & pairs) >= 0.95 * len(at_least)
    assert len(around & pairs) >= 0.9 * len(around)
    assert sum(exact[pair] >= 0.6 for pair in pairs) >= 0.99 * len(pairs)
    group = find_groups(tmp_path, [table], np.arange(len(texts)))
    assert all(group[left] == group[right] for left, right in pairs)
    assert len(np.unique(group)) == count_components(len(texts), pairs)


def count_components(count, pairs):
    root = list(range(count))

    def find(x):
        while root[x] != x:
            x = root[x]
        return x

    for left, right in pairs:
        root[find(left)] = find(right)
    return sum(find(x) == x for x in range(count))


@pytest.mark.parametrize("wrong", [{"bands": 0}, {"rows": 0}, {"words": 0}, {"threshold": 0}, {"threshold": 1.1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NearDuplicates(**wrong)


def test_the_default_bands_find_what_the_help_says():
    assert 0.95 < 1 - (1 - 0.8**SETTINGS.rows) ** SETTINGS.bands < 0.98
    assert hash_shingles(["one two"], SETTINGS.words)[0].shape == (1,)
