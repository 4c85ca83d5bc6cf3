"""The documents that were dropped from a corpus, each with the filter, the reason and the numbers: `corpus/rejected`.

A document is named by the digest of its text at that point, its url and what its source says of it. Texts are not kept,
but for a few samples of each filter.
"""

import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from datatrove.data import Document

from hf_llm.core.atomic_io import write_table
from hf_llm.core.errors import UserError

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset, Expression

SAMPLES_PER_RULE = 20
EXCERPT_CHARS = 300  # of a sample's text
MAX_ROWS_IN_MEMORY = 50_000
MIN_ID_DIGITS = 8  # by which `--explain` may name a document
MAX_COPIES_SHOWN = 5
DETAIL_KEY = "drop_detail"  # of a dropped document's metadata, beside datatrove's `filter_reason`: the column `because`
COLUMNS = ("id", "url", "source", "metadata", "rule", "reason", "because", "kept")
SAMPLE_COLUMNS = ("id", "url", "source", "reason", "because", "kept")


class DroppedRecords:
    """The record of one task: files of dropped documents, and samples of them, by rule.

    `make_writer(rule)` gives a datatrove filter its exclusion writer.
    """

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self.name = name
        self.files: list[str] = []
        self._rows: list[dict] = []
        self._samples: dict[str, list] = {}

    def make_writer(self, rule: str) -> "_ExclusionWriter":
        """Return what the filter of this rule writes dropped documents to."""
        return _ExclusionWriter(self, rule)

    def add_document(self, rule: str, row: dict[str, Any], text: str) -> None:
        """Record one document. `row` has the other columns; `because` and `kept` may be left out."""
        row = {"rule": rule, "because": "", "kept": "", **row}
        self._rows.append(row)

        sample = {column: row[column] for column in SAMPLE_COLUMNS}
        sample["text"] = text[:EXCERPT_CHARS]
        _keep_sample(self._samples.setdefault(rule, []), sample)

        if len(self._rows) >= MAX_ROWS_IN_MEMORY:
            self._write_rows()

    def close(self) -> dict:
        """Write what is still in memory. Returns the files' names and the samples of every rule."""
        if self._rows:
            self._write_rows()
        samples = {rule: _sort_samples(heap) for rule, heap in self._samples.items()}
        return {"files": self.files, "samples": samples}

    def _write_rows(self) -> None:
        import pyarrow

        file = f"{self.name}.rejected-{len(self.files):04d}.parquet"
        schema = pyarrow.schema([(column, pyarrow.string()) for column in COLUMNS])
        self.files.append(file)
        write_table(pyarrow.Table.from_pylist(self._rows, schema=schema), self.folder / file)
        self._rows = []


class _ExclusionWriter:
    """What datatrove's filters ask of an exclusion writer."""

    def __init__(self, records: DroppedRecords, rule: str):
        self.records = records
        self.rule = rule

    def __enter__(self) -> "_ExclusionWriter":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        metadata = document.metadata
        row = {
            "id": xxhash.xxh3_128_hexdigest(document.text.encode("utf-8", "surrogatepass")),
            "url": metadata["url"],
            "source": metadata["source"],
            "metadata": encode_about(document),
            "reason": metadata.pop("filter_reason", ""),  # from datatrove
            "because": metadata.pop(DETAIL_KEY, ""),  # from our filters
        }
        self.records.add_document(self.rule, row, document.text)


def encode_about(document: Document) -> str:
    """Return what a document's source says of it, as JSON."""
    return json.dumps(document.metadata["about"], ensure_ascii=False, sort_keys=True, default=str)


def _keep_sample(heap: list, sample: dict) -> None:
    """Keep the samples with the smallest ids: a choice that does not depend on the order of the input."""
    entry = (-int(sample["id"], 16), json.dumps(sample, ensure_ascii=False, sort_keys=True))
    if len(heap) < SAMPLES_PER_RULE:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _sort_samples(heap: list) -> list[dict]:
    """Return the samples of a heap, in order of their ids."""
    by_id = sorted(heap, key=lambda entry: (-entry[0], entry[1]))
    return [json.loads(text) for _, text in by_id]


def merge_samples(samples_of_tasks: list[dict[str, list[dict]]]) -> dict[str, list[dict]]:
    """Merge the samples of many tasks, again `SAMPLES_PER_RULE` of each rule."""
    heaps: dict[str, list] = {}
    for samples_by_rule in samples_of_tasks:
        for rule, samples in samples_by_rule.items():
            heap = heaps.setdefault(rule, [])
            for sample in samples:
                _keep_sample(heap, sample)
    return {rule: _sort_samples(heap) for rule, heap in heaps.items()}


def explain_document(folder: Path, wanted: str, names: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """Yield lines that say what became of a document of a finished corpus.

    `wanted` is an id (or its first eight or more digits), a url, a file's name in its source, or its path, of which
    `names` has the source and the name there. Raises UserError where no document has that name.
    """
    import pyarrow.dataset

    matches = _match_document(wanted)
    for source, name in names:
        matches = matches | _match_file(source, name)
    lines = []
    for path in sorted((folder / "data").glob("*.parquet")):
        split = path.name.split("-")[0]
        table = pyarrow.dataset.dataset(path).to_table(filter=matches)
        lines += [_describe_kept(row, split, folder) for row in table.to_pylist()]

    dropped = _open_dropped(folder)
    if dropped is not None:
        lines += [_describe_dropped(row, folder) for row in dropped.to_table(filter=matches).to_pylist()]

    if not lines:
        raise UserError(
            f"{folder} has no document {wanted!r}; give its id (eight digits or more), its url, the path of its "
            "file, or its name as the `metadata` column has it. A record that could not be read, or was left out, is "
            "counted in ledger.json only"
        )
    yield from lines


def _match_document(wanted: str) -> "Expression":
    """Return the filter of documents whose url, metadata or id has what is wanted."""
    import pyarrow.compute as compute

    in_json = json.dumps(wanted, ensure_ascii=False)[1:-1]
    has_url = compute.field("url") == wanted
    has_metadata = compute.match_substring(compute.field("metadata"), f'"{in_json}"')
    matches = has_url | has_metadata

    could_be_id = len(wanted) >= MIN_ID_DIGITS and set(wanted) <= set("0123456789abcdef")
    if could_be_id:
        matches = matches | compute.starts_with(compute.field("id"), wanted)
    return matches


def _match_file(source: str, name: str) -> "Expression":
    """Return the filter of documents from the file of this name in a source."""
    import pyarrow.compute as compute

    in_json = json.dumps({"file": name}, ensure_ascii=False)[1:-1]
    return (compute.field("source") == source) & compute.match_substring(compute.field("metadata"), in_json)


def _open_dropped(folder: Path) -> "Dataset | None":
    """Open the records of dropped documents; None where none was dropped."""
    import pyarrow.dataset

    paths = sorted((folder / "rejected").glob("*.parquet"))
    if not paths:
        return None
    return pyarrow.dataset.dataset([str(path) for path in paths])


def _describe_kept(row: dict, split: str, folder: Path) -> str:
    import pyarrow.compute as compute

    characters = len(row["text"])
    facts = f"{characters:,} characters, source {row['source']}, licence {row['license']}"
    if row["language"]:
        facts += f", language {row['language']}"
    url = row["url"] or "(no url)"
    lines = [
        f"{row['id']}  kept, in {split}: {facts}",
        f"    {url}  {row['metadata']}",
    ]

    dropped = _open_dropped(folder)
    if dropped is not None:
        is_copy = compute.field("kept") == row["id"]
        copies = dropped.to_table(filter=is_copy).slice(0, MAX_COPIES_SHOWN)
        for copy in copies.to_pylist():
            lines.append(f"    kept instead of {copy['id']} ({copy['reason']}) of {copy['source']} {copy['url']}")
    return "\n".join(lines)


def _describe_dropped(row: dict, folder: Path) -> str:
    detail = f": {row['because']}" if row["because"] else ""
    lines = [
        f"{row['id']}  dropped by {row['rule']}, {row['reason']}{detail}",
        f"    source {row['source']}  {row['url'] or '(no url)'}  {row['metadata']}",
    ]
    if row["kept"]:
        # A document is named by its text, so a copy has the id of the one that is kept: its place tells them apart.
        what = "the same text" if row["kept"] == row["id"] else "another version"
        lines.append(f"    {what} is kept{_place_of_kept(row['kept'], folder)}")
        lines.append(f"    kept in its place: {row['kept']}")
    return "\n".join(lines)


def _place_of_kept(document_id: str, folder: Path) -> str:
    """Say which source a kept document is from, and where in it; empty where a later rule dropped it too."""
    import pyarrow.compute as compute
    import pyarrow.dataset

    columns = ["source", "url", "metadata"]
    for path in sorted((folder / "data").glob("*.parquet")):
        rows = pyarrow.dataset.dataset(path).to_table(columns, filter=compute.field("id") == document_id).to_pylist()
        for row in rows:
            return f" from source {row['source']}  {row['url'] or '(no url)'}  {row['metadata']}"
    return ", or was until a later rule dropped it"
