"""HTML pages: the main text, what a page says of itself, and pages that do harm."""

import gzip
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from hf_llm.data.corpus.readers import html
from hf_llm.data.corpus.readers.html import PageError, PageReader, decode_page, extract_document
from hf_llm.data.files.read_errors import ReadErrors

REAL = Path(os.environ.get("HF_LLM_DATA", "."))
PROSE = "The river rises in the northern hills and runs for two hundred miles to the sea. " * 5
MORE = "Boats went up as far as the mill until the weir was built in the year of the flood. " * 5
PAGE = f"""<!DOCTYPE html><html lang="en-GB"><head><title> The
 river </title><meta property="article:published_time" content="2021-03-04T05:06:07Z">{{head}}</head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li></ul></nav>
<article><h1>The river</h1><p>{PROSE}</p><p>{MORE}</p>{{body}}</article>
<footer>Copyright 2021. All rights reserved. {{foot}}</footer></body></html>"""


def page(head: str = "", body: str = "", foot: str = "") -> bytes:
    return PAGE.format(head=head, body=body, foot=foot).encode()


def test_the_main_text_is_kept_and_menus_and_footers_are_not():
    document = extract_document(page(), "http://a.org/river")
    assert document.text.split("\n") == ["The river", PROSE.strip(), MORE.strip()]
    assert "Shop" not in document.text
    assert "Copyright" not in document.text
    assert (document.url, document.language, document.license) == ("http://a.org/river", "en", None)
    assert document.about == {"title": "The river", "published": "2021-03-04T05:06:07Z"}


def test_a_page_of_several_articles_gives_all_of_them():
    articles = [f"<article><h2>Day {day}</h2><p>On day {day} {PROSE}</p></article>" for day in range(9)]
    document = extract_document(f"<html><body><main>{''.join(articles)}</main></body></html>".encode())
    assert all(f"On day {day} The river" in document.text for day in range(9))


def test_a_page_without_text_has_no_document():
    assert extract_document(b"") is None
    assert extract_document(b"<html><body><script>let a = 1</script></body></html>") is None


BY_SA = '<a rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">licence</a>'


@pytest.mark.parametrize(
    ("parts", "license"),
    [
        ({"foot": BY_SA}, "cc-by-sa-4.0"),
        ({"head": '<link rel="license" href="http://creativecommons.org/licenses/by/3.0/de/deed.en">'}, "cc-by-3.0-de"),
        ({"foot": BY_SA.replace("licenses/by-sa/4.0", "publicdomain/zero/1.0")}, "cc0-1.0"),
        ({"foot": BY_SA.replace(' rel="license"', "")}, None),
        ({"body": f"<figure><figcaption>{BY_SA}</figcaption></figure>"}, None),
        ({"foot": BY_SA + BY_SA.replace("by-sa", "by-nc")}, None),
        ({"foot": BY_SA.replace("creativecommons.org/licenses/by-sa/4.0", "a.org/terms")}, None),
    ],
    ids=["stated", "in the head", "zero", "only linked", "of a picture", "two of them", "of another kind"],
)
def test_a_licence_is_taken_where_the_page_itself_states_one(parts, license):
    assert extract_document(page(**parts)).license == license


WORD = "Füße, 10 €, “naïve”"


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        (WORD.encode(), None, WORD),
        (WORD.encode(), "iso-8859-1", WORD),
        (b"\xef\xbb\xbf" + WORD.encode(), None, WORD),
        (WORD.encode("cp1252"), "iso-8859-1", WORD),
        ("Это русский текст".encode("cp1251"), "windows-1251", "Это русский текст"),
        ("<meta charset=koi8-r>Это русский текст".encode("koi8-r"), None, "<meta charset=koi8-r>Это русский текст"),
        ("日本語の文章です。".encode("shift_jis") * 9, None, "日本語の文章です。" * 9),
        ("日本語の文章です。".encode("iso-2022-jp"), "iso-2022-jp", "日本語の文章です。"),
        (WORD.encode("utf-16"), None, WORD),
        ("Füße".encode()[:-1] + b"\xff", "utf-8", "Füß\ufffd"),
    ],
    ids=[
        "utf-8",
        "said to be latin-1",
        "byte order mark",
        "cp1252",
        "cp1251",
        "meta",
        "guessed",
        "escapes",
        "utf-16",
        "one wrong byte",
    ],
)
def test_bytes_become_text_whatever_their_encoding(data, charset, text):
    assert decode_page(data, charset) == text


def test_an_unknown_charset_is_not_trusted():
    assert decode_page("Füße".encode("latin-1"), "x-no-such-charset") == "Füße"


def test_the_reader_answers_as_the_function_does():
    reader = PageReader()
    assert reader.extract_page(page(foot=BY_SA), "http://a.org/") == extract_document(page(foot=BY_SA), "http://a.org/")
    assert reader.extract_page(b"<html></html>") is None
    reader.stop()


def test_a_page_that_takes_too_long_is_lost_alone():
    reader = PageReader(seconds=0.5)
    with pytest.raises(PageError, match=r"longer than 0\.5 s"):
        reader.extract_page(b"<html><body>" + b"<div>" * 500_000)
    assert reader.extract_page(page()) is not None
    reader.stop()


def test_a_page_that_fills_the_memory_is_lost_alone():
    reader = PageReader(memory=600 << 20)
    assert reader.extract_page(page()) is not None
    with pytest.raises(PageError, match=r"memory|crashed|in the extractor"):
        reader.extract_page(b"<p>" + b"<b>x" * 2_000_000)
    assert reader.extract_page(page()) is not None
    reader.stop()


def test_a_reader_that_was_killed_loses_one_page():
    reader = PageReader()
    assert reader.extract_page(page()) is not None
    reader.process.kill()
    with pytest.raises(PageError, match="crashed"):
        reader.extract_page(page() * 20)
    assert reader.extract_page(page()) is not None
    reader.stop()


def test_files_are_read_one_document_each_and_the_others_counted(tmp_path):
    (tmp_path / "a.html").write_bytes(page())
    (tmp_path / "b.html.gz").write_bytes(gzip.compress(page()))
    (tmp_path / "c.html").write_bytes(b"<html></html>")
    (tmp_path / "d.html.gz").write_bytes(gzip.compress(page())[:-30])
    (tmp_path / "e.html.gz").write_bytes(gzip.compress(b" " * (200 << 20)))
    errors = ReadErrors()
    counts = [len(list(html.read(path, errors, None, 1000))) for path in sorted(tmp_path.iterdir())]
    assert counts == [1, 1, 0, 0, 0]
    assert errors.records == 5
    assert dict(errors.dropped) == {"damaged file": 1, "page longer than 8 MiB": 1}
    assert dict(errors.left_out) == {"no text": 1}


def f1(text: str, gold: str) -> float:
    """Word-level F1 of two texts, as bags of words."""
    ours, theirs = (Counter(re.findall(r"\w+", one.lower())) for one in (text, gold))
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="needs the folder of real data, HF_LLM_DATA")
def test_the_text_of_thirty_real_articles_is_what_people_marked():
    folder = REAL / "html_articles"
    gold = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    scores = [
        f1(
            extract_document(gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())).text,
            article["articleBody"],
        )
        for name, article in gold.items()
    ]
    assert sum(scores) / len(scores) > 0.97


MENU = ["Home", "About us", "Products", "Downloads", "Site map", "Contact", "Archive", "Guest book"]
SENTENCES = [
    f"Sentence number {number} of the story tells of the river, the mill and its people." for number in range(9)
]


def menu_of(style: str) -> str:
    links = [f'<a href="/{number}.html">{label}</a>' for number, label in enumerate(MENU)]
    if style == "lines":
        return "<br>".join(links)
    if style == "rows":
        return "<table>" + "".join(f"<tr><td>{link}" for link in links) + "</table>"
    if style == "cells":
        return "<table><tr>" + "".join(f"<td>{link}" for link in links) + "</table>"
    if style == "list":
        return "<b>Menu</b><ul>" + "".join(f"<li>{link}" for link in links) + "</ul>"
    return " | ".join(links)


LAYOUTS = {
    "left column": "<table><tr><td width=150>{menu}<td>{text}</table>",
    "three columns": "<TABLE><TR><TD>{menu}</TD><TD>{text}</TD><TD>{menu}</TD></TR><TR><TD colspan=3>1999</TABLE>",
    "nested": "<table><tr><td><table><tr><td>{menu}</table><tr><td><table><tr><td>{text}</table></table>",
    "above and below": "<table><tr><td>{menu}<tr><td>{text}<tr><td>{menu}</table>",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("style", ["lines", "rows", "cells", "list", "bars"])
@pytest.mark.parametrize("joint", ["</p><p>", "<br><br>"])
def test_menus_of_a_page_laid_out_in_tables_are_removed(layout, style, joint):
    text = f"<p>{joint.join(SENTENCES)}</p>"
    body = LAYOUTS[layout].format(menu=menu_of(style), text=text)
    extracted = extract_document(f"<html><head><title>A</title></head><body>{body}</body></html>".encode()).text
    assert all(sentence in extracted for sentence in SENTENCES)
    assert [label for label in MENU if label in extracted] == []


def test_tables_of_data_and_lists_of_links_stay():
    rows = "".join(f'<tr><td><a href="/{n}">Name {n}</a><td><a href="/{n}b">Town {n}</a>' for n in range(40))
    data = f"<html><body><table><caption>Towns</caption><tr><th>name<th>town{rows}</table></body></html>"
    assert html.remove_table_menus(data) is None
    only_links = f"<html><body><table><tr><td>{menu_of('lines')}</table></body></html>"
    assert html.remove_table_menus(only_links) is None  # they are what the page has
    article = "".join(f"<p>{sentence}</p>" for sentence in SENTENCES)
    small_table = f"<html><body>{article}<table><tr><td>{menu_of('lines')}</table></body></html>"
    assert html.remove_table_menus(small_table) is None  # it is not laid out in tables
    assert html.remove_table_menus("<table>") is None and html.remove_table_menus("") is None


def test_a_page_of_many_nested_tables_takes_no_time():
    started = time.perf_counter()
    html.remove_table_menus("<body>" + "<table><tr><td>a" * 3000 + "text " * 500)
    html.remove_table_menus("<body><table>" + "<tr><td>word <td><a href=x>link</a>" * 20_000 + "</table>")
    assert time.perf_counter() - started < 20
