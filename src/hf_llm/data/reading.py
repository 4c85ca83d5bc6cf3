"""The first step of the pipeline: a part of a source in, documents out."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from hf_llm.data import installed
from hf_llm.data.faults import Faults
from hf_llm.data.rows import column, file_rows, hub_rows, unreadable
from hf_llm.data.sources import CODE, ROWS, Part, kind
from hf_llm.data.text_files import PIECE_CHARS, code_documents, pieces, text_documents


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
            return self._installed(part)
        if part.source.hub:
            return self._hub(part)
        return chain.from_iterable(self._file(part, Path(path), name) for path, name in part.files)

    def _installed(self, part: Part) -> Iterator[Document]:
        for text, license, about in installed.documents(part.label, part.files):
            self.faults.records += 1
            target = self.max_chars if len(text) <= self.max_chars else PIECE_CHARS
            for number, piece in enumerate(pieces(text.splitlines(keepends=True), self.max_chars, target)):
                yield _document(part, piece, license=license, **about, piece=number)

    def _hub(self, part: Part) -> Iterator[Document]:
        from tqdm import tqdm

        source = part.source
        rows = hub_rows(source.hub, source.subset, source.split, source.streaming, source.take)
        for number, row in tqdm(rows, desc=source.hub, unit=" rows", total=source.take):
            self.faults.records += 1
            yield from self._row(part, row, f"{source.hub}, row {number}", row=number)

    def _file(self, part: Part, path: Path, name: str) -> Iterator[Document]:
        try:
            yield from self._rows(part, path, name) if kind(path) in ROWS else self._texts(part, path, name)
        except OSError as error:
            raise unreadable(path, error) from error

    def _rows(self, part: Part, path: Path, name: str) -> Iterator[Document]:
        for number, row in file_rows(path, self.faults, part.source.table):
            yield from self._row(part, row, f"{path}, line {number}", file=name, line=number)

    def _texts(self, part: Part, path: Path, name: str) -> Iterator[Document]:
        read = code_documents if kind(path) in CODE else text_documents
        for number, text in enumerate(read(path, self.max_chars, self.faults)):
            yield _document(part, text, file=name, piece=number)

    def _row(self, part: Part, row: dict, where: str, /, **about: object) -> Iterator[Document]:
        text = column(row, part.source.text, where)
        if isinstance(text, str):
            url = row.get("url")
            yield _document(part, text, url=url if isinstance(url, str) else "", **about)
        else:
            self.faults.drop(f"{part.source.text} is no text", where, str(text))


def _document(part: Part, text: str, license: str | None = None, url: str = "", **about: object) -> Document:
    return Document(
        text=text,
        id="",  # the digest of the normalised text, known at the end
        metadata={
            "source": part.label,
            "license": license or part.source.license,
            "language": "",
            "url": url,
            "position": part.position,
            "about": about,
        },
    )
