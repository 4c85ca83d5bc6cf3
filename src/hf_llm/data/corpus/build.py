"""The `corpus` section of a recipe, made into Parquet files that `datasets.load_dataset` opens.

Passes of independent tasks, each reading the files of the pass before: cleaning, a part of the sources each; then the
search for near-duplicates; then shards, a range of ids each; then, where asked for, the passages that repeat. A task
that is done is not done again, and memory holds one part or one shard per core, however large the corpus
(near-duplicates apart: `sharding.py`).
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import xxhash

from hf_llm.core.atomic_io import ROW_GROUP, write_text
from hf_llm.core.errors import UserError
from hf_llm.data.corpus.clean_pass import clean_part
from hf_llm.data.corpus.dedup.minhash import NearDuplicates
from hf_llm.data.corpus.dedup.substring import RepeatedPassages
from hf_llm.data.corpus.dedup_pass import (
    cut_shard,
    find_near_duplicates,
    gather_repeated,
    make_shard,
    repeated_in,
    window_shard,
)
from hf_llm.data.corpus.executors import Cluster, Executor
from hf_llm.data.corpus.filter_pipeline import Rules
from hf_llm.data.corpus.filters.decontamination import Decontaminate, evaluation_sets
from hf_llm.data.corpus.ledger import make_ledger
from hf_llm.data.corpus.sources import Part, Source, parts_of
from hf_llm.data.corpus.splits import NAMES, Split
from hf_llm.data.corpus.task_runner import run_tasks
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import COMPRESSED
from hf_llm.data.tokens.curriculum import Curriculum

SHARD_BYTES = 64 << 20  # text of a shard of the corpus, its splits together
LEDGER = "ledger.json"


@dataclass
class Deduplicate:
    """`corpus.deduplicate`. Exact copies are always left out."""

    near: NearDuplicates | None = field(default_factory=NearDuplicates)
    substring: RepeatedPassages | None = None


@dataclass
class Corpus:
    """The `corpus` section."""

    sources: list[Source]
    min_chars: int = field(default=100, metadata={"help": "shorter documents are dropped"})
    max_chars: int = field(default=100_000, metadata={"help": "longer rows are dropped, longer files cut"})
    rules: Rules = field(default_factory=Rules)
    decontaminate: Decontaminate | None = None
    deduplicate: Deduplicate = field(default_factory=Deduplicate)
    split: Split = field(default_factory=Split)
    max_tokens: int | None = field(default=None, metadata={"help": "tokens to train on, repetitions counted"})
    shares: dict[str, float] | None = field(default=None, metadata={"help": "of the train tokens, by source name"})
    max_epochs: float = field(default=4.0, metadata={"help": "how often a small source may be repeated for its share"})
    curriculum: Curriculum | None = None
    executor: Literal["local", "ray", "slurm"] = field(default="local", metadata={"help": "where the tasks run"})
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; name at least one")
        if not 0 <= self.min_chars < self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) has to be less than max_chars ({self.max_chars})")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; leave it out to train on everything")
        if self.shares and self.curriculum and self.curriculum.by == "mix":
            raise ValueError("shares stand in the stages of a curriculum by mix; leave corpus.shares out")
        Executor(self.executor, self.cluster)

    def rules_of(self, source: Source) -> Rules:
        """The rules that judge a source: its own; else the corpus's, unless it is code, for which they are not made."""
        if source.rules is not None:
            return source.rules
        return Rules() if source.git or source.format == "code" else self.rules


def make_corpus(section: Corpus, folder: Path, key: str, made_with: str = "") -> dict:
    """Make `data/*.parquet`, `rejected/*.parquet` and `ledger.json` in `folder`, or go on with an interrupted run.

    `key` stands for the settings, `made_with` for the programs that read and clean; documents that are clean already
    are taken where only what follows cleaning has changed. Returns the ledger. Raises UserError for sources that cannot
    be read, are mostly unreadable, or leave train or validation empty, and for a disk that is too small.
    """
    work = folder / "work"
    if not (folder / LEDGER).exists():
        work.mkdir(exist_ok=True)
        if not (work / LEDGER).exists():
            ledger = _run_passes(section, work, key, made_with)
            write_text(work / LEDGER, json.dumps(ledger, indent=2, ensure_ascii=False))
        for name in ("data", "rejected", "learned"):
            if (work / name).exists():
                os.replace(work / name, folder / name)
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


def _run_passes(section: Corpus, work: Path, key: str, made_with: str) -> dict:
    """All passes; the files they leave in `work` are moved to their places by the caller."""
    parts = parts_of(section.sources)
    check_space(parts, work, section)
    learned = work / "learned"
    learned.mkdir(exist_ok=True)
    measured = {}
    for rules in [section.rules, *(source.rules for source in section.sources if source.rules)]:
        measured |= rules.prepare(learned)
    if section.decontaminate:
        section.decontaminate.prepare(learned)
    models = {path.name: xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in sorted(learned.iterdir())}
    cleaning = [made_with, models, section.min_chars, section.max_chars]
    cleaning += [section.decontaminate, section.deduplicate.near]
    names = [_digest([cleaning, *_settings_of(part, section)]) for part in parts]
    later = work / _digest([key, names])
    later.mkdir(exist_ok=True)
    passes = {"cleaning": _clean(section, parts, work, names)}
    files = [work / name for result in passes["cleaning"] for name in result["files"]]
    size = sum(result["flows"][-1]["bytes"] for result in passes["cleaning"])
    count = max(1, -(-size // SHARD_BYTES))
    executor = Executor(section.executor, section.cluster)

    def run(title: str, task: Callable[..., dict], *arguments: object) -> None:
        tasks = {later / f"{title}-{n:05d}.json": (*arguments, later, n, count) for n in range(count)}
        passes[title] = run_tasks(tasks, task, [size // count] * count, title, executor)

    def run_one(title: str, task: Callable[..., dict], *arguments: object) -> None:
        passes[title] = run_tasks({later / f"{title}.json": arguments}, task, [size], title, Executor())

    if section.deduplicate.near:
        run_one("near-duplicates", find_near_duplicates, section.deduplicate.near, files, later)
    run("sharding", make_shard, section, files)
    if section.deduplicate.substring:
        run("windows", window_shard, section.deduplicate.substring)
        run("repetitions", repeated_in)
        run_one("gathering", gather_repeated, later, count)
        run("cutting", cut_shard, section)
    ledger = make_ledger(parts, passes)
    ledger["learned"] = measured
    ledger["evaluation_sets"] = evaluation_sets(learned) if section.decontaminate else []
    _check_not_empty(section, ledger)
    _gather(work, later, passes)
    return ledger


def _settings_of(part: Part, section: Corpus) -> list[object]:
    """What decides how a part is cleaned, beside the corpus's own limits; what only later passes read is not in it."""
    return [part.source, section.rules_of(part.source), part.label, part.position, part.state, part.shard]


def _digest(value: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, default=asdict).encode())


def _clean(section: Corpus, parts: list[Part], work: Path, names: list[str]) -> list[dict]:
    tasks = {work / f"{name}.json": (section, part, work, name) for part, name in zip(parts, names, strict=True)}
    executor = Executor(section.executor, section.cluster)
    results = run_tasks(tasks, clean_part, [part.bytes for part in parts], "cleaning", executor)
    for label in dict.fromkeys(part.label for part in parts):
        faults = Faults()
        for part, result in zip(parts, results, strict=True):
            if part.label == label:
                found = result["faults"]
                faults.add(Faults(found["records"], Counter(found["dropped"]), found["examples"]))
        faults.check(f"corpus source {label}")
    return results


def check_space(parts: list[Part], folder: Path, section: Corpus) -> None:
    """Raise UserError where the disk has not the room that making the corpus takes.

    Reckoned with: text is what the files hold, four times that where they are compressed; the cleaned documents and the
    corpus are stored twice, at half the size of the text; repeated passages take four times the text. What comes from
    the network is not known beforehand.
    """
    text = sum(part.bytes * (4 if any(_is_compressed(Path(name)) for _, name in part.files) else 1) for part in parts)
    need = text * (5 if section.deduplicate.substring else 1)
    made = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # by a run that was interrupted
    free = shutil.disk_usage(folder).free + made
    if need > free:
        raise UserError(
            f"{folder.absolute()} has {free / 1e9:,.1f} GB free; a corpus of {text / 1e9:,.1f} GB of text takes about "
            f"{need / 1e9:,.1f} GB while it is made. Free some space, or run from a folder on a larger disk"
        )


def _is_compressed(path: Path) -> bool:
    return is_archive(path) or path.suffix.lower() in {*COMPRESSED, ".parquet"}


def _gather(work: Path, later: Path, passes: dict[str, list[dict]]) -> None:
    """The shards, and the records of what was left out numbered in the order of passes and tasks, in their folders.

    An empty folder of learnt models goes.
    What is not where it was has been moved by a run that was killed here.
    """
    (work / "rejected").mkdir(exist_ok=True)
    found = [
        folder / name
        for title, results in passes.items()
        for result in results
        for folder in [work if title == "cleaning" else later]
        for name in result.get("rejected", {}).get("files", [])
    ]
    if not any((work / "learned").iterdir()):
        (work / "learned").rmdir()
    for number, path in enumerate(found):
        if path.exists():
            os.replace(path, work / "rejected" / f"{number:05d}.parquet")
    if (later / "data").exists():
        for torn in (later / "data").glob("*.tmp"):  # of a killed run
            torn.unlink()
        os.replace(later / "data", work / "data")


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
