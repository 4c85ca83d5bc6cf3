"""What was left out of a corpus: every document with the rule, the reason and the numbers, in `corpus/rejected`.

Documents are named by the digest of their text at that point, their url and what their source calls them; their texts
are not kept, but for a few samples of each rule.
"""

import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from datatrove.data import Document

from hf_llm.core.atomic_io import write_table
from hf_llm.core.errors import UserError

SAMPLES = 20  # of a rule
EXCERPT_CHARS = 300
ROWS_IN_MEMORY = 50_000
COLUMNS = ("id", "url", "source", "metadata", "rule", "reason", "because", "kept")


class Rejected:
    """The record of one task, for any number of rules; `rule(name)` is the exclusion writer of a datatrove filter."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.files: list[str] = []
        self._rows: list[dict] = []
        self._samples: dict[str, list] = {}

    def rule(self, name: str) -> "_Writer":
        """Where the filter of this rule writes what it drops."""
        return _Writer(self, name)

    def add(self, rule: str, row: dict[str, Any], text: str) -> None:
        """One document: `row` has the columns but `rule`."""
        row = {"rule": rule, "because": "", "kept": "", **row}
        self._rows.append(row)
        sample = {k: row[k] for k in ("id", "url", "source", "reason", "because", "kept")}
        sample["text"] = text[:EXCERPT_CHARS]
        keep_sample(self._samples.setdefault(rule, []), sample)
        if len(self._rows) >= ROWS_IN_MEMORY:
            self._write()

    def finish(self) -> dict:
        """Write the rest. Returns the files' names and the samples of every rule."""
        if self._rows:
            self._write()
        return {"files": self.files, "samples": {rule: samples_of(heap) for rule, heap in self._samples.items()}}

    def _write(self) -> None:
        import pyarrow

        self.files.append(f"{self.name}.rejected-{len(self.files):04d}.parquet")
        schema = pyarrow.schema([(column, pyarrow.string()) for column in COLUMNS])
        write_table(pyarrow.Table.from_pylist(self._rows, schema=schema), self.folder / self.files[-1])
        self._rows = []


class _Writer:
    """What datatrove's filters ask of an exclusion writer."""

    def __init__(self, rejected: Rejected, rule: str):
        self.rejected, self.name = rejected, rule

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        about = document.metadata
        row = {
            "id": xxhash.xxh3_128_hexdigest(document.text.encode("utf-8", "surrogatepass")),
            "url": about["url"],
            "source": about["source"],
            "metadata": metadata_of(document),
            "reason": about.pop("filter_reason", ""),
            "because": about.pop("because", ""),
        }
        self.rejected.add(self.name, row, document.text)


def metadata_of(document: Document) -> str:
    """What a document's source says of it, as JSON."""
    return json.dumps(document.metadata["about"], ensure_ascii=False, sort_keys=True, default=str)


def keep_sample(heap: list, sample: dict) -> None:
    """Keep the samples with the `SAMPLES` smallest ids: a choice that no order of the input can change."""
    entry = (-int(sample["id"], 16), json.dumps(sample, ensure_ascii=False, sort_keys=True))
    if len(heap) < SAMPLES:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def samples_of(heap: list) -> list[dict]:
    """The samples of a heap, in order of their ids."""
    return [json.loads(text) for _, text in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]


def merged_samples(found: list[dict[str, list[dict]]]) -> dict[str, list[dict]]:
    """The samples of many tasks, again `SAMPLES` of each rule."""
    heaps: dict[str, list] = {}
    for samples in found:
        for rule, some in samples.items():
            for sample in some:
                keep_sample(heaps.setdefault(rule, []), sample)
    return {rule: samples_of(heap) for rule, heap in heaps.items()}


def explain(folder: Path, wanted: str) -> Iterator[str]:
    """Lines that say what became of a document of a finished corpus.

    `wanted` is an id (or its first eight or more digits), a url, or a file's name in its source. Raises UserError where
    nothing goes by that name.
    """
    import pyarrow.compute as compute
    import pyarrow.dataset

    column = compute.field
    wanted_in_metadata = json.dumps(wanted, ensure_ascii=False)[1:-1]
    matches = (column("url") == wanted) | compute.match_substring(column("metadata"), f'"{wanted_in_metadata}"')
    if len(wanted) >= 8 and set(wanted) <= set("0123456789abcdef"):
        matches = matches | compute.starts_with(column("id"), wanted)
    lines = []
    for path in sorted((folder / "data").glob("*.parquet")):
        split = path.name.split("-")[0]
        table = pyarrow.dataset.dataset(path).to_table(filter=matches)
        lines += [_kept(row, split, folder) for row in table.to_pylist()]
    rejected = sorted((folder / "rejected").glob("*.parquet"))
    if rejected:
        table = pyarrow.dataset.dataset([str(path) for path in rejected]).to_table(filter=matches)
        lines += [_dropped(row) for row in table.to_pylist()]
    if not lines:
        raise UserError(
            f"{folder} knows no document {wanted!r}; give its id (eight digits or more), its url, or the name of its "
            "file as the `metadata` column has it. A record that could not be read is counted in ledger.json only"
        )
    yield from lines


def _kept(row: dict, split: str, folder: Path) -> str:
    import pyarrow.compute as compute
    import pyarrow.dataset

    about = f"{len(row['text']):,} characters, source {row['source']}, licence {row['license']}"
    about += f", language {row['language']}" if row["language"] else ""
    lines = [f"{row['id']}  kept, in {split}: {about}", f"    {row['url'] or '(no url)'}  {row['metadata']}"]
    others = sorted((folder / "rejected").glob("*.parquet"))
    if others:
        inside = pyarrow.dataset.dataset([str(path) for path in others])
        for other in inside.to_table(filter=compute.field("kept") == row["id"]).slice(0, 5).to_pylist():
            lines.append(f"    kept instead of {other['id']} ({other['reason']}) of {other['source']} {other['url']}")
    return "\n".join(lines)


def _dropped(row: dict) -> str:
    why = f": {row['because']}" if row["because"] else ""
    lines = [f"{row['id']}  left out by {row['rule']}, {row['reason']}{why}"]
    lines.append(f"    source {row['source']}  {row['url'] or '(no url)'}  {row['metadata']}")
    if row["kept"]:
        lines.append(f"    kept is {row['kept']}")
    return "\n".join(lines)
