"""The later passes over a corpus: duplicates out, passages that repeat cut, shards written, train and the rest apart.

Every pass is a set of tasks that read the files of the pass before. A task of the first pass makes files sorted by id;
here each range of ids becomes one shard, where all copies of a text meet.

Near-duplicates are found between all documents at once, by one task that holds about 200 bytes for each of them; every
other task holds a slice of one shard.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_llm.core.atomic_io import table_writer, write_table
from hf_llm.data.corpus.clean_pass import COLUMNS, ORDER, schema_of_cleaned, signatures_of
from hf_llm.data.corpus.dedup.minhash import NearDuplicates, representatives
from hf_llm.data.corpus.dedup.substring import Cutter, RepeatedPassages, find_repeated, merge_repeated, write_windows
from hf_llm.data.corpus.dropped import Rejected
from hf_llm.data.corpus.splits import NAMES

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.dataset import Expression

    from hf_llm.data.corpus.build import Corpus

NEAR = "near_duplicates.parquet"  # the ids that are left out, sorted, and the ids kept in their place
REPEATED = "repeated.npy"
SLICES = 8  # of a shard; a task holds one
_MOST_SOURCES = 1 << 10

Counts = dict[str, list[int]]  # documents and UTF-8 bytes, by source (or licence, language, split)


def find_near_duplicates(near: NearDuplicates, files: list[Path], folder: Path) -> dict:
    """One task: which documents are like another. Of each group the longest of its earliest source stays."""
    import pyarrow
    import pyarrow.parquet

    ids, positions, sizes = [], [], []
    for file in files:
        table = pyarrow.parquet.read_table(file, columns=["id", "position", "size"])
        ids.append(np.frombuffer(bytes.fromhex("".join(table["id"].to_pylist())), ">u8").reshape(-1, 2))
        positions.append(table["position"].to_numpy())
        sizes.append(table["size"].to_numpy())
    ids = np.concatenate(ids).astype(np.uint64) if ids else np.empty((0, 2), np.uint64)
    if len(ids):
        ranked = np.lexsort((ids[:, 1], ids[:, 0], -np.concatenate(sizes), np.concatenate(positions)))
        order = np.empty(len(ids), np.int64)
        order[ranked] = np.arange(len(ids))
        keepers = ids[representatives([signatures_of(file) for file in files], order, near)]
    else:
        keepers = ids
    left_out = np.flatnonzero((keepers != ids).any(axis=1))
    pairs = np.unique(np.concatenate([ids[left_out], keepers[left_out]], axis=1), axis=0)
    columns = {"id": _hex(pairs[:, :2]), "kept": _hex(pairs[:, 2:])}
    schema = pyarrow.schema([("id", pyarrow.string()), ("kept", pyarrow.string())])
    write_table(pyarrow.table(columns, schema=schema), folder / NEAR)
    return {"documents": len(ids), "left_out": len(pairs)}


def make_shard(section: "Corpus", files: list[Path], work: Path, number: int, count: int) -> dict:
    """One task: the documents whose id falls in range `number` of `count`, one of each text and of each likeness.

    Written as shards of the corpus, or kept whole for `cut_shard` where repeated passages are to be cut. Equal texts
    have equal ids, so a shard is made slice by slice, and one slice of it is in memory.
    """
    rejected = Rejected(work, f"shard-{number:05d}")
    flows: dict[str, Counts] = {}
    slices = (
        _distinct(section, files, work, _in_range(number * SLICES + i, count * SLICES), flows, rejected)
        for i in range(SLICES)
    )
    if section.deduplicate.substring:
        with table_writer(work / _whole(number), schema_of_cleaned()) as write:
            for table in slices:
                write(table)
        return {"flows": flows, "rejected": rejected.finish()}
    return {**_finish_shard(section, slices, work, number, count), "flows": flows, "rejected": rejected.finish()}


def _distinct(
    section: "Corpus", files: list[Path], work: Path, inside: "Expression", flows: dict[str, Counts], rejected: Rejected
) -> "pyarrow.Table":
    """The documents that are `inside`, sorted, without copies and near-duplicates; counted in `flows`."""
    import pyarrow
    import pyarrow.dataset

    table = schema_of_cleaned().empty_table()
    if files:
        paths = [str(file) for file in files]
        table = pyarrow.dataset.dataset(paths, schema=table.schema).to_table(filter=inside, fragment_readahead=1)
    table = table.sort_by([(name, "ascending") for name in ORDER]).combine_chunks()
    _count(flows, "before", table)
    ids = table["id"].to_pylist()
    copies = [i > 0 and ids[i] == ids[i - 1] for i in range(len(ids))]
    table = _without(table, copies, "exact_duplicates", "duplicate", ids, rejected)
    _count(flows, "exact_duplicates", table)
    if section.deduplicate.near:
        like = pyarrow.dataset.dataset(work / NEAR).to_table(filter=inside)
        kept = dict(zip(like["id"].to_pylist(), like["kept"].to_pylist(), strict=True))
        instead = [kept.get(key, "") for key in table["id"].to_pylist()]
        table = _without(table, [bool(key) for key in instead], "near_duplicates", "near_duplicate", instead, rejected)
        _count(flows, "near_duplicates", table)
    return table


def window_shard(passages: RepeatedPassages, work: Path, number: int, count: int) -> dict:
    """One task: the windows of every document of a whole shard, told apart by hash into `count` partitions."""
    (work / "windows").mkdir(exist_ok=True)
    documents = (
        document
        for table in _read_whole(work, number)
        for document in zip(_precedence(table), table["text"].to_pylist(), strict=True)
    )
    write_windows(documents, work / "windows", f"{number:05d}", count, passages)
    return {}


def repeated_in(work: Path, number: int, count: int) -> dict:
    """One task: the windows of one partition that occur more than once. Frees the space of the rest."""
    files = sorted((work / "windows").glob(f"*.{number:05d}.windows"))
    output = work / f"repeated-{number:05d}.npy"
    if not output.exists():  # else a run was killed while it deleted the files
        find_repeated(files, output)
    for file in files:
        file.unlink()
    return {}


def gather_repeated(work: Path, count: int) -> dict:
    """One task: the repeated windows of all partitions in one file, which those that cut map into memory."""
    merge_repeated([work / f"repeated-{number:05d}.npy" for number in range(count)], work / REPEATED)
    return {}


def cut_shard(section: "Corpus", work: Path, number: int, count: int) -> dict:
    """One task: a whole shard without the passages that stand elsewhere already, written as shards of the corpus."""
    cutter = Cutter(work / REPEATED, section.deduplicate.substring)
    rejected = Rejected(work, f"cut-{number:05d}")
    flows: dict[str, Counts] = {}
    characters = [0]
    slices = (_cut(section, cutter, table, flows, characters, rejected) for table in _read_whole(work, number))
    finished = _finish_shard(section, slices, work, number, count)
    return {**finished, "flows": flows, "cut_characters": characters[0], "rejected": rejected.finish()}


def _cut(
    section: "Corpus",
    cutter: Cutter,
    table: "pyarrow.Table",
    flows: dict[str, Counts],
    characters: list[int],
    rejected: Rejected,
) -> "pyarrow.Table":
    """The table with its texts cut, and without those that are too short then; counted in `flows` and `characters`."""
    import pyarrow

    before, texts = table["text"].to_pylist(), []
    for order, text in zip(_precedence(table), before, strict=True):
        left, passages = cutter.cut(order, text)
        texts.append(left)
        characters[0] += sum(len(passage) for passage in passages)
    short = [len(new) < section.min_chars and new != old for new, old in zip(texts, before, strict=True)]
    table = table.set_column(table.column_names.index("text"), "text", pyarrow.array(texts, pyarrow.string()))
    table = _without(table, short, "repeated_passages", "too_short_when_cut", None, rejected)
    _count(flows, "repeated_passages", table)
    return table


def _finish_shard(
    section: "Corpus", tables: Iterable["pyarrow.Table"], work: Path, number: int, count: int
) -> dict[str, Any]:
    """Write the tables' documents as a file for each split that has any, and count them."""
    import pyarrow
    import pyarrow.compute as compute

    found: dict[str, dict[str, Counts]] = {"splits": {}, "licenses": {}, "languages": {}}
    lengths: dict[str, list[int]] = {}
    folder = work / "data"
    folder.mkdir(exist_ok=True)
    with ExitStack() as files:
        writers = {}
        for table in tables:
            splits = pyarrow.array([section.split.of(key) for key in table["id"].to_pylist()], pyarrow.string())
            for name in NAMES:
                rows = table.filter(compute.equal(splits, name)).select(COLUMNS)
                if name not in writers and (len(rows) or name == "train"):
                    path = folder / f"{name}-{number:05d}-of-{count:05d}.parquet"
                    writers[name] = files.enter_context(table_writer(path, rows.schema))
                if len(rows):
                    writers[name](rows)
            _add(found["splits"], _counts(table.append_column("split", splits), "split"))
            _add(found["licenses"], _counts(table, "license"))
            _add(found["languages"], _counts(table, "language"))
            _add(lengths, _lengths(table))
    return {**found, "lengths": lengths}


def _in_range(number: int, count: int):
    import pyarrow.compute as compute

    low, high = (f"{(bound << 32) // count:09x}"[1:] for bound in (number, number + 1))
    column = compute.field("id")
    return column >= low if number + 1 == count else (column >= low) & (column < high)


def _without(
    table: "pyarrow.Table", left_out: list[bool], rule: str, reason: str, kept: list[str] | None, rejected: Rejected
) -> "pyarrow.Table":
    """The table without some rows, which are recorded; `kept` are the ids of what stays in their place."""
    import pyarrow

    gone = np.flatnonzero(left_out)
    for i, row in zip(gone, table.take(pyarrow.array(gone)).to_pylist(), strict=True):
        about = {name: row[name] for name in ("id", "url", "source", "metadata")}
        rejected.add(rule, {**about, "reason": reason, "kept": kept[i] if kept else ""}, row["text"])
    return table.filter(pyarrow.array(~np.array(left_out, bool))).combine_chunks()


def _precedence(table: "pyarrow.Table") -> list[int]:
    """A number for every document: of a passage that repeats, the one with the smallest keeps it."""
    return [
        (min(position, _MOST_SOURCES - 1) << 54) | (int(key[:16], 16) >> 10)
        for position, key in zip(table["position"].to_pylist(), table["id"].to_pylist(), strict=True)
    ]


def _whole(number: int) -> str:
    return f"whole-{number:05d}.parquet"


def _read_whole(work: Path, number: int) -> Iterator["pyarrow.Table"]:
    """The documents of a whole shard, some at a time."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(work / _whole(number)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _hex(halves: np.ndarray) -> list[str]:
    return [f"{high:016x}{low:016x}" for high, low in halves.tolist()]


def _count(flows: dict[str, Counts], rule: str, table: "pyarrow.Table") -> None:
    """Add what `rule` has let through."""
    _add(flows.setdefault(rule, {}), _counts(table))


def _add(total: dict[str, list[int]], more: dict[str, list[int]]) -> None:
    """Add the lists of numbers in `more` to those in `total`, item by item; the shorter one counts as ending in 0."""
    for name, numbers in more.items():
        total[name] = [a + b for a, b in zip_longest(total.get(name, []), numbers, fillvalue=0)]


def _counts(table: "pyarrow.Table", column: str = "source") -> Counts:
    """`{value: [documents, UTF-8 bytes]}` of a column."""
    import pyarrow.compute as compute

    sizes = table.append_column("bytes", compute.cast(compute.binary_length(table["text"]), "int64"))
    grouped = sizes.group_by(column, use_threads=False).aggregate([("bytes", "count"), ("bytes", "sum")]).to_pydict()
    return {
        name: [n, s] for name, n, s in zip(grouped[column], grouped["bytes_count"], grouped["bytes_sum"], strict=True)
    }


def _lengths(table: "pyarrow.Table") -> dict[str, list[int]]:
    """By source, how many documents have a length in characters whose logarithm to base 2 is 0, 1, 2 ... (floored)."""
    import pyarrow.compute as compute

    found = {}
    logarithms = np.log2(np.maximum(compute.utf8_length(table["text"]).to_numpy(), 1)).astype(int)
    sources = np.array(table["source"].to_pylist())
    for name in sorted(set(sources.tolist())):
        found[name] = np.bincount(logarithms[sources == name]).tolist()
    return found
