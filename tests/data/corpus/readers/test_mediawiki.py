"""MediaWiki dumps: which pages are documents, and what survives damage."""

import bz2
import gzip
import os
import re
import tracemalloc
from pathlib import Path

import pytest

from hf_llm.data.corpus.readers import mediawiki
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.read_errors import ReadErrors

REAL = Path(os.environ.get("HF_LLM_DATA", "."))
HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="de">
<siteinfo><sitename>Wikipedia</sitename><base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base><namespaces>
<namespace key="0" case="first-letter" /><namespace key="1" case="first-letter">Diskussion</namespace>
<namespace key="6" case="first-letter">Datei</namespace><namespace key="14" case="first-letter">Kategorie</namespace>
</namespaces></siteinfo>
"""


def page(title: str, text: str, number: int = 1, extra: str = "", space: str = "<ns>0</ns>") -> str:
    return f"""<page><title>{title}</title>{space}<id>{number}</id>{extra}<revision><id>77</id>
<timestamp>2024-05-06T07:08:09Z</timestamp><model>wikitext</model>
<text xml:space="preserve">{text}</text></revision></page>
"""


def dump(*pages: str) -> str:
    return HEADER + "".join(pages) + "</mediawiki>"


def read(path: Path, content: bytes) -> tuple[list[RawDocument], ReadErrors]:
    path.write_bytes(content)
    errors = ReadErrors()
    return list(mediawiki.read(path, errors, None, 100_000)), errors


def titles(documents: list[RawDocument]) -> list[str]:
    return [document.about["title"] for document in documents]


def test_an_article_becomes_a_document_that_says_what_it_is(tmp_path):
    text = "[[Datei:a.jpg|mini]]'''Zürich''' &amp; der [[See]].&lt;ref&gt;x&lt;/ref&gt; [[Kategorie:Ort]]"
    (document,), errors = read(tmp_path / "a.xml", dump(page("Zürich (Ort)", text, 12)).encode())
    assert document.text == "Zürich & der See."
    assert document.url == "https://de.wikipedia.org/wiki/Z%C3%BCrich_(Ort)"
    assert (document.language, document.license) == ("de", None)
    assert document.about == {"title": "Zürich (Ort)", "page": 12, "revision": 77, "date": "2024-05-06T07:08:09Z"}
    assert (errors.records, errors.dropped.total()) == (1, 0)


def test_redirects_other_namespaces_and_disambiguation_pages_are_no_documents(tmp_path):
    others = [
        page("A", "#WEITERLEITUNG [[B]]"),
        page("A", "See B.", extra='<redirect title="B" />'),
        page("Diskussion:A", "Talk.", space="<ns>1</ns>"),
        page("Diskussion:B", "Talk in a dump that has no numbers.", space=""),
        page("C", "C may be: * [[D]] {{Begriffsklärung}}"),
        page("E", "E may be: * [[F]] {{disambig|geo}}"),
        page("S", "var a", extra="").replace("wikitext", "javascript"),
    ]
    kept = [page("G", "Good."), page("2001: H", "About a film.", space=""), page("I", "I.{{disambiguation needed}}")]
    documents, errors = read(tmp_path / "a.xml", dump(*others, *kept).encode())
    assert titles(documents) == ["G", "2001: H", "I"]
    assert (errors.records, errors.dropped.total()) == (10, 0)


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress], ids=["plain", "bzip2", "gzip"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_dumps_are_read_in_each_encoding_and_packing(tmp_path, encoding, pack):
    suffix = {bytes: ".xml", bz2.compress: ".xml.bz2", gzip.compress: ".xml.gz"}[pack]
    content = pack(dump(page("Zürich", "Ein Ort – schön."), page("Köln", "Auch 漢字 𝄞.")).encode(encoding))
    documents, errors = read(tmp_path / f"a{suffix}", content)
    assert [(document.about["title"], document.text) for document in documents] == [
        ("Zürich", "Ein Ort – schön."),
        ("Köln", "Auch 漢字 𝄞."),
    ]
    assert not errors.dropped


def test_a_broken_page_is_lost_alone(tmp_path):
    broken = page("B", "x").replace("</title>", "</titel>")
    content = dump(page("A", "Good."), broken, page("C", "Bad byte: \0"), page("D", "Good."), page("E", "{{x}}"))
    documents, errors = read(
        tmp_path / "a.xml", content.encode() + page("F", "Good \udcff").encode("utf-8", "surrogateescape")
    )
    assert titles(documents) == ["A", "D"]
    assert dict(errors.dropped) == {"malformed XML": 3} and dict(errors.left_out) == {"no text": 1}
    assert errors.records == 6


def test_entities_are_refused(tmp_path):
    bomb = '<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + dump(page("A", "&b;"), page("C", "Good."))
    documents, errors = read(tmp_path / "a.xml", bomb.encode())
    assert titles(documents) == ["C"]
    assert dict(errors.dropped) == {"malformed XML": 1}
    outside = page("A", "x").replace("<page>", '<page><!DOCTYPE p [<!ENTITY f SYSTEM "file:///etc/hostname">]>')
    documents, errors = read(tmp_path / "a.xml", dump(outside).encode())
    assert (documents, dict(errors.dropped)) == ([], {"malformed XML": 1})


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress], ids=["bzip2", "gzip"])
def test_a_truncated_dump_gives_the_pages_before_the_damage(tmp_path, pack):
    words = [" ".join(str(number * n) for n in range(4000)) for number in range(100)]
    content = pack(dump(*[page(str(number), text) for number, text in enumerate(words)]).encode())
    path = tmp_path / ("a.xml.bz2" if pack is bz2.compress else "a.xml.gz")
    documents, errors = read(path, content[: len(content) * 3 // 4])
    assert titles(documents) == [str(number) for number in range(len(documents))]
    assert 50 < len(documents) < 100
    assert dict(errors.dropped) == {"damaged file": 1}


def test_a_truncated_plain_dump_counts_the_page_that_is_cut(tmp_path):
    documents, errors = read(tmp_path / "a.xml", dump(page("A", "Good."), page("B", "Cut."))[:-60].encode())
    assert titles(documents) == ["A"]
    assert dict(errors.dropped) == {"truncated page": 1}


def test_memory_stays_bounded_however_long_a_page_is(tmp_path, monkeypatch):
    monkeypatch.setattr(mediawiki, "PAGE_BYTES", 4 << 20)
    content = dump(page("A", "Good."), page("B", "x" * (80 << 20)), page("C", "Good.")).encode()
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(content))
    del content
    errors = ReadErrors()
    tracemalloc.start()
    documents = list(mediawiki.read(tmp_path / "a.xml.bz2", errors, None, 100_000))
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert titles(documents) == ["A", "C"]
    assert dict(errors.dropped) == {"page longer than 4 MiB": 1}


def test_an_empty_dump_and_one_of_rubbish_give_nothing(tmp_path):
    assert read(tmp_path / "a.xml", b"") == ([], ReadErrors())
    assert read(tmp_path / "a.xml", os.urandom(3 << 20)) == ([], ReadErrors())


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="needs the folder of real data, HF_LLM_DATA")
@pytest.mark.parametrize(
    ("name", "record_count", "document_count"),
    [
        ("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2", 206, 98),
        ("enwiki-table-markup.xml.bz2", 5, 5),
        ("tinywiki-latest-pages-articles.xml", 8, 6),
    ],
)
def test_real_dumps_leave_no_markup(name, record_count, document_count):
    errors = ReadErrors()
    documents = list(mediawiki.read(REAL / "wikidump" / name, errors, None, 100_000))
    assert (errors.records, len(documents), errors.dropped.total()) == (record_count, document_count, 0)
    for document in documents:
        markup = re.search(r"\{\{|\}\}|\[\[|\]\]|\{\||<ref|'''|</\w+>|&[a-z]+;", document.text)
        assert not markup, document.about["title"]
