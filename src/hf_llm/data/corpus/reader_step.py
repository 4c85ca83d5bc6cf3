"""The first step of the pipeline: read the documents of a read task, each file by the reader for its format.

It also keeps the books: every record that is there is in one of three counts (`ReadErrors`), so that what a reader
leaves out is seen in the ledger.
"""

import importlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from hf_llm.core.extras import missing_packages
from hf_llm.core.surrogates import replace_lone_surrogates
from hf_llm.data.corpus import python_docs, small_world
from hf_llm.data.corpus.readers.code import find_license
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.corpus.readers.tabular import RowConverter
from hf_llm.data.corpus.sources import ReadTask, download_folder
from hf_llm.data.files.archives import extract_members, is_archive
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.download import download_file
from hf_llm.data.files.file_content import ARCHIVE
from hf_llm.data.files.file_formats import (
    EXTRA_OF_FORMAT,
    describe_unknown_kind,
    detect_format,
    explain_exclusion,
    list_suffixes,
    resolve_format,
)
from hf_llm.data.files.git_repos import is_license_file, nearest_license
from hf_llm.data.files.read_errors import NO_TEXT, UNEXPLAINED, ReadErrors
from hf_llm.data.files.tabular import read_hub_rows, unreadable_file_error
from hf_llm.data.files.text_files import split_text

READER_MODULES = {"rows": "tabular"}  # module in readers/ by format, if the two have different names
# Formats whose long files are cut into several documents.
CUT_FORMATS = ("text", "books", "code", "latex", "pdf", "docx", "epub")
# Formats whose files hold many records, which their readers count. A file of another format is one record.
RECORD_FORMATS = ("rows", "warc", "mediawiki", "latex", "discussions")
IS_CODE_KEY = "is_code"  # of a document's metadata: whether the filters of prose leave it alone


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
        elif task.source.synthetic:
            raw_documents = self._write_synthetic(task)
        elif task.source.hub:
            raw_documents = self._read_hub_rows(task)
        else:
            raw_documents = chain.from_iterable(self._read_file(task, path, name) for path, name in task.files)
        return (_make_document(task, raw) for raw in raw_documents)

    def _read_installed(self, task: ReadTask) -> Iterator[RawDocument]:
        for text, license, about, records in python_docs.read_documentation(task.item, task.files, self.faults):
            self.faults.used += records
            for number, piece in enumerate(split_text(text, self.max_chars)):
                yield RawDocument(piece, license=license, about={**about, "piece": number})

    def _write_synthetic(self, task: ReadTask) -> Iterator[RawDocument]:
        for number, text in enumerate(small_world.write_documents(int(task.item))):
            self.faults.records += 1
            self.faults.used += 1
            yield RawDocument(text, about={"part": int(task.item), "document": number})

    def _read_hub_rows(self, task: ReadTask) -> Iterator[RawDocument]:
        source = task.source
        assert source.hub is not None
        rows = read_hub_rows(
            source.hub, source.subset, source.split, source.streaming, source.take, source.skip, task.shard
        )
        converter = RowConverter(source, self.faults)
        for number, row in rows:
            self.faults.records += 1
            raw = converter.convert(row, f"{source.hub}, row {number}")
            if raw:
                self.faults.used += 1
                raw.about = {"row": number}
                yield raw
        converter.check_column()

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
        records_before = self.faults.records
        with TemporaryDirectory(prefix="hf_llm-") as folder:
            license_folder = Path(folder)
            archive_name = archive.name if is_archive(archive) else _name_archive(archive)
            is_repository = _unpack_licenses(archive, archive_name, license_folder)
            for inner_name, member in extract_members(archive, self.faults, archive_name):
                reason = _explain_member_exclusion(inner_name, member, task.source.format)
                if reason is None:
                    for raw in self._read_documents(task, member, f"{name}/{inner_name}"):
                        if is_repository and not raw.license:
                            license = nearest_license(license_folder / inner_name, license_folder)
                            raw.license = None if license == "unknown" else license
                        yield raw
                else:
                    self.faults.records += 1
                    self.faults.leave_out(reason, f"{archive}/{inner_name}")

                # Messages name the temporary file that a member is unpacked to.
                all_examples = [*self.faults.examples.values(), *self.faults.left_out_examples.values()]
                for examples in all_examples:
                    examples[:] = [example.replace(str(member), f"{archive}/{inner_name}") for example in examples]

        if self.faults.records == records_before:
            self.faults.records += 1
            self.faults.leave_out("archive without files", str(archive))

    def _read_documents(self, task: ReadTask, path: Path, name: str) -> Iterator[RawDocument]:
        content = resolve_format(path, task.source.format)
        format = content.format
        if format is None or format == ARCHIVE:
            self.faults.records += 1
            self.faults.leave_out(content.kind, str(path))
            return
        extra = EXTRA_OF_FORMAT.get(format)
        if extra and not task.source.format and detect_format(path) == "text" and missing_packages(extra):
            self.faults.records += 1
            self.faults.leave_out(f"{content.kind} named as text, which hf-llm[{extra}] reads", str(path))
            return
        module_name = READER_MODULES.get(format, format)
        reader = importlib.import_module(f"hf_llm.data.corpus.readers.{module_name}")

        records_before = self.faults.records
        counted_before = self.faults.counted
        for number, raw in enumerate(reader.read(path, self.faults, task.source, self.max_chars)):
            about: dict[str, str | int] = {"file": name}
            if format in CUT_FORMATS:
                about["piece"] = number
            raw.about = about | raw.about
            raw.is_code = task.is_code or format == "code"
            if task.is_repository and not raw.license:
                raw.license = find_license(path, task.source)

            if number and format not in RECORD_FORMATS:
                raw.records = 0  # a further piece of the file
            self.faults.used += raw.records
            yield raw
        self._count_rest(format, path, records_before, counted_before)

    def _count_rest(self, format: str, path: Path, records_before: int, counted_before: int) -> None:
        """Count what the reader of a file has neither yielded nor counted.

        `counted_before` and `records_before` are the counts before the file was read.
        """
        errors = self.faults
        counted = errors.counted - counted_before
        if format not in RECORD_FORMATS:
            # The file is the record, whatever its reader counts; beside it stands each read error within it.
            errors.records = records_before + max(counted, 1)
            if not counted:
                errors.leave_out(NO_TEXT, str(path))
        elif errors.records == records_before:
            is_empty = path.stat().st_size == 0
            errors.records += 1
            errors.leave_out(NO_TEXT if is_empty else f"file without {format}", str(path))
        elif errors.records - records_before > counted:
            errors.leave_out(UNEXPLAINED, str(path), errors.records - records_before - counted)


def _explain_member_exclusion(name: str, member: Path, format: str | None) -> str | None:
    """Return why a file in an archive is not read; None if it is."""
    reason = explain_exclusion(name)
    if reason is not None:
        return reason
    if is_archive(member):
        return "archive within an archive"
    suffixes = list_suffixes(format)
    if content_suffix(member) in suffixes or member.suffix.lower() in suffixes:
        return None
    return describe_unknown_kind(name)


def _unpack_licenses(archive: Path, archive_name: str, folder: Path) -> bool:
    """Unpack the files of an archive that state licences to `folder`, under their names. Returns whether it holds code.

    The archive is read once more for that. Read errors are counted when its files are read.
    """
    has_code = False

    def states_license(name: str) -> bool:
        nonlocal has_code
        has_code = has_code or detect_format(Path(name)) == "code"
        return is_license_file(PurePosixPath(name).name)

    for name, member in extract_members(archive, ReadErrors(), archive_name, is_wanted=states_license):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(member.read_bytes())
    return has_code


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
        IS_CODE_KEY: raw.is_code,
    }
    # The id is the digest of the normalized text, known at the end.
    return Document(text=raw.text, id="", metadata=replace_lone_surrogates(metadata))
