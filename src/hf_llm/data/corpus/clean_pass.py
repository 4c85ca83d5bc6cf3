"""The first pass over a corpus: a read task in, files of clean documents sorted by id out.

An id is the digest of the normalized text, so sorting by id shuffles the documents, independently of their order in the
input.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.core.atomic_io import write_table
from hf_llm.data.corpus.config import Corpus
from hf_llm.data.corpus.dedup.minhash import NearDuplicates, compute_signatures
from hf_llm.data.corpus.dropped import DroppedRecords, encode_about
from hf_llm.data.corpus.filter_pipeline import FilterStep, make_filter_steps
from hf_llm.data.corpus.filters.length import LengthFilter
from hf_llm.data.corpus.normalize import TextNormalizer
from hf_llm.data.corpus.reader_step import SourceReader
from hf_llm.data.corpus.sources import ReadTask
from hf_llm.data.corpus.task_runner import run_steps, utf8_length

if TYPE_CHECKING:
    import pyarrow

BUFFER_BYTES = 64 << 20  # text a task holds before it writes a sorted file
COLUMNS = ("id", "text", "source", "license", "language", "url", "metadata")
ORDER = ("id", "position", "url", "metadata")  # sort keys: the first of several equal documents is kept
MODELS_FOLDER = "learned"


def clean_read_task(section: Corpus, task: ReadTask, work: Path, name: str) -> dict:
    """Read, normalize and filter the documents of a read task; write the kept ones to files that begin with `name`.

    Returns the counts of every step, the read errors, and the names of the files.
    """
    reader = SourceReader([task], section.max_chars)
    writer = SortedWriter(work, name, section.deduplicate.near)
    steps = [reader, TextNormalizer(), *_make_all_filter_steps(section, task, work), writer]

    dropped = DroppedRecords(work, name)
    for step in steps:
        if isinstance(step, BaseFilter):
            # datatrove declares a DiskWriter, and uses only what this writer has.
            step.exclusion_writer = dropped.make_writer(step.name)  # pyright: ignore[reportAttributeAccessIssue]

    stats = run_steps(steps)
    return {
        "flows": [asdict(each) for each in stats],
        "faults": vars(reader.faults),
        "files": writer.files,
        "rejected": dropped.close(),
    }


def _make_all_filter_steps(section: Corpus, task: ReadTask, work: Path) -> list[PipelineStep]:
    models = work / MODELS_FOLDER
    steps: list[PipelineStep] = [FilterStep(LengthFilter(section.min_chars, section.max_chars))]
    if section.decontaminate:
        steps.append(FilterStep(section.decontaminate.make_filter(models)))
    rules = section.select_rules(task.source, task.is_code)
    spares_code = task.source.rules is None  # the corpus's filters are for prose, a source's own for what it holds
    return steps + make_filter_steps(rules, models, spares_code)


class SortedWriter(PipelineStep):
    """The last step: writes documents to Parquet files sorted by id, with the MinHash signatures beside each file."""

    type = "WRITER"
    name = "write"

    def __init__(self, folder: Path, prefix: str, near: NearDuplicates | None):
        super().__init__()
        self.folder = folder
        self.prefix = prefix
        self.near = near
        self.files: list[str] = []

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        rows = []
        size = 0
        for document in data:
            row = _make_row(document)
            rows.append(row)
            size += row["size"]
            yield document
            if size >= BUFFER_BYTES:
                self._write_rows(rows)
                rows = []
                size = 0
        if rows:
            self._write_rows(rows)

    def _write_rows(self, rows: list[dict]) -> None:
        import pyarrow

        rows.sort(key=lambda row: [row[column] for column in ORDER])
        path = self.folder / f"{self.prefix}.{len(self.files):04d}.parquet"
        write_table(pyarrow.Table.from_pylist(rows, schema=cleaned_schema()), path)
        if self.near:
            np.save(signature_file(path), compute_signatures([row["text"] for row in rows], self.near))
        self.files.append(path.name)


def signature_file(path: Path) -> Path:
    """Return the file of MinHash signatures that belongs to a file of documents."""
    return path.with_suffix(".npy")


def cleaned_schema() -> "pyarrow.Schema":
    """Return the columns of a corpus, and those that only the later passes need."""
    import pyarrow

    fields = [(name, pyarrow.string()) for name in COLUMNS]
    return pyarrow.schema([*fields, ("position", pyarrow.int32()), ("size", pyarrow.int64())])


def _make_row(document: Document) -> dict:
    metadata = document.metadata
    return {
        "id": xxhash.xxh3_128_hexdigest(document.text.encode("utf-8")),
        "text": document.text,
        **{name: metadata[name] for name in ("source", "license", "language", "url", "position")},
        "metadata": encode_about(document),
        "size": utf8_length(document.text),
    }
