"""The first step of the pipeline: a part of a source in, documents out."""

import importlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from hf_llm.core.surrogates import whole_characters
from hf_llm.data.corpus import python_docs
from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.corpus.readers.tabular import row_document
from hf_llm.data.corpus.sources import Part, cache, format_of, is_ours
from hf_llm.data.files.archives import is_archive, members
from hf_llm.data.files.download import fetch
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import hub_rows, unreadable
from hf_llm.data.files.text_files import cut

READER_MODULES = {"rows": "tabular"}  # the module in readers/ of a format, where it has another name
CUT = ("text", "books", "code", "latex", "pdf")  # whose long files become several documents


class Read(PipelineStep):
    """Task `rank` reads part `rank`. A document's metadata: source, license, language, url, position and what it is."""

    type = "READER"
    name = "read"

    def __init__(self, parts: list[Part], max_chars: int):
        super().__init__()
        self.parts = parts
        self.max_chars = max_chars
        self.faults = Faults()  # of the task that is run

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        assert data is None and world_size == len(self.parts), "one task per part, and nothing before it"
        part = self.parts[rank]
        if part.source.installed:
            found = self._installed(part)
        elif part.source.hub:
            found = self._hub(part)
        else:
            found = chain.from_iterable(self._file(part, path, name) for path, name in part.files)
        return (_document(part, one) for one in found)

    def _installed(self, part: Part) -> Iterator[Found]:
        for text, license, about in python_docs.documents(part.item, part.files):
            self.faults.records += 1
            for number, piece in enumerate(cut(text, self.max_chars)):
                yield Found(piece, license=license, about={**about, "piece": number})

    def _hub(self, part: Part) -> Iterator[Found]:
        source = part.source
        rows = hub_rows(source.hub, source.subset, source.split, source.streaming, source.take, source.skip, part.shard)
        for number, row in rows:
            self.faults.records += 1
            is_first = number == source.skip + 1
            found = row_document(row, source, f"{source.hub}, row {number}", self.faults, is_first)
            if found:
                found.about = {"row": number}
                yield found

    def _file(self, part: Part, path: str, name: str) -> Iterator[Found]:
        """The documents of one file, fetched first where it is an address; of an archive, those of its files."""
        here = fetch(path, cache() / "crawl") if part.source.crawl else Path(path)
        try:
            if is_archive(here) and part.source.format != "latex":
                for inner, member in members(here, self.faults):
                    if is_ours(inner) and (part.source.format or format_of(member)):
                        yield from self._documents(part, member, f"{name}/{inner}")
                    for found in self.faults.examples.values():  # which name the file by where it lies for the moment
                        found[:] = [example.replace(str(member), f"{here}/{inner}") for example in found]
            else:
                yield from self._documents(part, here, name)
        except OSError as error:
            raise unreadable(here, error) from error

    def _documents(self, part: Part, path: Path, name: str) -> Iterator[Found]:
        format = part.source.format or format_of(path) or "text"
        reader = importlib.import_module(f"hf_llm.data.corpus.readers.{READER_MODULES.get(format, format)}")
        for number, found in enumerate(reader.read(path, self.faults, part.source, self.max_chars)):
            found.about = {"file": name, **({"piece": number} if format in CUT else {}), **found.about}
            yield found


def _document(part: Part, found: Found) -> Document:
    """The text is as it was found; what is said of it, names of files included, has whole characters only."""
    metadata = {
        "source": part.label,
        "license": (found.license or part.source.license).strip().lower(),  # as the Hub writes SPDX identifiers
        "language": found.language,
        "url": found.url,
        "position": part.position,
        "about": found.about,
    }
    # The id is the digest of the normalised text, known at the end.
    return Document(text=found.text, id="", metadata=whole_characters(metadata))
