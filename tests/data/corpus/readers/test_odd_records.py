"""Whatever a record lacks or holds in the place of a text: it is counted, and the source is read on."""

import itertools
import json
import random

import pytest

from hf_llm.data.corpus.config import Source
from hf_llm.data.corpus.readers import code, discussions, latex, mediawiki, tabular, warc
from hf_llm.data.files.read_errors import ReadErrors
from tests.data.corpus.readers.test_latex import small_paper
from tests.data.corpus.readers.test_warc import http, page, record

ODD_VALUES = [
    None,
    True,
    0,
    1.5,
    float("nan"),
    "",
    " ",
    "x",
    "\ud800",
    [],
    [None],
    ["a"],
    [[]],
    [{}],
    {},
    {"a": None},
    "9" * 40,
]
KEYS = {
    "reddit": ["title", "selftext", "link_id", "body", "id", "parent_id", "created_utc", "permalink", "subreddit"],
    "chat": ["messages", "conversations", "turns", "role", "content", "url", "text"],
    "forum": ["title", "posts", "comments", "text", "body"],
}
GOOD = {
    "discussions": {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]},
    "rows": {"text": "A good row."},
}


def read_rows(tmp_path, reader, rows):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = ReadErrors()
    source = Source(license="mit", path="a.jsonl")
    return list(reader.read(tmp_path / "a.jsonl", errors, source, 10_000)), errors


@pytest.mark.parametrize("form", KEYS)
def test_no_row_stops_a_source_of_discussions(tmp_path, form):
    keys = KEYS[form]
    rows = [dict.fromkeys(some, "x") for size in (1, 2, 3, 4) for some in itertools.combinations(keys, size)]
    rows += [{**dict.fromkeys(keys, "x"), key: value} for key in keys for value in ODD_VALUES]
    rows += [{key: value} for key in keys for value in ODD_VALUES]
    rows += [{key: [{inner: value}]} for key in keys for inner in ("role", "content", "text") for value in ODD_VALUES]
    documents, errors = read_rows(tmp_path, discussions, [*rows, GOOD["discussions"]])
    assert any("Hello?" in document.text for document in documents)
    assert errors.records == len(rows) + 1
    used = sum(document.records for document in documents)
    assert used + errors.dropped.total() + errors.left_out.total() == errors.records


def test_a_row_like_a_comment_and_a_submission_is_read_as_what_it_can_be(tmp_path):
    row = {"title": "A title", "selftext": "Its text.", "link_id": "t3_1"}
    documents, errors = read_rows(tmp_path, discussions, [row, GOOD["discussions"]])
    assert len(documents) == 2 and "Its text." in documents[1].text and not errors.dropped


def test_no_row_stops_a_source_of_rows(tmp_path):
    rows = [{"text": value} for value in ODD_VALUES] + [{"other": value} for value in ODD_VALUES]
    rows += [{"text": "good", "url": value, "license": value} for value in ODD_VALUES]
    documents, errors = read_rows(tmp_path, tabular, [*rows, GOOD["rows"]])
    assert documents[-1].text == "A good row." and errors.records == len(rows) + 1
    assert len(documents) + errors.dropped.total() + errors.left_out.total() == errors.records


@pytest.mark.parametrize(
    "attribute", ["Id", "PostTypeId", "ParentId", "Body", "Title", "Tags", "Score", "CreationDate"]
)
def test_no_post_stops_a_dump(tmp_path, attribute):
    good = {"Id": "1", "PostTypeId": "1", "Body": "&lt;p&gt;Good.&lt;/p&gt;", "Title": "T", "Tags": "a", "Score": "1"}
    posts = [good]
    for value in (None, "", "x", "-5", "9" * 400, "&#xFFFD;", "1e999"):
        post = {**good, "Id": str(len(posts) + 1), "CreationDate": "2020-01-01T00:00:00"}
        posts.append({key: value if key == attribute else kept for key, kept in post.items()})
    rows = [
        "<row " + " ".join(f'{key}="{value}"' for key, value in post.items() if value is not None) + "/>"
        for post in posts
    ]
    (tmp_path / "Posts.xml").write_text("<posts>" + "".join(rows) + "</posts>")
    errors = ReadErrors()
    documents = list(discussions.read(tmp_path / "Posts.xml", errors, None, 10_000))
    assert "Good." in documents[0].text
    used = sum(document.records for document in documents)
    assert used + errors.dropped.total() + errors.left_out.total() == errors.records == len(posts)


@pytest.mark.parametrize("element", ["title", "ns", "id", "revision", "text", "timestamp", "model"])
def test_no_page_stops_a_wiki(tmp_path, element):
    good = {"title": "Sea", "ns": "0", "id": "7", "timestamp": "2020", "model": "wikitext", "text": "Water. " * 20}

    def write_page(values):
        outer = "".join(f"<{key}>{values[key]}</{key}>" for key in ("title", "ns", "id") if key in values)
        inner = "".join(f"<{key}>{values[key]}</{key}>" for key in ("timestamp", "model", "text") if key in values)
        inner += f"<id>{values.get('id', '')}</id>"
        return (
            f"<page>{outer}"
            + ("" if element == "revision" and len(values) < 6 else f"<revision>{inner}</revision>")
            + "</page>"
        )

    pages = [write_page({key: value for key, value in good.items() if key != element})]
    pages += [
        write_page({**good, element: value} if element != "revision" else {}) for value in ("", "x", "-1", "9" * 5000)
    ]
    (tmp_path / "a.xml").write_text("<mediawiki>" + "".join(pages) + write_page(good) + "</mediawiki>")
    errors = ReadErrors()
    documents = list(mediawiki.read(tmp_path / "a.xml", errors, None, 10_000))
    assert documents and "Water." in documents[-1].text
    assert len(documents) + errors.dropped.total() + errors.left_out.total() == errors.records == len(pages) + 1


def test_no_notebook_stops_a_source(tmp_path):
    cell = {"cell_type": "code", "source": "x = 1"}
    notebooks = [{"cells": value} for value in ODD_VALUES]
    notebooks += [{"cells": [{**cell, key: value}]} for key in cell for value in ODD_VALUES]
    for notebook in [*notebooks, *ODD_VALUES]:
        (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
        errors = ReadErrors()
        documents = list(code.read(tmp_path / "a.ipynb", errors, Source(license="mit", path=str(tmp_path)), 10_000))
        assert errors.records == 1 and len(documents) + errors.dropped.total() <= 1


def test_no_damage_of_a_paper_or_a_web_archive_stops_a_source(tmp_path):
    rng = random.Random(0)
    paper = small_paper(
        "\\section{A} $x^2$ \\emph{b} \\begin{itemize}\\item c\\end{itemize} \\newcommand{\\d}[2][e]{#1#2} \\d{f}"
    )
    archive = record(http(b"plain words", "text/plain")) * 3 + record(http(page(1)), "revisit")
    for reader, whole, name in ((latex, paper.encode(), "a.tex"), (warc, archive, "a.warc")):
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                i = rng.randrange(len(content))
                content[i : i + rng.randint(0, 9)] = rng.choice(
                    [b"", b"\0", b"{", b"}", b"\\", b"\n\n", b"#", b":", b"\xff"]
                )
            (tmp_path / name).write_bytes(content)
            errors = ReadErrors()
            documents = list(reader.read(tmp_path / name, errors, None, 10_000))
            assert (
                sum(d.records for d in documents) + errors.dropped.total() + errors.left_out.total() == errors.records
            )
