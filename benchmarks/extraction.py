"""Quality and speed of what turns web pages, web archives and wiki dumps into text, ours against other libraries.

    HF_LLM_DATA=... python benchmarks/extraction.py                  # three tables
    HF_LLM_DATA=... python benchmarks/extraction.py pages            # one of pages, archives, wikis

Needs `pip install warcio mwparserfromhell` beside the package. Speeds are by processor time, on
one core, in the median of interleaved rounds. Precision, recall and F1 are over words
(bags of `\\w+`, lower case), page by page, then averaged.
"""

import bz2
import gzip
import io
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

import fastwarc.warc
import lxml.html
import mwparserfromhell
import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from hf_llm.data.corpus.readers import mediawiki, warc
from hf_llm.data.corpus.readers.html import decode_page, extract_document
from hf_llm.data.corpus.readers.wiki_markup import extract_prose
from hf_llm.data.files.read_errors import ReadErrors

DATA = Path(os.environ["HF_LLM_DATA"])
ROUNDS = 3
LEAN = {"list_bullets": False, "alt_texts": False, "comments": False, "post_meta": False}


def pages() -> None:
    """Text of the main part of HTML pages, against text that people marked."""
    extractors = {
        "ours": lambda page: _text(extract_document(page)),
        "trafilatura": _trafilatura(),
        "trafilatura, no comments": _trafilatura(include_comments=False),
        "trafilatura, fast": _trafilatura(include_comments=False, fast=True),
        "trafilatura, precision": _trafilatura(include_comments=False, favor_precision=True),
        "trafilatura, precision, fast": _trafilatura(include_comments=False, favor_precision=True, fast=True),
        "trafilatura, recall": _trafilatura(include_comments=False, favor_recall=True),
        "datatrove's Trafilatura step": _trafilatura(include_comments=False, favor_precision=True, deduplicate=True),
        "resiliparse, main content": _resiliparse(main_content=True),
        "resiliparse, main content, lean": _resiliparse(main_content=True, **LEAN),
        "resiliparse, all text": _resiliparse(main_content=False),
    }
    for title, documents in (("html_articles", _articles()), ("html_readability", _readability())):
        texts, seconds = _measure(extractors, [page for page, _ in documents])
        rows = []
        for name in extractors:
            scores = [_scores(text, gold) for text, (_, gold) in zip(texts[name], documents, strict=True)]
            rate = f"{len(documents) / seconds[name]:.0f}"
            rows.append([name, *(f"{mean(column):.3f}" for column in zip(*scores, strict=True)), rate])
        _print(f"{title}: {len(documents)} pages", ["extractor", "precision", "recall", "F1", "pages/s"], rows)


def archives() -> None:
    """Records of a web archive: how fast, and how many are left when one of its members is damaged."""
    whole = (DATA / "warc" / "dolma-sample-0000.warc.gz").read_bytes() * 20
    members = [match.start() for match in re.finditer(rb"\x1f\x8b\x08\x04\0\0\0\0\x02\x13", whole)]
    middle = members[len(members) // 2]
    damaged = whole[: middle + 60] + b"\xff" * 30 + whole[middle + 90 :]
    unpacked = len(gzip.decompress(whole)) / 1e6
    readers = {"ours": _our_records, "fastwarc": _fastwarc_records, "warcio": _warcio_records}
    counts, seconds = _measure(readers, [whole])
    rows = [
        [name, f"{unpacked / seconds[name]:.0f}", str(counts[name][0]), str(readers[name](damaged))] for name in readers
    ]
    _print(f"{len(members)} records, one member damaged", ["reader", "MB/s", "records", "when damaged"], rows)


def wikis() -> None:
    """Prose of a Wikipedia dump: how fast, and how much markup is left in it."""
    dump = next((DATA / "wikidump").glob("enwiki-latest*.bz2"))
    content = bz2.decompress(dump.read_bytes()).decode("utf-8")
    found = {one.about["title"] for one in mediawiki.read(dump, ReadErrors(), None, 0)}
    titles = re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", content, re.DOTALL)
    markups = [lxml.html.fromstring(f"<p>{text}</p>").text_content() for title, text in titles if title in found]
    size = sum(len(markup.encode()) for markup in markups) / 1e6
    cleaners = {
        "ours": extract_prose,
        "mwparserfromhell strip_code": lambda markup: mwparserfromhell.parse(markup).strip_code(),
    }
    texts, seconds = _measure(cleaners, markups)
    rows = []
    for name in cleaners:
        left = sum(len(re.findall(r"\{\{|\[\[|\{\||<ref|'''|</\w+>|thumb\|", text)) for text in texts[name])
        rows.append([name, f"{size / seconds[name]:.1f}", f"{sum(map(len, texts[name])):,}", str(left)])
    _print(f"{len(markups)} articles, {size:.1f} MB", ["cleaner", "MB/s", "characters of prose", "marks left"], rows)


def _measure(ways: dict[str, Callable], inputs: list) -> tuple[dict[str, list], dict[str, float]]:
    """What each way makes of every input, and its processor seconds for all of them in the median round."""
    results, seconds = {}, {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = [way(one) for one in inputs]
            seconds[name].append(time.process_time() - start)
    return results, {name: median(times) for name, times in seconds.items()}


def _articles() -> list[tuple[bytes, str]]:
    folder = DATA / "html_articles"
    gold = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    return [
        (gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes()), page["articleBody"])
        for name, page in sorted(gold.items())
    ]


def _readability() -> list[tuple[bytes, str]]:
    parser = lxml.html.HTMLParser(encoding="utf-8")
    found = []
    for source in sorted((DATA / "html_readability").glob("*/source.html")):
        expected = lxml.html.fromstring((source.parent / "expected.html").read_bytes(), parser=parser)
        found.append((source.read_bytes(), " ".join(expected.itertext())))
    return found


def _text(found: object) -> str:
    return found.text if found else ""


def _trafilatura(**settings: bool) -> Callable[[bytes], str]:
    return lambda page: trafilatura.extract(decode_page(page), **settings) or ""


def _resiliparse(**settings: bool) -> Callable[[bytes], str]:
    return lambda page: extract_plain_text(decode_page(page), preserve_formatting=True, **settings)


def _scores(text: str, gold: str) -> tuple[float, float, float]:
    ours, theirs = (Counter(re.findall(r"\w+", one.lower())) for one in (text, gold))
    common = (ours & theirs).total()
    precision, recall = common / max(ours.total(), 1), common / max(theirs.total(), 1)
    return precision, recall, 2 * common / (ours.total() + theirs.total())


def _our_records(archive: bytes) -> int:
    with tempfile.NamedTemporaryFile() as file:
        file.write(archive)
        file.flush()
        return sum(1 for _ in warc.read_records(Path(file.name), ReadErrors()))


def _fastwarc_records(archive: bytes) -> int:
    records = fastwarc.warc.ArchiveIterator(io.BytesIO(archive))
    return _until_it_fails((record.reader.read() for record in records), OSError)


def _warcio_records(archive: bytes) -> int:
    records = ArchiveIterator(io.BytesIO(archive))
    return _until_it_fails((record.raw_stream.read() for record in records), ArchiveLoadFailed)


def _until_it_fails(records: Iterator[bytes], failure: type[Exception]) -> int:
    count = 0
    try:
        for _ in records:
            count += 1
    except failure:
        pass
    return count


def _print(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(head) + " |\n|" + "--|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    for table in (pages, archives, wikis):
        if len(sys.argv) < 2 or table.__name__ in sys.argv[1:]:
            table()
