"""Word documents, built by hand from their XML."""

import sys
import zipfile

import pytest

from hf_llm.core import extras
from hf_llm.core.errors import UserError
from hf_llm.data.corpus.readers.docx import read
from hf_llm.data.files.read_errors import ReadErrors

NAMESPACE = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/word/document.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
)
RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)
PROPERTIES = (
    '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The report</dc:title><dc:creator>A. Writer</dc:creator>'
    "</cp:coreProperties>"
)


def paragraph(text, before=""):
    return f"<w:p>{before}<w:r><w:t xml:space='preserve'>{text}</w:t></w:r></w:p>"


def write_docx(path, body):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("_rels/.rels", RELATIONS)
        archive.writestr("docProps/core.xml", PROPERTIES)
        archive.writestr("word/document.xml", f"<w:document {NAMESPACE}><w:body>{body}</w:body></w:document>")
    return path


def read_docx(path, max_chars=100_000):
    errors = ReadErrors()
    return list(read(path, errors, None, max_chars)), errors


@pytest.fixture
def office():
    pytest.importorskip("mammoth", reason="needs the extra hf-llm[office]")


def test_paragraphs_tables_and_insertions_are_text_and_deletions_are_not(tmp_path, office):
    row = "<w:tr>" + "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in ("North", "12 boats")) + "</w:tr>"
    inserted = (
        "<w:ins><w:r><w:t>that came home </w:t></w:r></w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
    )
    body = (
        paragraph("The harbour", '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>')
        + paragraph("lay still &amp; safe.", f"<w:r><w:t xml:space='preserve'>The boats </w:t></w:r>{inserted}")
        + f"<w:tbl>{row}{row}</w:tbl>"
        + paragraph("The end.")
    )
    (document,), errors = read_docx(write_docx(tmp_path / "a.docx", body))
    assert document.text == (
        "The harbour\n\nThe boats that came home lay still & safe.\n\nNorth\t12 boats\nNorth\t12 boats\n\nThe end.\n"
    )
    assert document.about == {"title": "The report", "author": "A. Writer"} and not errors.dropped


def test_a_long_document_comes_in_pieces(tmp_path, office):
    paragraphs = [f"Paragraph {i}. " + "Words and more words. " * 40 for i in range(60)]
    path = write_docx(tmp_path / "a.docx", "".join(map(paragraph, paragraphs)))
    documents, _ = read_docx(path, max_chars=15_000)
    assert len(documents) > 3 and "".join(document.text for document in documents).count("Paragraph") == 60


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 not a zip", "broken Word document"),
        (b"", "broken Word document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "Word document with a password, or an old .doc"),
    ],
)
def test_what_is_no_word_document_is_counted(tmp_path, office, content, reason):
    (tmp_path / "a.docx").write_bytes(content)
    documents, errors = read_docx(tmp_path / "a.docx")
    assert documents == [] and errors.dropped == {reason: 1} and errors.records == 1


def test_every_cut_or_changed_document_is_read_or_counted(tmp_path, office):
    whole = write_docx(tmp_path / "a.docx", paragraph("The boats lay still.") * 20).read_bytes()
    for i in range(0, len(whole), 211):
        for content in (whole[:i], whole[:i] + b"\xff\0" + whole[i + 2 :]):
            (tmp_path / "b.docx").write_bytes(content)
            documents, errors = read_docx(tmp_path / "b.docx")
            assert bool(documents) + errors.dropped.total() + errors.left_out.total() == 1
    with zipfile.ZipFile(tmp_path / "c.docx", "w") as archive:
        archive.writestr("word/document.xml", "<a>" * 9)
    assert read_docx(tmp_path / "c.docx")[1].dropped == {"broken Word document": 1}


def test_without_the_package_the_line_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(extras.metadata, "requires", lambda name: ['mammoth>=1.11; extra == "office"'])
    monkeypatch.setattr(extras, "is_installed", lambda package: False)
    monkeypatch.setitem(sys.modules, "mammoth", None)
    extras.missing_packages.cache_clear()
    try:
        with pytest.raises(UserError, match=r"mammoth.*\n.*pip install 'hf-llm\[office\]'"):
            read_docx(write_docx(tmp_path / "a.docx", paragraph("text")))
    finally:
        extras.missing_packages.cache_clear()
