"""EPUB books, built by hand."""

import zipfile

import pytest

from hf_llm.data.corpus.readers.epub import read
from hf_llm.data.files.read_errors import ReadErrors

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Sea</dc:title><dc:creator>A. Writer</dc:creator>
<dc:language>en-GB</dc:language><dc:date>1899</dc:date></metadata>
<manifest><item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="c2" href="text/second%20one.xhtml" media-type="application/xhtml+xml"/>
<item id="c1" href="text/first.xhtml" media-type="application/xhtml+xml"/>
<item id="i" href="cover.png" media-type="image/png"/></manifest>
<spine><itemref idref="n"/><itemref idref="c1"/><itemref idref="c2"/><itemref idref="missing"/></spine></package>"""


def chapter(number, text="The boats lay still.", encoding="utf-8"):
    page = (
        f'<?xml version="1.0" encoding="{encoding}"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title>'
        f'<style>p {{ }}</style><script src="a.js"/></head><body><h2>Chapter {number}</h2><p>{text}</p>'
        "<p>A <i>second</i> paragraph &#8212; short.<br/>Next line.</p></body></html>"
    )
    return page.encode(encoding)


def write_epub(path, package=PACKAGE, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OEBPS/book.opf", package)
        archive.writestr("OEBPS/nav.xhtml", "<html><body><nav>Contents</nav></body></html>")
        archive.writestr("OEBPS/text/first.xhtml", chapter(1))
        archive.writestr("OEBPS/text/second one.xhtml", chapter(2, "Caf\u00e9.", "iso-8859-1"))
        for name, content in more.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def read_epub(path, max_chars=100_000):
    errors = ReadErrors()
    return list(read(path, errors, None, max_chars)), errors


def test_a_book_is_its_chapters_in_reading_order(tmp_path):
    (document,), errors = read_epub(write_epub(tmp_path / "a.epub"))
    assert document.text == (
        "Chapter 1\n\nThe boats lay still.\n\nA second paragraph \u2014 short.\nNext line.\n\n"
        "Chapter 2\n\nCaf\u00e9.\n\nA second paragraph \u2014 short.\nNext line.\n"
    )
    assert document.language == "en" and not errors.dropped
    assert document.about == {"title": "The Sea", "author": "A. Writer", "date": "1899"}


@pytest.mark.parametrize(
    ("algorithm", "is_read"),
    [("http://www.w3.org/2001/04/xmlenc#aes128-cbc", False), ("http://www.idpf.org/2008/embedding", True)],
)
def test_copy_protection_is_counted_and_fonts_that_are_hidden_are_none(tmp_path, algorithm, is_read):
    encryption = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:e="http://www.w3.org/2001/04/xmlenc#">'
        f'<e:EncryptedData><e:EncryptionMethod Algorithm="{algorithm}"/></e:EncryptedData></encryption>'
    )
    documents, errors = read_epub(write_epub(tmp_path / "a.epub", **{"META-INF__encryption.xml": encryption}))
    assert bool(documents) == is_read
    assert errors.dropped == ({} if is_read else {"EPUB with copy protection": 1})


def test_every_cut_or_changed_book_is_read_or_counted(tmp_path):
    whole = write_epub(tmp_path / "a.epub").read_bytes()
    for i in range(0, len(whole), 101):
        for content in (whole[:i], whole[:i] + b"\xff\0<" + whole[i + 3 :]):
            (tmp_path / "b.epub").write_bytes(content)
            documents, errors = read_epub(tmp_path / "b.epub")
            assert bool(documents) + errors.dropped.total() + errors.left_out.total() == 1


def test_a_package_without_spine_or_pages_is_without_text_or_broken(tmp_path):
    packages = [
        "<package/>",
        "<a",
        PACKAGE.replace("first.xhtml", "absent.xhtml"),
        PACKAGE.replace('href="text/first.xhtml"', ""),
    ]
    for package in packages:
        documents, errors = read_epub(write_epub(tmp_path / "a.epub", package))
        assert documents == [] and errors.dropped.total() + errors.left_out.total() == 1, package
