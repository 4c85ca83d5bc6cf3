"""Tell what a file holds by its first bytes, where its name does not: which reader reads it, or why none does."""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from hf_llm.data.files.compressed import open_file
from hf_llm.data.files.tabular import detect_row_suffix, is_table
from hf_llm.data.files.text_encoding import NOT_TEXT, decode_text, detect_encoding, explain_undecodable, read_start

ARCHIVE = "archive"  # the format of an archive of files, which is no reader's
TAR_MAGIC_OFFSET = 257
TAR_MAGIC = b"ustar"
MIN_TABLE_LINES = 5

_CONVERT = "convert it, as by: soffice --headless --convert-to docx"
_NO_RECOGNITION = "there is no character recognition; leave it out"
_LEAVE_OUT = "leave it out"


@dataclass(frozen=True)
class FileContent:
    """What a file holds: the format that is read so, or None, and in words what it is and what to do then."""

    format: str | None
    kind: str
    remedy: str = _LEAVE_OUT


# By the bytes at the start of the file. Those of text come later, when nothing else fits.
_SIGNATURES: tuple[tuple[bytes, FileContent], ...] = (
    (b"%PDF-", FileContent("pdf", "PDF")),
    (b"WARC/", FileContent("warc", "web archive (WARC)")),
    (b"filedesc://", FileContent("warc", "web archive (ARC)")),
    (b"{\\rtf", FileContent(None, "RTF document", _CONVERT)),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileContent(None, "document of an old Office (.doc, .xls, .ppt)", _CONVERT)),
    (b"%!PS", FileContent(None, "PostScript", "convert it, as by ps2pdf, and read the .pdf")),
    (b"AT&TFORM", FileContent(None, "DjVu", "convert it, as by djvutxt")),
    (b"\x89PNG\r\n", FileContent(None, "PNG image", _NO_RECOGNITION)),
    (b"\xff\xd8\xff", FileContent(None, "JPEG image", _NO_RECOGNITION)),
    (b"GIF87a", FileContent(None, "GIF image", _NO_RECOGNITION)),
    (b"GIF89a", FileContent(None, "GIF image", _NO_RECOGNITION)),
    (b"II*\0", FileContent(None, "TIFF image", _NO_RECOGNITION)),
    (b"MM\0*", FileContent(None, "TIFF image", _NO_RECOGNITION)),
    (b"RIFF", FileContent(None, "recording or image (RIFF)")),
    (b"ID3", FileContent(None, "recording (MP3)")),
    (b"OggS", FileContent(None, "recording (Ogg)")),
    (b"fLaC", FileContent(None, "recording (FLAC)")),
    (b"\x7fELF", FileContent(None, "program (ELF)")),
    (b"\x93NUMPY", FileContent(None, "NumPy array")),
    (b"\x89HDF\r\n", FileContent(None, "HDF5 file")),
    (b"7z\xbc\xaf\x27\x1c", FileContent(None, "7z archive", "unpack it")),
    (b"Rar!\x1a\x07", FileContent(None, "RAR archive", "unpack it")),
)
_MAIL = FileContent(None, "mail", "write the messages as rows of a .jsonl file, {text: ...}")
_OTHER_XML = FileContent(None, "XML", "convert it to text, or name its `format` if it is mediawiki or discussions")
_PAGE = FileContent("html", "web page")
_TEXT = FileContent("text", "text")

_MAIL_START = re.compile(
    rb"From \S+.*\r?\n(?:[A-Z][\w-]+:|>?From )|(?:Return-Path|Received|Delivered-To|MIME-Version|Message-I[Dd]):\s"
)
_HTML_START = re.compile(
    r"(?:<\?xml[^>]*>)?(?:\s|<!--.*?-->)*(?:<!doctype\s+html|<html[\s>]|<head[\s>]|<body[\s>])",
    re.IGNORECASE | re.DOTALL,
)
_XML_START = re.compile(r"\s*(?:<\?xml|<!DOCTYPE)")
_XML_ROOT = re.compile(r"<([A-Za-z][\w:.-]*)")
_FORMATS_OF_ROOTS = {"mediawiki": "mediawiki", "posts": "discussions", "html": "html"}
# By a file that only they hold, the documents that are zip archives.
_ZIPPED_DOCUMENTS = (
    ("word/document.xml", FileContent("docx", "Word document")),
    ("META-INF/container.xml", FileContent("epub", "EPUB book")),
    ("xl/workbook.xml", FileContent(None, "Excel workbook", "save its sheets as .csv")),
    ("ppt/presentation.xml", FileContent(None, "PowerPoint presentation", "save it as .pdf")),
    ("content.xml", FileContent(None, "OpenDocument", _CONVERT)),
)


def detect_content(path: Path) -> FileContent:
    """Tell what a file holds. Raises OSError if it cannot be read."""
    start = read_start(path)
    content = _detect_signature(path, start)
    if content:
        return content
    if detect_row_suffix(start) in (".parquet", ".arrow", ".sqlite"):
        return FileContent("rows", "table")
    if _MAIL_START.match(start):
        return _MAIL

    if detect_encoding(lambda: open_file(path)) is None:
        if explain_undecodable(start) == NOT_TEXT:
            return FileContent(None, "binary file")
        return FileContent(None, "text in an unknown encoding", "convert it to UTF-8, as by iconv")
    return _detect_text(decode_text(start) or start.decode("latin-1"))


def detect_disguise(path: Path) -> FileContent | None:
    """Tell what a file named as text is, if it is certainly something else: a page, a PDF, an archive, an image."""
    start = read_start(path)
    content = _detect_signature(path, start)
    if content:
        return content
    text = decode_text(start) or ""
    return _PAGE if _HTML_START.match(text.lstrip("\ufeff \t\r\n")) else None


def _detect_signature(path: Path, start: bytes) -> FileContent | None:
    """Tell what a file is that begins with the mark of a kind; None if it begins with none."""
    if start.startswith(b"PK\x03\x04"):
        return _detect_zipped(path)
    if start[TAR_MAGIC_OFFSET:].startswith(TAR_MAGIC):
        return FileContent(ARCHIVE, "tar archive")
    return next((content for signature, content in _SIGNATURES if start.startswith(signature)), None)


def _detect_zipped(path: Path) -> FileContent | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return None
    for name, content in _ZIPPED_DOCUMENTS:
        if name in names:
            return content
    return FileContent(ARCHIVE, "zip archive")


def _detect_text(start: str) -> FileContent:
    """Tell what text is: a page, rows, a program, a paper or prose."""
    start = start.lstrip("\ufeff \t\r\n")
    if _HTML_START.match(start):
        return _PAGE
    if _XML_START.match(start):
        root = _XML_ROOT.search(start)
        format = _FORMATS_OF_ROOTS.get(root[1].lower()) if root else None
        return FileContent(format, "XML") if format else _OTHER_XML
    if start.startswith("<mediawiki"):
        return FileContent("mediawiki", "XML")
    if start.startswith("#!"):
        return FileContent("code", "program")
    if "\\documentclass" in start or "\\begin{document}" in start:
        return FileContent("latex", "LaTeX")
    if _is_json(start) or is_table(start.splitlines()[:-1], MIN_TABLE_LINES):
        return FileContent("rows", "table")
    return _TEXT


def _is_json(start: str) -> bool:
    if re.match(r"\[\s*\{\s*\"", start):
        return True
    if not re.match(r"\{\s*(?:\"|\})", start):
        return False
    first_line = start.splitlines()[0]
    try:
        return isinstance(json.loads(first_line), dict)
    except ValueError:
        return re.match(r'\{\s*"[^"\n]*"\s*:', start) is not None
