"""Duplicates: documents a second, recall, agreement and memory, beside rensa, datasketch, datatrove and a suffix array.

    HF_LLM_DATA=folder python benchmarks/deduplication.py            # all of it but the long memory test
    HF_LLM_DATA=folder python benchmarks/deduplication.py near quality decontamination
    HF_LLM_DATA=folder python benchmarks/deduplication.py memory --big   # up to 1 GB of text; 5 GB of disk

One thread each, in seconds of the processor. Rounds are interleaved, so that all suffer alike from what else the
machine does; the figures are of the median round. The folder is that of the tests: web pages, encyclopedia articles and
books. Beside the package this needs `pip install rensa datasketch spacy pydivsufsort`.
"""

import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig

from hf_llm.data.corpus.dedup.minhash import NearDuplicates, compute_signatures, find_representatives
from hf_llm.data.corpus.dedup.shingles import find_word_spans, hash_shingles
from hf_llm.data.corpus.dedup.substring import (
    PassageCutter,
    RepeatedPassages,
    find_repeated_windows,
    merge_repeated_windows,
    write_windows,
)
from hf_llm.data.corpus.filters.decontamination import Decontaminate, EvaluationSet, evaluation_sets

ROUNDS = 5
SETTINGS = NearDuplicates()


def real_texts() -> list[str]:
    """Web pages, encyclopedia articles and pieces of books, of 60 words or more."""
    data = Path(os.environ["HF_LLM_DATA"])
    texts = [json.loads(line)["text"] for line in (data / "web_text/c4_demo.jsonl").read_text("utf-8").splitlines()]
    texts += (data / "web_text/wiki_demo.txt").read_text("utf-8").splitlines()
    for name in ("train.part1", "valid"):
        texts += (data / f"wikitext2/{name}.txt").read_text("utf-8").split("\n = ")
    for book in ("moby_dick_pg2701", "alice_pg11"):
        words = (data / f"gutenberg/{book}.txt").read_text("utf-8").split()
        texts += [" ".join(words[i : i + 400]) for i in range(0, len(words), 400)]
    return [text for text in texts if 60 <= len(text.split()) <= 5000]


def changed(text: str, similarity: float, rng: random.Random) -> str:
    """The text with so many words replaced, spread evenly, that about this share of its 5-grams stays."""
    words = text.split()
    lost = round((1 - similarity) / (1 + similarity) * len(words) / 5)
    for i in range(lost):
        words[int((i + rng.random()) * len(words) / lost)] = f"new{rng.getrandbits(32)}"
    return " ".join(words)


def with_near_duplicates(originals: int, copies: int, lowest: float) -> list[str]:
    rng = random.Random(0)
    texts = rng.sample(real_texts(), originals)
    texts += [changed(rng.choice(texts[:originals]), rng.uniform(lowest, 0.99), rng) for _ in range(copies)]
    rng.shuffle(texts)
    return texts


def race(runners: dict[str, tuple[Callable[[], object], float]], unit: str) -> None:
    """Run each in turn, ROUNDS times, and print its work a second and how long it takes for the work of the first."""
    times = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, (run, _) in runners.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    speeds = {name: work / median(times[name]) for name, (_, work) in runners.items()}
    for name, speed in speeds.items():
        print(f"  {name:<44} {speed:>12,.1f} {unit}/s {next(iter(speeds.values())) / speed:>8.2f} x the time")


def word_shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))]


def documents(texts: list[str]) -> Iterator[Document]:
    return (Document(text=text, id=str(i)) for i, text in enumerate(texts))


def compare_signatures() -> None:
    """MinHash signatures of 112 numbers, of the same documents."""
    import rensa
    from datasketch import MinHash

    texts = with_near_duplicates(1200, 0, 1)
    hashes, starts = hash_shingles(texts, 5)
    offsets = np.append(starts, len(hashes)).astype(np.uint64)
    many = rensa.RMinHash.digest_matrix_from_token_sets
    flat = rensa.RMinHash.digest_matrix_from_flat_token_hashes
    print(f"signatures: {len(texts)} documents, {sum(map(len, texts)) / len(texts):.0f} characters on average")

    def with_datasketch() -> None:
        for text in texts[:200]:
            MinHash(112).update_batch([shingle.encode() for shingle in word_shingles(text)])

    def with_datatrove() -> None:
        with tempfile.TemporaryDirectory() as folder:
            datatrove_signatures(texts[:200], folder, 16, 7)

    with_datatrove()  # loads its tokenizer
    compute_signatures(texts, SETTINGS)
    count = len(texts)
    race(
        {
            "ours: text to signature, 5-grams": (lambda: compute_signatures(texts, SETTINGS), count),
            "rensa: split into words": (lambda: many([text.split() for text in texts], 112, 42), count),
            "rensa: 5-grams as strings": (lambda: many([word_shingles(text) for text in texts], 112, 42), count),
            "datasketch: 5-grams": (with_datasketch, 200),
            "datatrove: 5-grams": (with_datatrove, 200),
            "ours: 5-grams hashed, no signature": (lambda: hash_shingles(texts, 5), count),
            "rensa: our hashed 5-grams, signature only": (lambda: flat(hashes, offsets, 112, 42), count),
        },
        "documents",
    )


def datatrove_signatures(texts: list[str], folder: str, bands: int, rows: int) -> MinhashConfig:
    """Its first stage."""
    import xxhash
    from datatrove.pipeline.dedup import MinhashDedupSignature

    config = MinhashConfig(n_grams=5, num_buckets=bands, hashes_per_bucket=rows)
    step = MinhashDedupSignature(folder, config)
    step._hash_func = lambda text: xxhash.xxh64_intdigest(
        text.encode()
    )  # 0.10.1 hands str to xxhash 4, which wants bytes
    step.run(documents(texts))
    return config


def datatrove_keeps(texts: list[str], folder: Path, bands: int, rows: int) -> set[int]:
    """The numbers of the documents datatrove's four stages keep."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter

    config = datatrove_signatures(texts, str(folder / "signatures"), bands, rows)
    for band in range(bands):
        step = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)
        step.run(None, band, bands)
    MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config).run(None, 0, 1)
    step = MinhashDedupFilter(str(folder / "remove"))
    return {int(document.id) for document in step.run(documents(texts))}


def our_groups(texts: list[str], folder: Path) -> np.ndarray:
    """The number of the document that stands for each."""
    np.save(folder / "signatures.npy", compute_signatures(texts, SETTINGS))
    return find_representatives([folder / "signatures.npy"], np.arange(len(texts)), SETTINGS)


def compare_near() -> None:
    """Near-duplicates from text to survivors, against datatrove's four stages."""
    for lowest in (0.9, 0.5):
        texts = with_near_duplicates(900, 600, lowest)
        found = {}

        def run(name: str, find: Callable[..., object], *arguments: int, texts=texts, found=found) -> None:
            with tempfile.TemporaryDirectory() as folder:
                found[name] = find(texts, Path(folder), *arguments)

        print(f"near-duplicates, text to survivors: {len(texts)} documents, 600 of them copies, {lowest} to 0.99 alike")
        run("warm", datatrove_keeps, 14, 8)
        race(
            {
                "ours, 16 bands of 7, threshold 0.7": (lambda run=run: run("ours", our_groups), len(texts)),
                "datatrove, its 14 bands of 8": (lambda run=run: run("theirs", datatrove_keeps, 14, 8), len(texts)),
            },
            "documents",
        )
        groups, theirs = found["ours"], found["theirs"]
        ours = set(groups.tolist())
        left = np.bincount(groups[sorted(theirs)], minlength=len(texts))
        alike = sum(left[number] == 1 for number in ours)
        print(
            f"  kept: ours {len(ours)}, datatrove {len(theirs)}; groups of ours of which datatrove keeps one: {alike}"
        )
        similarity = exact_jaccard(texts)
        for name, kept in (("ours", ours), ("datatrove", theirs)):
            both = sum(s >= 0.8 and a in kept and b in kept for (a, b), s in similarity.items())
            near = {number for pair, s in similarity.items() if s >= 0.6 for number in pair}
            alone = len(set(range(len(texts))) - kept - near)
            print(f"  {name}: pairs 0.8 or more alike among the kept {both}; dropped, with nothing 0.6 alike {alone}")


def exact_jaccard(texts: list[str]) -> dict[tuple[int, int], float]:
    """The Jaccard similarity of the sets of word 5-grams, of every pair that has some in common (0.1 or more)."""
    tokens = [[text[start:end].lower() for start, end in zip(*find_word_spans(text), strict=True)] for text in texts]
    sets = [{tuple(each[i : i + 5]) for i in range(len(each) - 4)} for each in tokens]
    holders, shared = {}, {}
    for number, each in enumerate(sets):
        for gram in each:
            holders.setdefault(gram, []).append(number)
    for numbers in holders.values():
        for pair in combinations(numbers, 2):
            shared[pair] = shared.get(pair, 0) + 1
    found = {pair: n / (len(sets[pair[0]]) + len(sets[pair[1]]) - n) for pair, n in shared.items()}
    return {pair: similarity for pair, similarity in found.items() if similarity >= 0.1}


def measure_quality() -> None:
    """Pairs found, by their exact similarity: recall where it is high, and how little is found where it is low."""
    texts = with_near_duplicates(800, 1200, 0.3)
    similarity = exact_jaccard(texts)
    print(f"quality: {len(texts)} documents, {len(similarity)} pairs with a Jaccard similarity of 0.1 or more")
    made = compute_signatures(texts, SETTINGS)
    wide = compute_signatures(texts, NearDuplicates(bands=14, rows=8))
    edges = [0.1, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.001]
    print(f"  {'similarity':<14} {'pairs':>6} {'found':>8} {'in a band':>10} {'14 bands of 8':>14}")
    for low, high in [*pairwise(edges), (0.8, 1.001)]:
        pairs = [pair for pair, s in similarity.items() if low <= s < high]
        left, right = np.array(pairs).reshape(-1, 2).T
        met = meet(made, left, right, 16, 7)
        found = met & (np.mean(made[left] == made[right], axis=1) >= SETTINGS.threshold)
        other = meet(wide, left, right, 14, 8)
        shares = [f"{each.mean():.3f}" if len(pairs) else "-" for each in (found, met, other)]
        print(f"  {low:.2f} to {min(high, 1):.2f}   {len(pairs):>6} {shares[0]:>8} {shares[1]:>10} {shares[2]:>14}")


def meet(made: np.ndarray, left: np.ndarray, right: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Whether pairs agree in all of a band: bool (pairs,)."""
    by_band = made.reshape(len(made), bands, rows)
    return (by_band[left] == by_band[right]).all(axis=2).any(axis=1)


def with_passages(count: int) -> list[tuple[int, str]]:
    """Real documents, a third of them with a passage of another."""
    rng = random.Random(0)
    texts = rng.choices(real_texts(), k=count)
    texts = [" ".join(rng.sample(words := text.split(), len(words))) for text in texts]
    for i in range(0, count, 3):
        words = rng.choice(texts).split()
        start = rng.randrange(len(words))
        texts[i] += "\n" + " ".join(words[start : start + rng.randrange(30, 200)])
    return [(rng.getrandbits(64), text) for text in texts]


def cut_words(texts: list[tuple[int, str]], folder: Path, partitions: int = 8) -> list[np.ndarray]:
    settings = RepeatedPassages()
    write_windows(iter(texts), folder, "all", partitions, settings)
    tables = [folder / f"{number}.npy" for number in range(partitions)]
    for number, table in enumerate(tables):
        find_repeated_windows(list(folder.glob(f"*.{number:05d}.windows")), table)
    merge_repeated_windows(tables, folder / "repeated.npy")
    cutter = PassageCutter(folder / "repeated.npy", settings)
    return [cutter.mark_repeated_words(order, text) for order, text in texts]


def suffix_array_words(texts: list[tuple[int, str]]) -> list[np.ndarray]:
    """The same by a suffix array of the words of all texts."""
    import pydivsufsort

    in_order = sorted(texts)
    numbers, words = {}, []
    for i, (_, text) in enumerate(in_order):
        words += [numbers.setdefault(word, len(numbers)) for word in text.split()] + [-1 - i]
    words = np.array(words)
    ends = np.flatnonzero(words < 0)
    words[ends] = len(numbers) - 1 - words[ends]
    order = pydivsufsort.divsufsort(words)
    apart = np.append(True, pydivsufsort.kasai(words, order)[: len(words) - 1] < 50)
    first = np.minimum.reduceat(order, np.flatnonzero(apart))[np.cumsum(apart) - 1]
    depth = np.zeros(len(words) + 1, int)
    np.add.at(depth, order[order != first], 1)
    np.add.at(depth, np.minimum(order[order != first] + 50, len(words)), -1)
    parts = np.split(np.cumsum(depth[:-1]) > 0, ends + 1)[:-1]
    by_order = {key: part[:-1] for (key, _), part in zip(in_order, parts, strict=True)}
    return [by_order[key] for key, _ in texts]


def compare_substring() -> None:
    """Repeated passages of 50 words: which words are cut, and how fast."""
    texts = [(order, re.sub(r"[^\x00-\x7f]", "x", text)) for order, text in with_passages(6000)]
    size = sum(len(text) for _, text in texts) / 1e6
    found = {}

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found["ours"] = cut_words(texts, Path(folder))

    def theirs() -> None:
        found["theirs"] = suffix_array_words(texts)

    print(f"repeated passages: {len(texts)} documents, {size:.0f} MB")
    race({"ours, on the disk": (ours, size), "suffix array of the words, in memory": (theirs, size)}, "MB")
    same = all(np.array_equal(a, b) for a, b in zip(found["ours"], found["theirs"], strict=True))
    total = sum(len(each) for each in found["ours"])
    print(f"  {sum(each.sum() for each in found['ours']):,} of {total:,} words cut; the same words: {same}")


def made_up(size: int) -> Iterator[tuple[int, str]]:
    """Documents of `size` bytes in all: the words of real ones in another order, one in twenty with a passage of 100
    words of an earlier one."""
    rng = np.random.default_rng(0)
    texts = [np.array(text.split(), object) for text in real_texts()]
    last, number = texts[0], 0
    while size > 0:
        words = rng.permutation(texts[rng.integers(len(texts))])
        if number % 20 == 0:
            words = np.concatenate([words, last[:100]])
            last = words
        text = " ".join(words)
        size -= len(text.encode())
        yield number, text
        number += 1


def resident_peak() -> float:
    """Megabytes this process has held at most. (Linux; getrusage would count the parent's memory too.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def windows_memory(size: int, folder: str) -> tuple[float, float]:
    next(made_up(1))
    before, start = resident_peak(), time.perf_counter()
    write_windows(made_up(size), Path(folder), "all", max(1, size >> 24), RepeatedPassages())
    return resident_peak() - before, time.perf_counter() - start


def search_memory(folder: str) -> tuple[float, float]:
    before, start = resident_peak(), time.perf_counter()
    tables = []
    for path in sorted(Path(folder).glob("*.windows")):
        tables.append(path.with_suffix(".npy"))
        find_repeated_windows([path], tables[-1])
    merge_repeated_windows(tables, Path(folder, "repeated.npy"))
    return resident_peak() - before, time.perf_counter() - start


def cut_memory(size: int, folder: str) -> tuple[float, float]:
    next(made_up(1))
    before, start = resident_peak(), time.perf_counter()
    cutter = PassageCutter(Path(folder, "repeated.npy"), RepeatedPassages())
    for order, text in made_up(size):
        cutter.cut_passages(order, text)
    return resident_peak() - before, time.perf_counter() - start


def near_memory(count: int, folder: str) -> tuple[float, float]:
    """Signatures of `count` documents, a fifth of them near-duplicates."""
    rng = np.random.default_rng(0)
    path = Path(folder, "signatures.npy")
    made = np.lib.format.open_memmap(path, "w+", np.uint32, (count, SETTINGS.signature_length))
    for start in range(0, count, 50_000):
        block = rng.integers(0, 1 << 32, (min(50_000, count - start), SETTINGS.signature_length), np.uint32)
        block[::5] = block[1 : len(block) : 5][0]
        made[start : start + len(block)] = block
    made.flush()
    order = rng.permutation(count)
    tracemalloc.start()  # the pages of the mapped file are the system's, to keep or to drop
    start = time.perf_counter()
    find_representatives([path], order, SETTINGS)
    return tracemalloc.get_traced_memory()[1] / 1e6, time.perf_counter() - start


def measure_memory() -> None:
    """What fresh processes hold at their peak, beyond what they hold when they start."""

    def fresh(work: Callable[..., tuple[float, float]], *arguments: object) -> str:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            held, seconds = pool.apply(work, arguments)
        return f"{held:>7.0f} MB {seconds:>6.1f} s"

    print(f"repeated passages   {'write windows':>18} {'find repeated':>18} {'cut':>18}")
    for size in (10_000_000, 100_000_000, 1_000_000_000)[: 3 if "--big" in sys.argv else 2]:
        with tempfile.TemporaryDirectory() as folder:
            parts = [fresh(windows_memory, size, folder), fresh(search_memory, folder), fresh(cut_memory, size, folder)]
            print(f"  {size // 1_000_000:>5} MB of text   " + "  ".join(parts))
    print("representatives")
    for count in (100_000, 400_000, 1_600_000)[: 3 if "--big" in sys.argv else 2]:
        with tempfile.TemporaryDirectory() as folder:
            print(f"  {count:>9,} documents {fresh(near_memory, count, folder)}")


EVALUATION = {
    "hellaswag/*.jsonl": ["ctx", "endings"],
    "gsm8k/*.jsonl": ["question", "answer"],
    "humaneval/*.jsonl.gz": ["prompt", "canonical_solution"],
    "mmlu/test/*.csv": None,
    "truthfulqa/*.csv": None,
    "crows_pairs/*.csv": None,
    "blimp/*.jsonl": None,
    **{f"mc_misc/{name}.jsonl": None for name in ("arc_easy", "piqa", "lambada_openai", "winogrande", "boolq", "copa")},
}


def measure_decontamination() -> None:
    """Clean documents that are dropped, by the length from which whole texts are looked for; and speed."""
    data = Path(os.environ["HF_LLM_DATA"])
    texts = real_texts() + (data / "tinystories/tiny_stories.part1.txt").read_text("utf-8").split("<|endoftext|>")
    texts += [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("[a-z]*.py"))]
    size = sum(map(len, texts)) / 1e6
    print(f"decontamination: {len(texts)} documents without evaluation texts, {size:.0f} MB, {len(EVALUATION)} sets")
    against = [EvaluationSet(path=str(data / path), columns=columns) for path, columns in EVALUATION.items()]
    for words in (4, 5, 6, 8):
        settings = Decontaminate(against, min_words=words)
        with tempfile.TemporaryDirectory() as folder:
            settings.write_index(Path(folder))
            document_filter = settings.make_filter(Path(folder))
            start = time.process_time()
            verdicts = [document_filter.filter(document) for document in documents(texts)]
            dropped = [verdict for verdict in verdicts if not verdict.is_kept]
            speed = size / (time.process_time() - start)
            short, too_short = (
                sum(each[name] for each in evaluation_sets(Path(folder))) for name in ("short", "too_short")
            )
        print(f"  min_words {words}: {short} short texts sought, {too_short} not; ", end="")
        print(f"{len(dropped)} documents dropped, {speed:.0f} MB/s")
        for verdict in dropped[:5]:
            print(f"    {verdict.detail}")


PARTS = {
    "signatures": compare_signatures,
    "near": compare_near,
    "quality": measure_quality,
    "substring": compare_substring,
    "decontamination": measure_decontamination,
    "memory": measure_memory,
}


def main() -> None:
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's
    for name in [name for name in sys.argv[1:] if name in PARTS] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
