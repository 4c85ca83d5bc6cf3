import random
from pathlib import Path

import pytest

from hf_llm.data.corpus.readers.pdf import read
from hf_llm.data.files.read_errors import ReadErrors

SYLLABLES = ["ba", "co", "dri", "el", "fa", "gro", "hin", "jo", "ku", "lam", "mo", "ner", "or", "pus", "qui", "ret"]
RANDOM = random.Random(0)
VOCABULARY = ["".join(RANDOM.choices(SYLLABLES, k=RANDOM.randint(1, 4))) for _ in range(150)]
PROSE = " ".join(RANDOM.choices(VOCABULARY, k=2000))
WORDS = (
    "It was a bright cold day in the old town, and the clocks of every church were striking one after the other, as "
    "they had always done since the great fire, when the bells were cast anew. Nobody heard them any more; one hears "
    "what is new. "
)


def build_pdf(pages, trailer="", title=""):
    """A PDF of pages of lines, in one font."""
    escapes = {ord(c): "\\" + c for c in "()\\"}
    info = f"<< /Title ({title}) /Author (A. Writer) >>"
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", font, info]
    kids = []
    for lines in pages:
        text = "".join(f"({line.translate(escapes)}) Tj T*\n" for line in lines)
        stream = f"BT /F1 11 Tf 14 TL 50 740 Td\n{text}ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(b"%010d 00000 n \n" % len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode("cp1252")
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(offsets)
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info 4 0 R {trailer} >>\nstartxref\n{len(out)}\n%%EOF"
    return out + table + end.encode()


def wrap_lines(text, width=80, divided=True):
    """Lines of a width, long words divided at their ends as a typesetter does."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + 1 + len(word) <= width:
            line = f"{line} {word}".strip()
            continue
        room = width - len(line) - 2
        if divided and room >= 2 and word.isalpha() and len(word) - room >= 2:
            lines.append(f"{line} {word[:room]}-")
            line = word[room:]
        else:
            lines.append(line)
            line = word
    return [*lines, line]


def read_pdf(path, max_chars=100_000):
    errors = ReadErrors()
    return list(read(path, errors, None, max_chars)), errors


def test_lines_and_divided_words_and_pages_become_paragraphs(tmp_path):
    lines = wrap_lines(PROSE)
    assert sum(line.endswith("-") for line in lines) > 50
    pages = [
        ["Journal of Clocks, vol. 3" if number % 2 else "On Bells", *lines[start : start + 12], str(number)]
        for number, start in enumerate(range(0, len(lines), 12), 100)
    ]
    (tmp_path / "a.pdf").write_bytes(build_pdf(pages, title="On Bells"))
    (document,), errors = read_pdf(tmp_path / "a.pdf")
    assert document.text.split() == PROSE.split()
    assert document.about == {"title": "On Bells", "author": "A. Writer", "pages": len(pages)}
    assert errors.records == 1 and not errors.dropped


def test_paragraphs_and_lists_are_told_apart(tmp_path):
    lines = [
        *wrap_lines(WORDS, 70),
        *wrap_lines(WORDS, 70),
        "• a first item of the list that is long enough to fill the line, so",
        "goes on",
        "• a second",
    ]
    (tmp_path / "a.pdf").write_bytes(build_pdf([lines]))
    (document,), _ = read_pdf(tmp_path / "a.pdf")
    assert document.text.split("\n")[:2] == [WORDS.strip(), WORDS.strip()]
    assert "\n• a first item" in document.text and document.text.endswith("\n• a second\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (build_pdf([["secret"]], f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'ab' * 32}> /U <{'cd' * 32}> >> "
             "/ID [<00><00>]"), "encrypted PDF"),
        (b"%PDF-1.4 and then nothing of the kind", "broken PDF"),
        (build_pdf([WORDS.split(". ")] * 9)[:3000], "broken PDF"),
        (b"", "broken PDF"),
        (build_pdf([[], ["7"], []]), "PDF without text"),
    ],
)  # fmt: skip
def test_a_pdf_that_gives_no_text_is_counted(tmp_path, content, reason):
    (tmp_path / "a.pdf").write_bytes(content)
    documents, errors = read_pdf(tmp_path / "a.pdf")
    assert documents == [] and errors.dropped == {reason: 1} and "a.pdf" in errors.samples[0]


def test_a_title_that_is_no_text_costs_the_title_alone(tmp_path):
    content = build_pdf([wrap_lines(PROSE)[:30]]).replace(b"/Title ()", b"/Title <FEFFD8000041>")
    (tmp_path / "a.pdf").write_bytes(content)
    documents = list(read(tmp_path / "a.pdf", errors := ReadErrors(), None, 100_000))
    assert len(documents) == 1 and "title" not in documents[0].about and not errors.dropped


def test_a_pdf_too_large_is_counted_and_one_that_vanished_is_the_disks_error(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.corpus.readers.pdf.PDF_BYTES", 1 << 20)
    (tmp_path / "a.pdf").write_bytes(bytes(2 << 20))
    assert read_pdf(tmp_path / "a.pdf")[1].dropped == {"PDF larger than 1 MiB": 1}
    with pytest.raises(FileNotFoundError):
        read_pdf(tmp_path / "none.pdf")


def test_pages_after_the_limit_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.corpus.readers.pdf.MAX_PAGES", 2)
    (tmp_path / "a.pdf").write_bytes(build_pdf([wrap_lines(PROSE)[:30]] * 5))
    documents, errors = read_pdf(tmp_path / "a.pdf")
    assert len(documents) == 1
    assert errors.left_out == {"PDF page after the first 2": 3} and errors.records == 4


@pytest.mark.skipif(not Path("/usr/share/doc/shared-mime-info/shared-mime-info-spec.pdf").exists(), reason="a real PDF")
def test_a_real_pdf_becomes_paragraphs():
    (document,), errors = read_pdf(Path("/usr/share/doc/shared-mime-info/shared-mime-info-spec.pdf"))
    assert not errors.dropped and document.about["pages"] == 17
    assert "\nShared MIME-info Database\n2" not in document.text
    assert "if they exist, and in this order). Information found in a directory is added to" in document.text
