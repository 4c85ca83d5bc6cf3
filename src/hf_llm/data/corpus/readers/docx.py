"""Turn Word documents (.docx) into text: paragraphs, headings, lists, tables a row a line, footnotes at the end.

By mammoth, which gives what a reader sees: insertions are in, deletions and comments are not. Headers, footers and
pictures are left out. The older .doc is not read.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.parsers import expat

from hf_llm.core.extras import require_extras
from hf_llm.data.corpus.readers.discussions import convert_html
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.compressed import open_file
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.text_files import split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

DOCX_BYTES = 256 << 20  # unpacked; a larger document is dropped
_OLE_MAGIC = b"\xd0\xcf\x11\xe0"  # of a document with a password, and of the older .doc
_PROPERTIES = "docProps/core.xml"
_METADATA = {
    "title": "{http://purl.org/dc/elements/1.1/}title",
    "author": "{http://purl.org/dc/elements/1.1/}creator",
    "date": "{http://purl.org/dc/terms/}created",
}
# What mammoth and the parser of XML raise for a broken document.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, expat.ExpatError, ElementTree.ParseError, KeyError, IndexError, ValueError,
    TypeError, AttributeError, EOFError, OSError, NotImplementedError, RecursionError,
)  # fmt: skip


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the pieces of one document, with its title, author and date if it names them."""
    require_extras("office")
    errors.records += 1
    with open_file(path) as file:
        content = file.read(DOCX_BYTES + 1)
    if content.startswith(_OLE_MAGIC):
        errors.drop_record("Word document with a password, or an old .doc", str(path))
        return
    try:
        if _measure_unpacked(content) > DOCX_BYTES:
            errors.drop_record(f"Word document larger than {DOCX_BYTES >> 20} MiB", str(path))
            return
        text = _convert_docx(content)
        about = _read_metadata(content)
    except _BROKEN as error:
        errors.drop_record("broken Word document", str(path), str(error))
        return

    if not text.strip():
        errors.leave_out(NO_TEXT, str(path))
    for piece in split_text(text, max_chars):
        yield RawDocument(piece, about=dict(about))


def _measure_unpacked(content: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return sum(member.file_size for member in archive.infolist())


def _convert_docx(content: bytes) -> str:
    import mammoth

    def drop_picture(picture: object) -> list:
        return []

    result = mammoth.convert_to_html(io.BytesIO(content), convert_image=drop_picture)
    return convert_html(result.value) + "\n"


def _read_metadata(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if _PROPERTIES not in archive.namelist():
            return {}
        properties = ElementTree.fromstring(archive.read(_PROPERTIES))
    about = {name: (properties.findtext(tag) or "").strip() for name, tag in _METADATA.items()}
    return {name: value for name, value in about.items() if value}
