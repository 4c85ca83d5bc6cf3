"""Files whose names tell nothing: read by what they hold, or refused in words."""

import gzip
import io
import json
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.files.file_content import detect_content
from hf_llm.data.files.file_formats import check_is_read, resolve_format

PROSE = "The harbour was quiet in the morning; the boats lay still. " * 20
PAGE = f"<html><head><title>A</title></head><body><p>{PROSE}</p></body></html>"


def zip_of(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return buffer.getvalue()


def tar_of(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 4
        archive.addfile(member, io.BytesIO(b"text"))
    return buffer.getvalue()


def parquet():
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), buffer)
    return buffer.getvalue()


READ = {
    "prose": (PROSE.encode(), "text"),
    "prose in UTF-16": (PROSE.encode("utf-16"), "text"),
    "prose in Windows-1252": (b"The caf\xe9 \x96 open. " * 50, "text"),
    "prose with a comma in each line": (b"Yes, he said.\nNo, she said.\nWell, they did.\n" * 9, "text"),
    "an empty file": (b"", "text"),
    "a page": (PAGE.encode(), "html"),
    "a page with a document type": (b"\n<!DOCTYPE html>\n" + PAGE.encode(), "html"),
    "a page in capitals after a comment": (b"<!-- saved -->\n<HTML><BODY>" + PROSE.encode(), "html"),
    "a page in XHTML": (b'<?xml version="1.0"?><!DOCTYPE html><html xmlns="x">' + PAGE.encode(), "html"),
    "a page in UTF-16": (PAGE.encode("utf-16"), "html"),
    "WARC": (b"WARC/1.0\r\nWARC-Type: warcinfo\r\n\r\n", "warc"),
    "ARC": (b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain 73\n1 0 InternetArchive\n", "warc"),
    "JSON lines": (json.dumps({"text": PROSE}).encode() * 1 + b'\n{"text": "b"}\n', "rows"),
    "a JSON array": (b'[\n {"text": "a"}\n]', "rows"),
    "JSON over several lines": (b'{\n  "data": [{"text": "a"}]\n}', "rows"),
    "a long first JSON line": (json.dumps({"text": PROSE * 20}).encode(), "rows"),
    "CSV": (b"id,text\n" + b"".join(b"%d,words here\n" % i for i in range(9)), "rows"),
    "TSV": (b"id\ttext\n" + b"".join(b"%d\twords here\n" % i for i in range(9)), "rows"),
    "Parquet": (parquet(), "rows"),
    "SQLite": (b"SQLite format 3\0" + bytes(100), "rows"),
    "a wiki": (b'<mediawiki xmlns="x" xml:lang="en">\n<page>', "mediawiki"),
    "posts": (b'<?xml version="1.0"?>\n<posts>\n<row Id="1"/>', "discussions"),
    "a paper": (b"% a comment\n\\documentclass{article}\n\\begin{document}", "latex"),
    "a program": (b"#!/usr/bin/env python\nprint(1)\n", "code"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "pdf"),
    "a Word document": (zip_of("[Content_Types].xml", "word/document.xml"), "docx"),
    "an EPUB book": (zip_of("mimetype", "META-INF/container.xml"), "epub"),
    "a zip": (zip_of("a.txt"), "archive"),
    "a tar": (tar_of("a.txt"), "archive"),
    "a tar in gzip": (gzip.compress(tar_of("a.txt")), "archive"),
    "prose in gzip": (gzip.compress(PROSE.encode()), "text"),
    "a page in gzip": (gzip.compress(PAGE.encode()), "html"),
}
REFUSED = {
    "RTF": (b"{\\rtf1\\ansi " + PROSE.encode(), "RTF.*soffice"),
    "an old Word document": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "old Office.*soffice"),
    "OpenDocument": (zip_of("mimetype", "content.xml"), "OpenDocument.*soffice"),
    "a workbook": (zip_of("xl/workbook.xml"), "Excel.*csv"),
    "a mailbox": (b"From a@b.org Mon Jan  1 00:00:00 2024\nFrom: A <a@b.org>\nSubject: x\n\nHello\n", "mail"),
    "a message": (b"Received: from x by y\nFrom: A\nSubject: x\n\nHello\n", "mail"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG image"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG image"),
    "GIF": (b"GIF89a\1\0\1\0", "GIF image"),
    "PostScript": (b"%!PS-Adobe-3.0\n" + PROSE.encode(), "PostScript"),
    "a program": (b"\x7fELF\2\1\1" + bytes(50), "program"),
    "other XML": (b'<?xml version="1.0"?>\n<feed><entry>words</entry></feed>', "XML"),
    "binary": (bytes(range(256)) * 10, "binary"),
    "broken text": ("多摩美術\n".encode() * 90 + b"\xe5\xa4 x\n" + "多摩".encode(), "unknown encoding.*iconv"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "7z archive.*unpack"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_file_without_suffix_is_read_by_what_it_holds(tmp_path, kind):
    content, format = READ[kind]
    (tmp_path / "file").write_bytes(content)
    assert detect_content(tmp_path / "file").format == format
    check_is_read(tmp_path / "file", "file")
    (tmp_path / "file.data").write_bytes(content)
    assert resolve_format(tmp_path / "file.data", None).format == format


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_a_kind_that_is_not_read_is_refused_in_words(tmp_path, kind):
    content, message = REFUSED[kind]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=f"data/file is not read: it is .*{message}"):
        check_is_read(tmp_path / "file", "data/file")


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_a_text_file_that_is_certainly_something_else_is_not_read_as_text(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    for kind in ("a page", "PDF", "ARC", "WARC", "a Word document", "a page in UTF-16"):
        path.write_bytes(READ[kind][0])
        assert resolve_format(path, None).format == READ[kind][1]
        assert resolve_format(path, "text").format == "text"  # where the source says so
    for kind in ("RTF", "PNG", "PostScript", "an old Word document"):
        path.write_bytes(REFUSED[kind][0])
        assert resolve_format(path, None).format is None
    for kind in ("prose", "JSON lines", "CSV", "prose in UTF-16", "a program"):
        path.write_bytes(READ[kind][0])
        assert resolve_format(path, None).format == "text"
