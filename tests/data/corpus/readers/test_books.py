import gzip
import os
from itertools import pairwise
from pathlib import Path

import pytest

from hf_llm.data.corpus.readers.books import join_wrapped_lines, read, remove_page_lines
from hf_llm.data.files.read_errors import ReadErrors


def read_book(path, max_chars=10_000_000):
    errors = ReadErrors()
    return list(read(path, errors, None, max_chars)), errors


PROSE = """It was a bright cold day in the old town, and the clocks of every
church were striking one after the other, as they had always done
since the great fire, when the bells were cast anew. Nobody heard
them any more; one hears what is new.

The second paragraph is as long as it has to be, so that its lines
are broken where the page ends and not where the writer wished."""
WHOLE = [" ".join(paragraph.split("\n")) for paragraph in PROSE.split("\n\n")]


def test_lines_broken_for_the_page_become_paragraphs():
    assert join_wrapped_lines(PROSE.split("\n")) == "\n\n".join(WHOLE) + "\n"


def test_verse_tables_and_indented_blocks_keep_their_lines():
    kept = [
        "Tell me not, in mournful numbers,\nLife is but an empty dream!\nFor the soul is dead that slumbers,\n"
        "And things are not what they seem.",
        "Whose woods these are I think I know, and so do all who come this\nWay by night, and stop to look, and "
        "listen to the wind, and look\nAgain, and go home slowly through the snow that fell on roads and\n"
        "Houses, and the moon is up, and all is well, and all is very well.",
        "    a letter set apart from all the rest of what the book has to\n    say is indented, and stays",
        "Year    Ships sent out    Barrels of oil    Value of it in dollars\n1841              650           "
        "200,000                 7,000,000\n1842              652           210,000                 7,100,000",
        "Price list\nof bread\nand wine",
    ]
    text = PROSE + "\n\n" + "\n\n".join(kept) + "\n\n" + PROSE
    joined = join_wrapped_lines(text.split("\n"))
    for block in kept:
        assert f"\n\n{block}\n\n" in joined
    assert joined.count(WHOLE[0]) == joined.count(WHOLE[1]) == 2


def test_paragraphs_marked_by_indentation_alone_are_told_apart():
    lines = [line for paragraph in PROSE.split("\n\n") for line in ("   " + paragraph).split("\n")] * 3
    assert join_wrapped_lines(lines) == "\n".join(WHOLE * 3) + "\n"


def test_a_text_with_a_line_per_paragraph_stays_as_it_is():
    text = "\n".join(WHOLE * 3) + "\n"
    assert join_wrapped_lines(text.split("\n")) == text


@pytest.mark.parametrize(
    ("divided", "elsewhere", "whole"),
    [
        ("exam-\nple", "", "example"),  # no half of it is a word of the book
        ("well-\nknown", "a well-known man", "well-known"),
        ("well-\nknown", "well, it is known", "well-known"),  # both halves are words
        ("to-\ngether", "to get her together", "together"),
        ("to-\nday", "to-day and to-day and today", "to-day"),
        ("Anglo-\nSaxon", "", "Anglo-Saxon"),
        ("mother-in-\nlaw", "my mother-in-law", "mother-in-law"),
        ("exam\xad\nple", "an exam of ple", "example"),
        ("exam¬\nple", "", "example"),
        ("hurried by--\nthe", "", "hurried by--the"),
    ],
)
def test_a_word_divided_at_a_lines_end_is_written_as_the_book_writes_it(divided, elsewhere, whole):
    start, end = divided.split("\n")
    lines = [
        "Here stands a first line of the text, long enough to be full, and " + start,
        end + " stands at the start of the second line of it, that goes on for as",
        f"long as the first one does, more or less. {elsewhere}",
    ]
    assert f"full, and {whole} stands at the start" in join_wrapped_lines(lines)


def scanned(pages, number=lambda page: f"{page}", header=lambda page: "THE LIFE OF JOHNSON"):
    """Prose over pages of seven lines, as a scanner gives it: header, lines, number."""
    words = (PROSE.replace("\n", " ") + " ") * pages
    lines, line = [], ""
    for word in words.split():
        if len(line) + len(word) > 64:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    out = []
    for page, start in enumerate(range(0, len(lines), 7), 1):
        out += [header(page), "", *lines[start : start + 7], "", number(page + 11)]
    return out, " ".join(words.split()).rsplit(" ", 10)[0]


@pytest.mark.parametrize("between", ["", "\f"])
@pytest.mark.parametrize("number", ["{}", "[{}]", "- {} -", "Page {}"])
def test_page_numbers_and_running_headers_of_a_scan_are_out_and_sentences_go_on(number, between):
    lines, words = scanned(12, lambda page: number.format(page) + between)
    joined = " ".join(join_wrapped_lines(remove_page_lines(lines)).split())
    assert joined.startswith(words) and "JOHNSON" not in joined and not any(c.isdigit() for c in joined)


def test_a_header_with_the_number_in_its_line_is_out():
    lines, words = scanned(12, lambda page: "", lambda page: f"{page}   LIFE OF" if page % 2 else f"JOHNSON   {page}")
    joined = " ".join(join_wrapped_lines(remove_page_lines(lines)).split())
    assert joined.startswith(words) and "JOHNSON" not in joined


def test_numbers_of_chapters_and_of_years_stay():
    chapters = [line for i in range(1, 9) for line in (str(i), "", *PROSE.split("\n"), "")]
    assert remove_page_lines(chapters) == chapters
    years = ["In this year", "1914", "the war", "1918", "was over", "1733"]
    assert remove_page_lines(years) == years


OLD = """**The Project Gutenberg Etext of The Time Machine, by H. G. Wells**
#1 in our series by H. G. Wells

*** START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*


The Time Machine

{prose}

End of The Project Gutenberg Etext of The Time Machine
*END* more of the licence
"""
NEW = """\ufeffThe Project Gutenberg eBook of Faust: Eine Tragödie [erster Teil]

Title: Faust: Eine Tragödie
        [erster Teil]

Author: Johann Wolfgang von Goethe

Release date: January 1, 2000 [eBook #2229]
                Most recently updated: January 27, 2021

Language: German

Credits: Michael Pullen

*** START OF THE PROJECT GUTENBERG EBOOK FAUST: EINE
TRAGÖDIE [ERSTER TEIL] ***

Produced by Michael Pullen, and distributed
by others.

FAUST

{prose}

*** END OF THE PROJECT GUTENBERG EBOOK FAUST ***
licence
"""


def test_old_and_new_marks_of_gutenberg_are_known(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(OLD.format(prose=PROSE))
    (document,), _ = read_book(path)
    assert document.text == "The Time Machine\n\n" + "\n\n".join(WHOLE) + "\n"
    assert document.about == {"title": "The Time Machine", "author": "H. G. Wells"}
    path.write_text(NEW.format(prose=PROSE), encoding="utf-8")
    (document,), _ = read_book(path)
    assert document.text == "FAUST\n\n" + "\n\n".join(WHOLE) + "\n"
    assert document.about["title"] == "Faust: Eine Tragödie [erster Teil]"
    assert document.about["author"] == "Johann Wolfgang von Goethe"
    assert document.about["release"] == "January 1, 2000"
    assert (document.language, document.url) == ("de", "https://www.gutenberg.org/ebooks/2229")


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("latin-1", "ISO-8859-1"), ("latin-1", "ISO Latin-1"), ("cp1252", None), ("iso8859-15", "ISO-8859-15")],
)
def test_a_book_in_another_encoding_is_read(tmp_path, encoding, named):
    head = f"Title: Café\nCharacter set encoding: {named}\n*** START OF THIS PROJECT GUTENBERG EBOOK CAFE ***\n"
    text = (head if named else "") + "Voilà, l’été “brûlé”.\n".replace("’", "'" if encoding != "cp1252" else "’")
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding, errors="ignore"))
    (document,), errors = read_book(path)
    assert "Voilà, l" in document.text and "été" in document.text and "�" not in document.text and not errors.dropped


def test_a_file_that_is_no_book_is_counted(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04\0\0")
    assert read_book(tmp_path / "a.txt") == (
        [],
        ReadErrors(1, {"binary": 1}, {"binary": [f"{tmp_path}/a.txt: binary"]}),
    )
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(PROSE.encode() * 100)[:-20])
    assert read_book(tmp_path / "b.txt.gz")[1].dropped == {"damaged file": 1}
    monkeypatch.setattr("hf_llm.data.corpus.readers.books.BOOK_BYTES", 100)
    (tmp_path / "c.txt").write_text(PROSE)
    assert read_book(tmp_path / "c.txt")[1].dropped.total() == 1
    assert read_book(tmp_path / "c.txt")[0] == []


def test_a_long_book_comes_in_pieces_that_lose_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join([PROSE] * 100))
    pieces, _ = read_book(path, max_chars=20_000)
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == "\n\n".join(WHOLE * 100) + "\n"


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="real data: set HF_LLM_DATA")
@pytest.mark.parametrize(
    ("name", "start", "end", "paragraph"),
    [
        ("alice_pg11", "ALICE’S ADVENTURES IN WONDERLAND\n", "THE END\n", "Alice was beginning to get very tired of "),
        ("moby_dick_pg2701", "MOBY-DICK;\n", "only found another orphan.\n", "Call me Ishmael. Some years ago—"),
    ],
)
def test_real_books_become_paragraphs(name, start, end, paragraph):
    (document,), errors = read_book(Path(os.environ["HF_LLM_DATA"]) / "gutenberg" / f"{name}.txt")
    assert document.text.startswith(start) and document.text.endswith(end) and not errors.dropped
    assert "PROJECT GUTENBERG" not in document.text and "Gutenberg-tm" not in document.text
    lines = document.text.split("\n")
    assert any(line.startswith(paragraph) and len(line) > 290 for line in lines)
    broken = sum(a[-1:].isalpha() and b[:1].islower() and a[0] != " " for a, b in pairwise(lines))
    assert broken <= 5  # of 3,300 and 22,000 lines
    assert document.language == "en" and document.about["author"] in ("Lewis Carroll", "Herman Melville")
