"""Our rules against datatrove's stock filters on the same real documents: speed, agreement, what each rule drops.

    HF_LLM_DATA=... OMP_NUM_THREADS=1 python benchmarks/cleaning.py            # everything docs/filters.md shows
    HF_LLM_DATA=... OMP_NUM_THREADS=1 python benchmarks/cleaning.py speed      # or: agreement, rates, trained

Both run the same rules with the same limits on one core: repair of the encoding, Gopher's repetition and quality, C4,
FineWeb. Rounds are interleaved, and what is remembered of words is forgotten before each; the ratio is that of the
medians. Needs `pip install spacy`, which datatrove splits words with; `trained` compares with scikit-learn where
it is installed.
"""

import gzip
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hf_llm.data.corpus.config import Rules
from hf_llm.data.corpus.filter_pipeline import make_filter_steps, train_filters
from hf_llm.data.corpus.filters import classifier, word_tokenizer
from hf_llm.data.corpus.filters.adult import Adult
from hf_llm.data.corpus.filters.c4 import C4
from hf_llm.data.corpus.filters.classifier import Classifier
from hf_llm.data.corpus.filters.fineweb import FineWeb
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality
from hf_llm.data.corpus.filters.gopher_repetition import GopherRepetition
from hf_llm.data.corpus.filters.language import Language
from hf_llm.data.corpus.filters.perplexity import Perplexity
from hf_llm.data.corpus.filters.spam import Spam
from hf_llm.data.corpus.filters.trained_filter import is_held_out
from hf_llm.data.corpus.normalize import TextNormalizer, normalize_text
from hf_llm.data.corpus.pii import Redaction

DATA = Path(os.environ["HF_LLM_DATA"])
ROUNDS = 3
MARKUP = re.compile(r"(?s)<(script|style).*?</\1>|<[^>]*>")


def sources() -> dict[str, list[str]]:
    """Name to raw documents."""
    html = [*DATA.glob("html_articles/html/*.gz"), *DATA.glob("html_multilingual/*.html")]
    return {
        "C4": [row["text"] for row in rows("web_text/c4_demo.jsonl")],
        "Common Crawl": [row["text"] for row in rows("web_text/cc_en_head-0091.jsonl")],
        "Wikipedia": cut("web_text/wiki_demo.txt", 6000),
        "WikiText-2": cut("wikitext2/train.part1.txt", 6000)[:400],
        "Gutenberg": cut("gutenberg/moby_dick_pg2701.txt", 6000) + cut("gutenberg/alice_pg11.txt", 6000),
        "HTML, tags off": [stripped(path) for path in sorted(html)],
    }


def rows(name: str) -> Iterable[dict]:
    with (DATA / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def cut(name: str, size: int) -> list[str]:
    """A long text in pieces of about `size` characters, cut after a line or a sentence."""
    found, piece = [], ""
    for sentence in re.split(r"(?<=[.!?\n])(?=\S)|(?<=[.!?] )", (DATA / name).read_text(encoding="utf-8")):
        piece += sentence
        if len(piece) >= size:
            found.append(piece)
            piece = ""
    return [*found, piece]


def stripped(path: Path) -> str:
    """A page's text with menus and all: the worst a reader may hand on."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return re.sub(r"\n\s+", "\n", MARKUP.sub("", content.decode("utf-8", "replace")))


def ours() -> list[PipelineStep]:
    rules = Rules(gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), c4=C4(), fineweb=FineWeb())
    return [TextNormalizer(), *make_filter_steps(rules, Path())]


def stock() -> list[PipelineStep]:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import FTFYFormatter

    return [
        FTFYFormatter(),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(),
        FineWebQualityFilter(),
    ]


def survivors(steps: list[PipelineStep], texts: list[str]) -> dict[str, str]:
    """Document id to text of those that all steps let through."""
    data = (Document(text=text, id=str(number), metadata={}) for number, text in enumerate(texts))
    for step in steps:
        data = step.run(data)
    return {document.id: document.text for document in data}


def timed(steps: list[PipelineStep], texts: list[str]) -> tuple[float, list[float]]:
    """Seconds in all, and in each step."""
    from datatrove.utils.text import split_into_parts

    word_tokenizer._chunk_words.cache_clear()
    split_into_parts.cache_clear()
    start = time.perf_counter()
    survivors(steps, texts)
    return time.perf_counter() - start, [step.stats.time_stats.total for step in steps]


def speed(by_source: dict[str, list[str]]) -> None:
    texts = [text for texts in by_source.values() for text in texts]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {megabytes:.1f} MB, {ROUNDS} rounds")
    timed(stock(), texts[:20])
    taken = {"datatrove": [], "ours": []}
    for _ in range(ROUNDS):
        for name, make in (("datatrove", stock), ("ours", ours)):
            taken[name].append(timed(make(), texts))
    for name, rounds in taken.items():
        print(f"{name:10} {megabytes / median(total for total, _ in rounds):6.2f} MB/s per core")
    print(f"ratio      {median(t for t, _ in taken['datatrove']) / median(t for t, _ in taken['ours']):6.1f}")
    print(f"\n{'seconds':18} {'datatrove':>10} {'ours':>8} {'ratio':>6}")
    for index, name in enumerate(("encoding", "gopher_repetition", "gopher_quality", "c4", "fineweb")):
        theirs, our = (median(each[index] for _, each in taken[who]) for who in taken)
        print(f"{name:18} {theirs:10.2f} {our:8.2f} {theirs / our:6.1f}")


def agreement(by_source: dict[str, list[str]]) -> None:
    """The same filters on the same normalised documents: who survives, and with what text."""
    print(f"\n{'survivors':16} {'documents':>10} {'datatrove':>10} {'ours':>6} {'same':>6} {'same text':>10}")
    for name, texts in by_source.items():
        clean = [normalize_text(text) for text in texts]
        theirs, our = survivors(stock()[1:], clean), survivors(ours()[1:], clean)
        same = theirs.keys() & our.keys()
        equal = sum(theirs[key] == our[key] for key in same)
        print(f"{name:16} {len(texts):10} {len(theirs):10} {len(our):6} {len(same):6} {equal:10}")
        for key in sorted(theirs.keys() ^ our.keys(), key=int):
            print(f"    only {'datatrove' if key in theirs else 'we'} keep {clean[int(key)][:70]!r}")


def rates(by_source: dict[str, list[str]]) -> None:
    """Each rule by itself on all documents: the share it drops, and why."""
    rules = Rules(
        language=Language(keep=["en"]),
        gopher_repetition=GopherRepetition(),
        gopher_quality=GopherQuality(),
        c4=C4(),
        fineweb=FineWeb(),
        spam=Spam(),
        adult=Adult(),
    )
    steps = make_filter_steps(rules, Path())
    print(f"\n{'dropped':18} " + " ".join(f"{name:>14}" for name in by_source) + "  most common reasons")
    for step in steps:
        reasons, line = Counter(), ""
        for texts in by_source.values():
            found = [step.filter(Document(text=normalize_text(text), id="", metadata={})) for text in texts]
            dropped = [result[1] for result in found if result is not True]
            reasons.update(dropped)
            line += f" {len(dropped) / len(texts):14.1%}"
        print(f"{step.name:18}{line}  " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3)))
    redaction = make_filter_steps(Rules(pii=Redaction()), Path())
    survivors(redaction, [text for texts in by_source.values() for text in texts])
    print("redacted: " + ", ".join(f"{n} {int(s.total)}" for n, s in redaction[0].stats.stats.items() if "_" in n))


def trained(by_source: dict[str, list[str]]) -> None:
    """Perplexity and classifier, Wikipedia as the good and C4 as the bad."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.jsonl") for name in ("Wikipedia", "C4")}
        for name, path in paths.items():
            texts = [piece for text in by_source[name] for piece in pieces(text, 2000)]
            path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        good, bad = (str(path) for path in paths.values())
        rules = Rules(perplexity=Perplexity(good=good), classifier=Classifier(good=good, bad=bad))
        start = time.perf_counter()
        reports = train_filters(rules, Path(folder, "models"))
        print(f"\ntrained in {time.perf_counter() - start:.1f} s")
        for name, report in reports.items():
            print(f"{name:11} " + ", ".join(f"{key} {value:.4g}" for key, value in report.items()))
        for step in make_filter_steps(rules, Path(folder, "models")):
            shares, size, begin = [], 0, time.perf_counter()
            for name, texts in by_source.items():
                kept = [step.filter(Document(text=text, id="", metadata={})) is True for text in texts]
                shares.append(f"{name} {sum(kept) / len(texts):.0%}")
                size += sum(map(len, texts))
            rate = size / 1e6 / (time.perf_counter() - begin)
            print(f"{step.name:11} keeps {', '.join(shares)}; {rate:.0f} MB/s")
        if find_spec("sklearn"):
            texts = [[normalize_text(row["text"]) for row in map(json.loads, path.open())] for path in paths.values()]
            reference(*texts)


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size) if len(text) - start >= 200]


def reference(good: list[str], bad: list[str]) -> None:
    """scikit-learn's logistic regression on the same features and the same texts held out."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    texts = list(dict.fromkeys(good)) + list(dict.fromkeys(bad))
    found = [classifier.hash_features(text) for text in texts]
    values = numpy.concatenate([numpy.full(len(each), len(each) ** -0.5) for each in found])
    bounds = numpy.cumsum([0, *map(len, found)])
    matrix = csr_matrix((values, numpy.concatenate(found), bounds), (len(texts), 1 << classifier.FEATURE_BITS))
    kind = set(good)
    labels = numpy.array([text in kind for text in texts])
    unseen = numpy.array([is_held_out(text) for text in texts])
    model = LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000).fit(matrix[~unseen], labels[~unseen])
    scores = model.predict_proba(matrix[unseen])[:, 1]
    accuracy = balanced_accuracy_score(labels[unseen], scores >= 0.5)
    print(f"scikit-learn accuracy {accuracy:.4g}, auc {roc_auc_score(labels[unseen], scores):.4g}")


def main() -> None:
    by_source = sources()
    for part in (speed, agreement, rates, trained):
        if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
            part(by_source)


if __name__ == "__main__":
    main()
