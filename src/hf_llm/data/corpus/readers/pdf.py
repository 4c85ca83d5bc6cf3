"""The text layer of a PDF turned into paragraphs, without page numbers and running headers.

By pypdfium2 (PDFium, the engine of a browser; BSD and Apache-2.0): pypdf, the other library tried, gave the same lines
of two manuals in ten times the time. What has no text layer is counted: there is no character recognition here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.data.corpus.readers.books import joined_pages, mended, without_running_lines
from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.text_files import cut

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source

PDF_BYTES = 256 << 20
PAGES = 5_000
SCANNED_CHARS = 20  # a page: less is the number of a scanned page

_REASONS = {3: "broken PDF", 4: "encrypted PDF", 5: "encrypted PDF"}  # PDFium's error codes
_DIVISION = "\x02"  # PDFium's mark for a hyphen at a line's end, which swallows the line's end


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The pieces of one PDF's text, with title and author where it names them."""
    import pypdfium2

    faults.records += 1
    if path.stat().st_size > PDF_BYTES:
        return faults.drop(f"PDF larger than {PDF_BYTES >> 20} MiB", str(path))
    try:
        document = pypdfium2.PdfDocument(path)
        try:
            pages, about = _pages(document), _about(document)
        finally:
            document.close()
    except pypdfium2.PdfiumError as error:
        return faults.drop(_REASONS.get(error.err_code, "broken PDF"), str(path), str(error))
    if sum(len(line) for page in pages for line in page) < SCANNED_CHARS * len(pages):
        return faults.drop("PDF without text", str(path))
    text = mended(joined_pages(without_running_lines(pages)), spaced=False)
    for piece in cut(text, max_chars):
        yield Found(piece, about=dict(about))


def _pages(document: Any) -> list[list[str]]:
    """The lines of each page, in the order of the file."""
    pages = []
    for number in range(min(len(document), PAGES)):
        page = document[number]
        text = page.get_textpage()
        pages.append(text.get_text_bounded().replace(_DIVISION, "-\n").splitlines())
        text.close()
        page.close()
    return pages


def _about(document: Any) -> dict[str, str]:
    try:
        found = document.get_metadata_dict(skip_empty=True)
    except UnicodeDecodeError:  # no UTF-16, as it should be
        found = {}
    about = {"title": found.get("Title", ""), "author": found.get("Author", ""), "pages": len(document)}
    return {key: value for key, value in about.items() if value}
