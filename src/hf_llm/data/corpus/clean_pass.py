"""The first pass over a corpus: a part of a source in, files of clean documents sorted by id out.

An id is the digest of the normalised text, so the order of the ids is a shuffle that no order of the input can change.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.core.atomic_io import write_table
from hf_llm.data.corpus.dedup.minhash import NearDuplicates, signatures
from hf_llm.data.corpus.dropped import Rejected, metadata_of
from hf_llm.data.corpus.filters.length import LengthFilter
from hf_llm.data.corpus.normalize import Normalise
from hf_llm.data.corpus.reader_step import Read
from hf_llm.data.corpus.sources import Part
from hf_llm.data.corpus.task_runner import run_steps, utf8_length

if TYPE_CHECKING:
    import pyarrow

    from hf_llm.data.corpus.build import Corpus

BUFFER_BYTES = 64 << 20  # text a task holds before it writes a sorted file
COLUMNS = ("id", "text", "source", "license", "language", "url", "metadata")
ORDER = ("id", "position", "url", "metadata")  # of equal documents the first is kept


def clean_part(section: "Corpus", part: Part, work: Path, name: str) -> dict:
    """One task: the documents of a part, read, normalised and judged; what is left of them in files `name`."""
    rejected = Rejected(work, name)
    read = Read([part], section.max_chars)
    steps = [read, Normalise(), LengthFilter(section.min_chars, section.max_chars)]
    if section.decontaminate:
        steps.append(section.decontaminate.step(work / "learned"))
    steps += section.rules_of(part.source).steps(work / "learned")
    for step in steps:
        if isinstance(step, BaseFilter):
            step.exclusion_writer = rejected.rule(step.name)
    write = WriteSorted(work, name, section.deduplicate.near)
    flows = run_steps([*steps, write])
    return {
        "flows": [asdict(flow) for flow in flows],
        "faults": vars(read.faults),
        "files": write.files,
        "rejected": rejected.finish(),
    }


class WriteSorted(PipelineStep):
    """The last step: documents in, Parquet files sorted by id out, beside each the signatures of its documents."""

    type = "WRITER"
    name = "write"

    def __init__(self, folder: Path, prefix: str, near: NearDuplicates | None):
        super().__init__()
        self.folder, self.prefix, self.near = folder, prefix, near
        self.files: list[str] = []

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        rows, size = [], 0
        for document in data:
            rows.append(_row(document))
            size += rows[-1]["size"]
            yield document
            if size >= BUFFER_BYTES:
                self._write(rows)
                rows, size = [], 0
        if rows:
            self._write(rows)

    def _write(self, rows: list[dict]) -> None:
        import pyarrow

        rows.sort(key=lambda row: [row[name] for name in ORDER])
        path = self.folder / f"{self.prefix}.{len(self.files):04d}.parquet"
        write_table(pyarrow.Table.from_pylist(rows, schema=schema_of_cleaned()), path)
        if self.near:
            np.save(signatures_of(path), signatures([row["text"] for row in rows], self.near))
        self.files.append(path.name)


def signatures_of(path: Path) -> Path:
    """The file of MinHash signatures that belongs to a file of documents."""
    return path.with_suffix(".npy")


def schema_of_cleaned() -> "pyarrow.Schema":
    """The columns of a corpus, and those that only its making needs."""
    import pyarrow

    fields = [(name, pyarrow.string()) for name in COLUMNS]
    return pyarrow.schema([*fields, ("position", pyarrow.int32()), ("size", pyarrow.int64())])


def _row(document: Document) -> dict:
    about = document.metadata
    return {
        "id": xxhash.xxh3_128_hexdigest(document.text.encode("utf-8")),
        "text": document.text,
        **{name: about[name] for name in ("source", "license", "language", "url", "position")},
        "metadata": metadata_of(document),
        "size": utf8_length(document.text),
    }
