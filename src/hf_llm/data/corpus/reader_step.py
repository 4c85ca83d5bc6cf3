"""The first step of the pipeline: read the documents of a read task, each file by the reader for its format."""

import importlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hf_llm.core.surrogates import replace_lone_surrogates
from hf_llm.data.corpus import python_docs
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.corpus.readers.tabular import make_row_document
from hf_llm.data.corpus.sources import ReadTask, download_folder
from hf_llm.data.files.archives import extract_members, is_archive
from hf_llm.data.files.download import download_file
from hf_llm.data.files.file_content import ARCHIVE
from hf_llm.data.files.file_formats import detect_format, is_input_file, resolve_format
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import read_hub_rows, unreadable_file_error
from hf_llm.data.files.text_files import split_text

READER_MODULES = {"rows": "tabular"}  # module in readers/ by format, if the two have different names
CUT_FORMATS = (
    "text",
    "books",
    "code",
    "latex",
    "pdf",
    "docx",
    "epub",
)  # formats whose long files are cut into several documents


class SourceReader(PipelineStep):
    """Reads sources: rank n yields the documents of the n-th read task.

    A document's metadata has source, license, language, url, position, and `about`: what its source says about it.
    """

    type = "READER"
    name = "read"

    def __init__(self, tasks: list[ReadTask], max_chars: int):
        super().__init__()
        self.tasks = tasks
        self.max_chars = max_chars
        self.faults = ReadErrors()  # of the task that is run

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        assert data is None and world_size == len(self.tasks), "one rank per read task, and nothing before it"
        task = self.tasks[rank]
        if task.source.installed:
            raw_documents = self._read_installed(task)
        elif task.source.hub:
            raw_documents = self._read_hub_rows(task)
        else:
            raw_documents = chain.from_iterable(self._read_file(task, path, name) for path, name in task.files)
        return (_make_document(task, raw) for raw in raw_documents)

    def _read_installed(self, task: ReadTask) -> Iterator[RawDocument]:
        for text, license, about in python_docs.read_documentation(task.item, task.files):
            self.faults.records += 1
            for number, piece in enumerate(split_text(text, self.max_chars)):
                yield RawDocument(piece, license=license, about={**about, "piece": number})

    def _read_hub_rows(self, task: ReadTask) -> Iterator[RawDocument]:
        source = task.source
        assert source.hub is not None
        rows = read_hub_rows(
            source.hub, source.subset, source.split, source.streaming, source.take, source.skip, task.shard
        )
        for number, row in rows:
            self.faults.records += 1
            is_first = number == source.skip + 1
            raw = make_row_document(row, source, f"{source.hub}, row {number}", self.faults, is_first)
            if raw:
                raw.about = {"row": number}
                yield raw

    def _read_file(self, task: ReadTask, path: str, name: str) -> Iterator[RawDocument]:
        """Yield the documents of one file, or of all files in an archive. A URL is downloaded first."""
        source = task.source
        file = download_file(path, download_folder() / "crawl") if source.crawl else Path(path)
        try:
            # A paper from arXiv is an archive that its reader opens itself.
            is_unnamed_archive = not source.format and resolve_format(file, None).format == ARCHIVE
            if (is_archive(file) and source.format != "latex") or is_unnamed_archive:
                yield from self._read_archive(task, file, name)
            else:
                yield from self._read_documents(task, file, name)
        except OSError as error:
            raise unreadable_file_error(file, error) from error

    def _read_archive(self, task: ReadTask, archive: Path, name: str) -> Iterator[RawDocument]:
        archive_name = archive.name if is_archive(archive) else _name_archive(archive)
        for inner_name, member in extract_members(archive, self.faults, archive_name):
            if is_input_file(inner_name) and (task.source.format or detect_format(member)):
                yield from self._read_documents(task, member, f"{name}/{inner_name}")

            # Errors name the temporary file that a member is unpacked to.
            for examples in self.faults.examples.values():
                examples[:] = [example.replace(str(member), f"{archive}/{inner_name}") for example in examples]

    def _read_documents(self, task: ReadTask, path: Path, name: str) -> Iterator[RawDocument]:
        content = resolve_format(path, task.source.format)
        format = content.format
        if format is None:
            self.faults.records += 1
            self.faults.drop_record(f"not read: {content.kind}", str(path), content.remedy)
            return
        module_name = READER_MODULES.get(format, format)
        reader = importlib.import_module(f"hf_llm.data.corpus.readers.{module_name}")

        for number, raw in enumerate(reader.read(path, self.faults, task.source, self.max_chars)):
            about: dict[str, str | int] = {"file": name}
            if format in CUT_FORMATS:
                about["piece"] = number
            raw.about = about | raw.about
            yield raw


def _name_archive(path: Path) -> str:
    """Return a name for an archive whose own does not say that it is one."""
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    return "archive.zip" if is_zip else "archive.tar"


def _make_document(task: ReadTask, raw: RawDocument) -> Document:
    """Convert what a reader yielded to a document of datatrove.

    The text is not changed. In the metadata, which may hold names of files, lone surrogates are replaced.
    """
    metadata = {
        "source": task.label,
        "license": (raw.license or task.source.license).strip().lower(),  # as the Hub writes SPDX identifiers
        "language": raw.language,
        "url": raw.url,
        "position": task.position,
        "about": raw.about,
    }
    # The id is the digest of the normalized text, known at the end.
    return Document(text=raw.text, id="", metadata=replace_lone_surrogates(metadata))
