"""Read plain text and Markdown: a file is one document; a longer one is cut at headings and blank lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.text_files import read_text_documents

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source


def read(path: Path, errors: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """Yield the pieces of the file."""
    for text in read_text_documents(path, max_chars, errors):
        yield Found(text)
