"""The `corpus` section of a recipe, made into Parquet files that `datasets.load_dataset` opens.

Two passes. Each part of the sources is read, cleaned and written sorted by document id, which is the digest of the
normalised text. Then each range of ids becomes a shard: equal texts meet there and one is kept, and the shard is
divided into train, validation and test. Order by digest is a shuffle that no reordering of the input can change, and
memory holds one part and one shard per core, however large the corpus.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from hf_llm.data.curriculum import Curriculum
from hf_llm.data.faults import Faults
from hf_llm.data.filters.length import LengthFilter
from hf_llm.data.normalise import Normalise
from hf_llm.data.pipeline import run_steps, run_tasks, utf8_length
from hf_llm.data.reading import Read
from hf_llm.data.sources import Part, Source, parts_of
from hf_llm.data.splitting import NAMES, Split
from hf_llm.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SHARD_BYTES = 64 << 20  # text of a shard of the corpus, its splits together
BUFFER_BYTES = 64 << 20  # text a task holds before it writes a sorted file
ROW_GROUP = 1000
COLUMNS = ("id", "text", "source", "license", "language", "url", "metadata")
LEDGER = "ledger.json"


@dataclass
class Corpus:
    """The `corpus` section."""

    sources: list[Source]
    min_chars: int = field(default=100, metadata={"help": "shorter documents are dropped"})
    max_chars: int = field(default=100_000, metadata={"help": "longer rows are dropped, longer files cut"})
    split: Split = field(default_factory=Split)
    max_tokens: int | None = field(default=None, metadata={"help": "tokens to train on, repetitions counted"})
    shares: dict[str, float] | None = field(default=None, metadata={"help": "of the train tokens, by source name"})
    max_epochs: float = field(default=4.0, metadata={"help": "how often a small source may be repeated for its share"})
    curriculum: Curriculum | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; name at least one")
        if not 0 <= self.min_chars < self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) has to be less than max_chars ({self.max_chars})")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; leave it out to train on everything")


class WriteSorted(PipelineStep):
    """The last step of the first pass: documents in, Parquet files sorted by id out."""

    type = "WRITER"
    name = "write"

    def __init__(self, folder: Path, names: list[str]):
        super().__init__()
        self.folder = folder
        self.names = names

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        rows, size, number = [], 0, 0
        for document in data:
            rows.append(_row(document))
            size += utf8_length(document.text)
            yield document
            if size >= BUFFER_BYTES:
                self._write(rows, f"{self.names[rank]}.{number:04d}.parquet")
                rows, size, number = [], 0, number + 1
        self._write(rows, f"{self.names[rank]}.{number:04d}.parquet")

    def _write(self, rows: list[dict], name: str) -> None:
        import pyarrow

        rows.sort(key=lambda row: (row["id"], row["position"], row["url"], row["metadata"]))
        _write_table(pyarrow.Table.from_pylist(rows, schema=_schema(position=True)), self.folder / name)


def make_corpus(section: Corpus, folder: Path, key: str) -> dict:
    """Make `data/*.parquet` and `ledger.json` in `folder`, or go on with what an interrupted run has left there.

    `key` stands for the settings. Returns the ledger. Raises UserError for sources that cannot be read, are mostly
    unreadable, or leave train or validation empty.
    """
    work = folder / "work"
    if not (folder / "data").exists():
        work.mkdir(exist_ok=True)
        parts = parts_of(section.sources)
        key = xxhash.xxh3_128_hexdigest(json.dumps([key, [(part.label, part.state) for part in parts]]).encode())
        results = _read_parts(section, parts, work, key)
        ledger = _merge(section, parts, results, work / key)
        (work / LEDGER).write_text(json.dumps(ledger, indent=2, ensure_ascii=False), encoding="utf-8")
        for torn in (work / key / "data").glob("*.tmp"):  # of a killed run
            torn.unlink()
        os.replace(work / key / "data", folder / "data")
    if (work / LEDGER).exists():
        os.replace(work / LEDGER, folder / LEDGER)
    shutil.rmtree(work, ignore_errors=True)
    return json.loads((folder / LEDGER).read_text(encoding="utf-8"))


def corpus_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of one split of a corpus, in order."""
    return sorted((folder / "data").glob(f"{split}-*.parquet"))


def corpus_texts(folder: Path, split: str) -> Iterator[str]:
    """The texts of one split of a corpus, in order."""
    for path in corpus_files(folder, split):
        yield from file_texts(path)


def file_texts(path: Path) -> Iterator[str]:
    """The texts of one Parquet file of a corpus."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP, columns=["text"]):
            yield from batch["text"].to_pylist()


def _read_parts(section: Corpus, parts: list[Part], work: Path, key: str) -> list[dict]:
    """The first pass. Returns each part's flows, faults and files."""
    names = [f"{number:05d}-{xxhash.xxh3_64_hexdigest(f'{key}{number}'.encode())}" for number in range(len(parts))]
    tasks = {work / f"{name}.json": (section, part, work, name) for part, name in zip(parts, names, strict=True)}
    results = run_tasks(tasks, read_part, [part.bytes for part in parts], "reading")
    for label in dict.fromkeys(part.label for part in parts):
        faults = Faults()
        for part, result in zip(parts, results, strict=True):
            if part.label == label:
                found = result["faults"]
                faults.add(Faults(found["records"], Counter(found["dropped"]), found["samples"]))
        faults.check(f"corpus source {label}")
    return results


def read_part(section: Corpus, part: Part, work: Path, name: str) -> dict:
    """One task of the first pass: a part in, sorted files of clean documents out."""
    read = Read([part], section.max_chars)
    filters = [LengthFilter(section.min_chars, section.max_chars)]
    flows = run_steps([read, Normalise(), *filters, WriteSorted(work, [name])])
    files = sorted(path.name for path in work.glob(f"{name}.*.parquet"))
    return {"flows": [asdict(flow) for flow in flows], "faults": vars(read.faults), "files": files}


def _merge(section: Corpus, parts: list[Part], results: list[dict], work: Path) -> dict:
    """The second pass: shards and the ledger."""
    (work / "data").mkdir(parents=True, exist_ok=True)
    files = [work.parent / name for result in results for name in result["files"]]
    size = sum(result["flows"][-1]["bytes"] for result in results)
    count = max(1, -(-size // SHARD_BYTES))
    tasks = {
        work / f"{number:05d}.json": (section.split, files, work / "data", number, count) for number in range(count)
    }
    shards = run_tasks(tasks, make_shard, [size // count] * count, "sorting")
    ledger = _ledger(parts, results, shards)
    _check_not_empty(section, ledger)
    return ledger


def make_shard(split: Split, files: list[Path], folder: Path, number: int, count: int) -> dict:
    """One task of the second pass: the documents whose id falls in range `number` of `count`, one of each text."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.dataset

    low, high = (f"{(bound << 32) // count:09x}"[1:] for bound in (number, number + 1))
    column = compute.field("id")
    inside = column >= low if number + 1 == count else (column >= low) & (column < high)
    table = pyarrow.dataset.dataset([str(file) for file in files], schema=_schema(position=True)).to_table(
        filter=inside
    )
    order = ["id", "position", "url", "metadata"]
    table = table.sort_by([(name, "ascending") for name in order]).combine_chunks()
    before = _counts(table, "source")
    ids = table["id"].to_pylist()
    first = [i == 0 or ids[i] != ids[i - 1] for i in range(len(ids))]
    table = table.filter(pyarrow.array(first, pyarrow.bool_())).select(COLUMNS)
    splits = pyarrow.array([split.of(key) for key in table["id"].to_pylist()], pyarrow.string())
    for name in NAMES:
        rows = table.filter(compute.equal(splits, name))
        if len(rows) or name == "train":
            _write_table(rows, folder / f"{name}-{number:05d}-of-{count:05d}.parquet")
    return {
        "before": before,
        "after": _counts(table, "source"),
        "splits": _counts(table.append_column("split", splits), "split"),
        "licenses": _counts(table, "license"),
    }


def _ledger(parts: list[Part], results: list[dict], shards: list[dict]) -> dict:
    """Documents and bytes after every rule, by source, and what was dropped why."""
    sources = {}
    for part, result in zip(parts, results, strict=True):
        entry = sources.setdefault(part.label, {"license": part.source.license, "rules": {}, "unreadable": []})
        entry["unreadable"] = [*entry["unreadable"], *result["faults"]["samples"]][:5]
        for flow in result["flows"][:-1]:
            rule = entry["rules"].setdefault(flow["rule"], {"documents": 0, "bytes": 0, "dropped": {}})
            rule["documents"] += flow["documents"]
            rule["bytes"] += flow["bytes"]
            rule["dropped"] = dict(Counter(rule["dropped"]) + Counter(flow["dropped"]))
    before, after = _summed(shards, "before"), _summed(shards, "after")
    for label, entry in sources.items():
        documents, size = after.get(label, (0, 0))
        dropped = before.get(label, (0, 0))[0] - documents
        reasons = {"duplicate": dropped} if dropped else {}
        entry["rules"]["exact_duplicates"] = {"documents": documents, "bytes": size, "dropped": reasons}
    return {
        "sources": sources,
        "splits": {
            name: dict(zip(("documents", "bytes"), c, strict=True)) for name, c in _summed(shards, "splits").items()
        },
        "licenses": {name: counts[0] for name, counts in _summed(shards, "licenses").items()},
    }


def _check_not_empty(section: Corpus, ledger: dict) -> None:
    total = sum(counts["documents"] for counts in ledger["splits"].values())
    for name in NAMES:
        if getattr(section.split, name) and name not in ledger["splits"]:
            lines = [
                f"  {label}: " + ", ".join(f"{rule} {c['documents']:,}" for rule, c in entry["rules"].items())
                for label, entry in ledger["sources"].items()
            ]
            remedy = f"add text, lower corpus.min_chars ({section.min_chars}) or change corpus.split"
            head = f"the corpus has {total:,} documents" + (f", none of them in {name}" if total else "")
            raise UserError("\n".join([f"{head}: {remedy}. Documents left after each rule:", *lines]))


def _row(document: Document) -> dict:
    about = document.metadata
    return {
        "id": xxhash.xxh3_128_hexdigest(document.text.encode("utf-8")),
        "text": document.text,
        **{name: about[name] for name in ("source", "license", "language", "url", "position")},
        "metadata": json.dumps(about["about"], ensure_ascii=False, sort_keys=True),
    }


def _schema(position: bool) -> "pyarrow.Schema":
    import pyarrow

    fields = [(name, pyarrow.string()) for name in COLUMNS]
    return pyarrow.schema([*fields, ("position", pyarrow.int32())] if position else fields)


def _write_table(table: "pyarrow.Table", path: Path) -> None:
    """Write a Parquet file so that its name stands for the whole of it."""
    import pyarrow.parquet

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    pyarrow.parquet.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP)
    os.replace(temporary, path)


def _counts(table: "pyarrow.Table", column: str) -> dict[str, list[int]]:
    """`{value: [documents, UTF-8 bytes]}` of a column."""
    import pyarrow.compute as compute

    sizes = table.append_column("size", compute.cast(compute.binary_length(table["text"]), "int64"))
    grouped = sizes.group_by(column, use_threads=False).aggregate([("size", "count"), ("size", "sum")]).to_pydict()
    return {
        name: [n, s] for name, n, s in zip(grouped[column], grouped["size_count"], grouped["size_sum"], strict=True)
    }


def _summed(shards: list[dict], name: str) -> dict[str, list[int]]:
    total = {}
    for shard in shards:
        for key, (documents, size) in shard[name].items():
            counts = total.setdefault(key, [0, 0])
            counts[0] += documents
            counts[1] += size
    return dict(sorted(total.items()))
