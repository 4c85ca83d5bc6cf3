"""Turn the text layer of a PDF into paragraphs, without page numbers and running headers.

By pypdfium2 (PDFium, the engine of a browser; BSD and Apache-2.0): pypdf, the other library tried, gave the same lines
of two manuals in ten times the time. A PDF without a text layer is counted: there is no character recognition.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.extras import require_extras
from hf_llm.data.corpus.readers.books import join_pages, join_wrapped_lines, remove_running_lines
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_files import split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

PDF_BYTES = 256 << 20  # a larger file is dropped
MAX_PAGES = 5_000  # of one file; those after them are not read
MIN_CHARS_PER_PAGE = 20  # fewer, on average, are the page numbers of a scanned document

_REASONS = {3: "broken PDF", 4: "encrypted PDF", 5: "encrypted PDF"}  # by PDFium's error code
_DIVISION = "\x02"  # PDFium's mark for a hyphen at a line's end, which swallows the line's end


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the pieces of one PDF's text, with title and author if the PDF names them."""
    require_extras("pdf")
    import pypdfium2

    errors.records += 1
    if path.stat().st_size > PDF_BYTES:
        errors.drop_record(f"PDF larger than {PDF_BYTES >> 20} MiB", str(path))
        return

    try:
        document = pypdfium2.PdfDocument(path)
        try:
            pages = _read_pages(document)
            about = _read_metadata(document)
            pages_after_limit = len(document) - len(pages)
        finally:
            document.close()
    except pypdfium2.PdfiumError as error:
        reason = _REASONS.get(error.err_code or 0, "broken PDF")
        errors.drop_record(reason, str(path), str(error))
        return

    if pages_after_limit:
        errors.records += pages_after_limit
        errors.leave_out(f"PDF page after the first {MAX_PAGES:,}", str(path), pages_after_limit)
    char_count = sum(len(line) for page in pages for line in page)
    if char_count < MIN_CHARS_PER_PAGE * len(pages):
        errors.drop_record("PDF without text", str(path))
        return

    lines = join_pages(remove_running_lines(pages))
    text = join_wrapped_lines(lines, spaced=False)
    for piece in split_text(text, max_chars):
        yield RawDocument(piece, about=dict(about))


def _read_pages(document: Any) -> list[list[str]]:
    """Read the lines of each page, in the order of the file."""
    pages = []
    for number in range(min(len(document), MAX_PAGES)):
        page = document[number]
        text_layer = page.get_textpage()
        text = text_layer.get_text_bounded().replace(_DIVISION, "-\n")
        pages.append(text.splitlines())
        text_layer.close()
        page.close()
    return pages


def _read_metadata(document: Any) -> dict[str, str]:
    try:
        metadata = document.get_metadata_dict(skip_empty=True)
    except UnicodeDecodeError:  # it is not the UTF-16 it should be
        metadata = {}
    about = {"title": metadata.get("Title", ""), "author": metadata.get("Author", ""), "pages": len(document)}
    return {key: value for key, value in about.items() if value}
