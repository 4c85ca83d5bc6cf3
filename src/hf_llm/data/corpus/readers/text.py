"""Read plain text and Markdown: a file is one document; a longer one is cut at headings and blank lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_files import read_text_documents

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the pieces of the file."""
    for text in read_text_documents(path, max_chars, errors):
        yield RawDocument(text)
