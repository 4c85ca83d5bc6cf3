"""Turn EPUB books into text: the chapters in their reading order, with title, author and language.

A book is a zip archive of pages in XHTML and a list of them. Tables of contents and books with copy protection are left
out. Format: https://www.w3.org/TR/epub-33/
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote
from xml.etree import ElementTree

from hf_llm.data.corpus.readers.discussions import convert_html
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.compressed import open_file
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.text_encoding import decode_text
from hf_llm.data.files.text_files import split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

EPUB_BYTES = 512 << 20  # a larger book is dropped: its pictures are in it
CHAPTER_BYTES = 32 << 20  # unpacked; a book with a larger chapter is dropped

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_ROOT_FILE = ".//{*}rootfile"
_FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGE_TYPES = {"application/xhtml+xml", "text/html", "application/xml"}
_BROKEN = (
    zipfile.BadZipFile, zlib.error, ElementTree.ParseError, KeyError, ValueError, EOFError, NotImplementedError,
    RecursionError,
)  # fmt: skip


class _UnreadableBook(Exception):
    """A book that is not read, and why."""


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the pieces of one book."""
    errors.records += 1
    with open_file(path) as file:
        content = file.read(EPUB_BYTES + 1)
    if len(content) > EPUB_BYTES:
        errors.drop_record(f"EPUB larger than {EPUB_BYTES >> 20} MiB", str(path))
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            text, language, about = _read_book(archive)
    except _UnreadableBook as error:
        errors.drop_record(str(error), str(path))
        return
    except _BROKEN as error:
        errors.drop_record("broken EPUB", str(path), str(error))
        return

    if not text.strip():
        errors.leave_out(NO_TEXT, str(path))
    for piece in split_text(text, max_chars):
        yield RawDocument(piece, language=language, about=dict(about))


def _read_book(archive: zipfile.ZipFile) -> tuple[str, str, dict[str, str]]:
    """Return the text of a book, its language, and its title, author and date as far as it names them."""
    if _has_copy_protection(archive):
        raise _UnreadableBook("EPUB with copy protection")
    root_file = ElementTree.fromstring(archive.read(_CONTAINER)).find(_ROOT_FILE)
    if root_file is None:
        raise _UnreadableBook("broken EPUB")
    package_name = root_file.attrib["full-path"]
    package = ElementTree.fromstring(archive.read(package_name))
    folder = PurePosixPath(package_name).parent

    chapters = []
    for name in _list_pages(package):
        member = archive.getinfo(str(folder / name))
        if member.file_size > CHAPTER_BYTES:
            raise _UnreadableBook(f"EPUB with a chapter larger than {CHAPTER_BYTES >> 20} MiB")
        page = decode_text(archive.read(member))
        if page is None:
            raise _UnreadableBook("EPUB with a chapter in an unknown encoding")
        chapters.append(convert_html(page))

    about = {
        key: _find_text(package, name) for key, name in (("title", "title"), ("author", "creator"), ("date", "date"))
    }
    language = _find_text(package, "language").lower().split("-")[0]
    text = "\n\n".join(filter(None, chapters)) + "\n"
    return text, language, {key: value for key, value in about.items() if value}


def _has_copy_protection(archive: zipfile.ZipFile) -> bool:
    """Whether more than the book's fonts is encrypted."""
    if _ENCRYPTION not in archive.namelist():
        return False
    methods = ElementTree.fromstring(archive.read(_ENCRYPTION)).iterfind(".//{*}EncryptedData/{*}EncryptionMethod")
    return any(method.get("Algorithm") not in _FONT_OBFUSCATION for method in methods)


def _list_pages(package: ElementTree.Element) -> list[str]:
    """List the names of the pages in their reading order, without the table of contents."""
    items = {item.get("id"): item for item in package.iterfind("./{*}manifest/{*}item")}
    names = []
    for reference in package.iterfind("./{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _PAGE_TYPES:
            continue
        is_contents = "nav" in (item.get("properties") or "").split()
        if not is_contents:
            names.append(unquote(item.attrib["href"]))
    return names


def _find_text(package: ElementTree.Element, name: str) -> str:
    return " ".join((package.findtext(f"./{{*}}metadata/{{http://purl.org/dc/elements/1.1/}}{name}") or "").split())
