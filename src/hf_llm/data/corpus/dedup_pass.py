"""The later passes over a corpus: drop duplicates, cut repeated passages, write shards, split off validation and test.

Every pass is a set of tasks that read the files of the pass before. The first pass (`clean_pass.py`) wrote files sorted
by id; here each range of ids becomes one shard, so all copies of a text are in the same shard.

Near-duplicates are searched for among all documents at once, by one task that takes about 200 bytes of memory for each
document; every other task holds a slice of one shard in memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_llm.core.atomic_io import table_writer, write_table
from hf_llm.data.corpus.clean_pass import COLUMNS, ORDER, cleaned_schema, signature_file
from hf_llm.data.corpus.config import Corpus
from hf_llm.data.corpus.dedup.minhash import NearDuplicates, find_representatives
from hf_llm.data.corpus.dedup.substring import (
    PassageCutter,
    RepeatedPassages,
    find_repeated_windows,
    merge_repeated_windows,
    write_windows,
)
from hf_llm.data.corpus.dropped import DroppedRecords
from hf_llm.data.corpus.splits import SPLIT_NAMES

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.dataset import Expression

NEAR = "near_duplicates.parquet"  # ids of dropped documents, sorted, each with the id of the one kept instead
WINDOWS = "windows"
REPEATED = "repeated.npy"
SLICES_PER_SHARD = 8  # a task holds one slice in memory
# Sources that are told apart when deciding which document keeps a repeated passage; later ones count as the last.
MAX_SOURCES = 1 << 10

Counts = dict[str, list[int]]  # documents and UTF-8 bytes, by source (or licence, language, split)


@dataclass
class ShardTask:
    """Which shard a task makes, and where."""

    section: Corpus
    work: Path
    number: int
    count: int
    """How many shards there are."""

    dropped: DroppedRecords
    flows: dict[str, Counts] = field(default_factory=dict)
    """What each rule has kept, by source."""

    def count_kept(self, rule: str, table: "pyarrow.Table") -> None:
        """Add the documents of a table to what `rule` has kept."""
        _add_lists(self.flows.setdefault(rule, {}), _count_by(table, "source"))

    def drop_rows(
        self, table: "pyarrow.Table", is_dropped: list[bool], rule: str, reason: str, kept: list[str] | None = None
    ) -> "pyarrow.Table":
        """Return the table without the rows marked in `is_dropped`, and record these.

        `kept` has for each row the id of the document that is kept instead.
        """
        import pyarrow

        numbers = np.flatnonzero(is_dropped)
        rows = table.take(pyarrow.array(numbers)).to_pylist()
        for number, row in zip(numbers, rows, strict=True):
            record = {name: row[name] for name in ("id", "url", "source", "metadata")}
            record["reason"] = reason
            record["kept"] = kept[number] if kept else ""
            self.dropped.add_document(rule, record, row["text"])

        is_kept = ~np.array(is_dropped, bool)
        return table.filter(pyarrow.array(is_kept)).combine_chunks()


def find_near_duplicates(near: NearDuplicates, files: list[Path], folder: Path) -> dict:
    """Find the documents that are near-duplicates of another, and write NEAR.

    In each group, the longest document of the earliest source is kept.
    """
    import pyarrow

    ids, positions, sizes = _read_identities(files)
    if len(ids):
        # Sort by precedence: the earliest source, then the longest text, then the smallest id.
        high_half = ids[:, 0]
        low_half = ids[:, 1]
        by_precedence = np.lexsort((low_half, high_half, -sizes, positions))  # the last key is the first criterion
        rank = np.empty(len(ids), np.int64)
        rank[by_precedence] = np.arange(len(ids))

        signature_files = [signature_file(file) for file in files]
        representatives = ids[find_representatives(signature_files, rank, near)]
    else:
        representatives = ids

    # Pairs of dropped and kept id, sorted. Documents of equal text have equal ids, so a pair may occur more than once.
    is_dropped = (representatives != ids).any(axis=1)
    pairs = np.concatenate([ids[is_dropped], representatives[is_dropped]], axis=1)
    pairs = np.unique(pairs, axis=0)

    dropped_ids = _format_ids(pairs[:, :2])
    kept_ids = _format_ids(pairs[:, 2:])
    schema = pyarrow.schema([("id", pyarrow.string()), ("kept", pyarrow.string())])
    table = pyarrow.table({"id": dropped_ids, "kept": kept_ids}, schema=schema)
    write_table(table, folder / NEAR)
    return {"documents": len(ids), "left_out": len(pairs)}


def _read_identities(files: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the id, the source's position in the recipe and the size of every document.

    Returns the ids as two halves, uint64 (documents, 2), the positions, int32 (documents,), and the sizes in bytes,
    int64 (documents,).
    """
    import pyarrow.parquet

    ids = [np.empty((0, 2), np.uint64)]
    positions = [np.empty(0, np.int32)]
    sizes = [np.empty(0, np.int64)]
    for file in files:
        table = pyarrow.parquet.read_table(file, columns=["id", "position", "size"])
        digits = "".join(table["id"].to_pylist())
        halves = np.frombuffer(bytes.fromhex(digits), ">u8").reshape(-1, 2)
        ids.append(halves.astype(np.uint64))
        positions.append(table["position"].to_numpy())
        sizes.append(table["size"].to_numpy())
    return np.concatenate(ids), np.concatenate(positions), np.concatenate(sizes)


def _format_ids(halves: np.ndarray) -> list[str]:
    return [f"{high:016x}{low:016x}" for high, low in halves.tolist()]


def write_shard(section: Corpus, files: list[Path], work: Path, number: int, count: int) -> dict:
    """Write shard `number` of `count`: the documents in its range of ids, without copies and near-duplicates.

    Writes the final files of each split, or one uncut file for `cut_shard` if repeated passages are to be cut. A shard
    is made slice by slice, one of them in memory; copies have equal ids, so they are in the same slice.
    """
    task = ShardTask(section, work, number, count, DroppedRecords(work, f"shard-{number:05d}"))
    slices = _read_slices(task, files)
    if section.deduplicate.substring:
        with table_writer(work / _uncut_file(number), cleaned_schema()) as write:
            for table in slices:
                write(table)
        counts = {}
    else:
        counts = _write_splits(task, slices)
    return {**counts, "flows": task.flows, "rejected": task.dropped.close()}


def _read_slices(task: ShardTask, files: list[Path]) -> Iterator["pyarrow.Table"]:
    """Yield the documents of a shard, slice by slice, without copies and near-duplicates."""
    slice_count = task.count * SLICES_PER_SHARD
    first = task.number * SLICES_PER_SHARD
    for number in range(first, first + SLICES_PER_SHARD):
        yield _drop_duplicates(task, files, _match_id_range(number, slice_count))


def _drop_duplicates(task: ShardTask, files: list[Path], in_slice: "Expression") -> "pyarrow.Table":
    """Read the documents of a slice, sorted, without copies and near-duplicates."""
    import pyarrow
    import pyarrow.dataset

    table = cleaned_schema().empty_table()
    if files:
        paths = [str(file) for file in files]
        documents = pyarrow.dataset.dataset(paths, schema=table.schema)
        table = documents.to_table(filter=in_slice, fragment_readahead=1)
    sort_keys = [(column, "ascending") for column in ORDER]
    table = table.sort_by(sort_keys).combine_chunks()
    task.count_kept("before", table)

    ids = table["id"].to_pylist()
    is_copy = [i > 0 and ids[i] == ids[i - 1] for i in range(len(ids))]
    table = task.drop_rows(table, is_copy, "exact_duplicates", "duplicate", kept=ids)
    task.count_kept("exact_duplicates", table)

    if task.section.deduplicate.near:
        pairs = pyarrow.dataset.dataset(task.work / NEAR).to_table(filter=in_slice)
        dropped_ids = pairs["id"].to_pylist()
        kept_ids = pairs["kept"].to_pylist()
        keepers = dict(zip(dropped_ids, kept_ids, strict=True))

        kept = [keepers.get(id, "") for id in table["id"].to_pylist()]
        is_near_duplicate = [bool(id) for id in kept]
        table = task.drop_rows(table, is_near_duplicate, "near_duplicates", "near_duplicate", kept)
        task.count_kept("near_duplicates", table)
    return table


def _match_id_range(number: int, count: int) -> "Expression":
    """Return the filter of the ids in range `number` of `count` equal ranges."""
    import pyarrow.compute as compute

    # The bounds as the first eight hexadecimal digits of an id; that of the last range has nine, and is not compared.
    low = f"{(number << 32) // count:09x}"[1:]
    high = f"{((number + 1) << 32) // count:09x}"[1:]
    id_column = compute.field("id")
    if number + 1 == count:
        return id_column >= low
    return (id_column >= low) & (id_column < high)


def write_shard_windows(passages: RepeatedPassages, work: Path, number: int, count: int) -> dict:
    """Write the windows of every document of an uncut shard, divided by hash into `count` partitions."""
    (work / WINDOWS).mkdir(exist_ok=True)
    write_windows(_read_documents(work, number), work / WINDOWS, f"{number:05d}", count, passages)
    return {}


def _read_documents(work: Path, number: int) -> Iterator[tuple[int, str]]:
    """Yield the rank and the text of every document of an uncut shard."""
    for table in _read_uncut(work, number):
        yield from zip(_rank_documents(table), table["text"].to_pylist(), strict=True)


def find_repeated_in_partition(work: Path, number: int, count: int) -> dict:
    """Find the windows of one partition that occur more than once, and delete the files of all of them."""
    files = sorted((work / WINDOWS).glob(f"*.{number:05d}.windows"))
    output = _repeated_file(work, number)
    if not output.exists():  # it exists if a run was killed while it deleted the files
        find_repeated_windows(files, output)
    for file in files:
        file.unlink()
    return {}


def merge_repeated_partitions(work: Path, count: int) -> dict:
    """Merge the repeated windows of all partitions into one file, which the tasks that cut map into memory."""
    merge_repeated_windows([_repeated_file(work, number) for number in range(count)], work / REPEATED)
    return {}


def _repeated_file(work: Path, number: int) -> Path:
    return work / f"repeated-{number:05d}.npy"


def cut_shard(section: Corpus, work: Path, number: int, count: int) -> dict:
    """Cut the passages that occur earlier in the corpus out of an uncut shard, and write the files of each split."""
    task = ShardTask(section, work, number, count, DroppedRecords(work, f"cut-{number:05d}"))
    cutter = _ShardCutter(task)
    cut_tables = (cutter.cut_table(table) for table in _read_uncut(work, number))
    counts = _write_splits(task, cut_tables)
    return {
        **counts,
        "flows": task.flows,
        "cut_characters": cutter.cut_characters,
        "rejected": task.dropped.close(),
    }


class _ShardCutter:
    """Cuts repeated passages out of the documents of a shard, and counts the characters that it cuts."""

    def __init__(self, task: ShardTask):
        self.task = task
        settings = task.section.deduplicate.substring
        assert settings is not None, "shards are cut only where the recipe asks for it"
        self.passage_cutter = PassageCutter(task.work / REPEATED, settings)
        self.cut_characters = 0

    def cut_table(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """Return the table with repeated passages cut out, without the documents that are too short after that."""
        import pyarrow

        min_chars = self.task.section.min_chars
        texts = []
        is_too_short = []
        for rank, text in zip(_rank_documents(table), table["text"].to_pylist(), strict=True):
            cut_text, passages = self.passage_cutter.cut_passages(rank, text)
            self.cut_characters += sum(len(passage) for passage in passages)
            texts.append(cut_text)
            is_too_short.append(len(cut_text) < min_chars and cut_text != text)

        column = table.column_names.index("text")
        table = table.set_column(column, "text", pyarrow.array(texts, pyarrow.string()))
        table = self.task.drop_rows(table, is_too_short, "repeated_passages", "too_short_when_cut")
        self.task.count_kept("repeated_passages", table)
        return table


def _rank_documents(table: "pyarrow.Table") -> list[int]:
    """Return the rank of every document: the one with the smallest rank keeps a passage that several documents have.

    The upper 10 of its 64 bits are the position of the source, the others the first 54 bits of the id.
    """
    ranks = []
    for position, id in zip(table["position"].to_pylist(), table["id"].to_pylist(), strict=True):
        source_bits = min(position, MAX_SOURCES - 1) << 54
        id_bits = int(id[:16], 16) >> 10
        ranks.append(source_bits | id_bits)
    return ranks


def _uncut_file(number: int) -> str:
    return f"whole-{number:05d}.parquet"


def _read_uncut(work: Path, number: int) -> Iterator["pyarrow.Table"]:
    """Yield the documents of an uncut shard, one row group at a time."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(work / _uncut_file(number)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _write_splits(task: ShardTask, tables: Iterable["pyarrow.Table"]) -> dict[str, Any]:
    """Write the documents to one file for each split that has any, and count them."""
    import pyarrow
    import pyarrow.compute as compute

    kinds = ("splits", "licenses", "source_licenses", "languages", "lengths")
    counts: dict[str, dict[str, list[int]]] = {kind: {} for kind in kinds}
    folder = task.work / "data"
    folder.mkdir(exist_ok=True)
    with ExitStack() as open_files:
        writers = {}
        for table in tables:
            split_names = [task.section.split.choose_split(id) for id in table["id"].to_pylist()]
            splits = pyarrow.array(split_names, pyarrow.string())
            for name in SPLIT_NAMES:
                rows = table.filter(compute.equal(splits, name)).select(COLUMNS)
                # Train has a file in every shard, even an empty one; validation and test only with documents.
                if name not in writers and (len(rows) or name == "train"):
                    path = folder / f"{name}-{task.number:05d}-of-{task.count:05d}.parquet"
                    writers[name] = open_files.enter_context(table_writer(path, rows.schema))
                if len(rows):
                    writers[name](rows)

            _add_lists(counts["splits"], _count_by(table.append_column("split", splits), "split"))
            _add_lists(counts["licenses"], _count_by(table, "license"))
            _add_lists(counts["source_licenses"], _count_by(_join_source_and_license(table), "source_license"))
            _add_lists(counts["languages"], _count_by(table, "language"))
            _add_lists(counts["lengths"], _count_lengths(table))
    return counts


def _add_lists(total: dict[str, list[int]], added: dict[str, list[int]]) -> None:
    """Add the lists of numbers in `added` to those in `total`, item by item, the shorter list padded with zeros."""
    for name, numbers in added.items():
        pairs = zip_longest(total.get(name, []), numbers, fillvalue=0)
        total[name] = [first + second for first, second in pairs]


def _count_by(table: "pyarrow.Table", column: str) -> Counts:
    """Count the documents and UTF-8 bytes of each value of a column."""
    import pyarrow.compute as compute

    sizes = compute.cast(compute.binary_length(table["text"]), "int64")
    groups = table.append_column("bytes", sizes).group_by(column, use_threads=False)
    totals = groups.aggregate([("bytes", "count"), ("bytes", "sum")]).to_pydict()
    rows = zip(totals[column], totals["bytes_count"], totals["bytes_sum"], strict=True)
    return {value: [documents, size] for value, documents, size in rows}


def _join_source_and_license(table: "pyarrow.Table") -> "pyarrow.Table":
    """Return the table with a column `source_license`: the source, a tab and the licence."""
    import pyarrow.compute as compute

    joined = compute.binary_join_element_wise(table["source"], table["license"], "\t", null_handling="replace")
    return table.append_column("source_license", joined)


def _count_lengths(table: "pyarrow.Table") -> dict[str, list[int]]:
    """Return a histogram of document lengths for each source: bin n counts those of 2^n to 2^(n+1) - 1 characters."""
    import pyarrow.compute as compute

    characters = compute.utf8_length(table["text"]).to_numpy()
    logarithms = np.log2(np.maximum(characters, 1)).astype(int)
    sources = np.array(table["source"].to_pylist())

    histograms = {}
    for name in sorted(set(sources.tolist())):
        histograms[name] = np.bincount(logarithms[sources == name]).tolist()
    return histograms
