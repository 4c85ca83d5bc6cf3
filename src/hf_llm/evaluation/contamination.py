"""Find the documents of benchmarks in the text that a model was trained on: its corpus, its SFT and preference rows.

A document overlaps if one of its texts shares 13 words in a row with a training text, or stands there as a whole where
it is shorter (`hf_llm.data.corpus.dedup.text_overlap`). What a model was trained on follows from the manifests of its
folder and of all that this was made from. Where one of them is not here, or has changed since, the overlap is unknown.

What was searched for is kept by digests of both sides, so that it is searched for once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import current_digest, digest_of, read_manifest, write_json
from hf_llm.core.secrets import expand_variables
from hf_llm.data.chat.loaders import (
    ConversationSource,
    load_conversations,
    load_labelled_completions,
    load_preferences,
    load_prompts,
)
from hf_llm.data.corpus.corpus_files import read_corpus_texts
from hf_llm.data.corpus.dedup.shingles import batch_stream
from hf_llm.data.corpus.dedup.text_overlap import (
    MIN_WORDS,
    NGRAM,
    IndexedSet,
    TextIndex,
    index_set,
    merge_tables,
    walk_strings,
)
from hf_llm.pipeline.stage_inputs import list_changed_files, record_local_files
from hf_llm.pipeline.stages import OPTIONAL, STAGES

VERSION = 1  # of the method: another one makes what was found before void
BATCH_CHARS = 1 << 20  # of training text that is searched at a time

# The key of a section that names an input instead of this run's own; for all others it is `model`.
NAMING_KEYS = {"tokens": "tokens", "start_from": "start_from", "reward": "reward_model"}

Texts = Mapping[str, list[str]]  # the texts of each document of a benchmark, by its id


@dataclass(frozen=True)
class Overlap:
    """Which documents of a benchmark overlap with what a model was trained on."""

    documents: list[str]
    """The ids of those that do, as far as was searched."""
    all_documents: int
    searched_documents: int
    """How many have a text that could be searched for: of at least 6 words, and not the form of the questions."""
    searched: list[dict[str, Any]]
    """The training data: `name`, `texts` (how many were searched), `unread` (how many were not, by reason)."""
    unknown: list[str]
    """Why it is not known whether the other documents overlap; empty where it is known."""

    @property
    def share(self) -> float | None:
        """The share of the documents that overlap; None where that is unknown."""
        if self.unknown or not self.all_documents:
            return None
        return len(self.documents) / self.all_documents

    def to_json(self) -> dict[str, Any]:
        """Return it as a plain value, with `share`."""
        return {
            "share": self.share,
            "documents": self.documents,
            "all_documents": self.all_documents,
            "searched_documents": self.searched_documents,
            "searched": self.searched,
            "unknown": self.unknown,
        }


def find_overlaps(benchmarks: Mapping[str, Texts], model: Path | str, cache: Path) -> dict[str, Overlap]:
    """Return the overlap of each benchmark, by its name, with everything that the model at `model` was trained on.

    `benchmarks` has the texts of their documents (`Benchmark.read_texts`). The training texts are read once for all of
    them; what was found is kept in the folder `cache`. One process at a time may call this.
    """
    data = list_training_data(model)
    sets = {name: BenchmarkTexts(texts) for name, texts in benchmarks.items()}
    overlapping: dict[str, set[str]] = {name: set() for name in sets}
    searched = []
    unknown = list(data.unknown)
    for source in data.sources:
        try:
            result = _search_once(source, sets, cache)
        except (UserError, OSError) as error:
            unknown.append(f"{source.name} cannot be read: {error}")
            continue
        searched.append({"name": source.name, "texts": result["texts"], "unread": result["unread"]})
        for name, texts in sets.items():
            overlapping[name].update(result["found"][texts.key])

    overlaps = {}
    for name, texts in sets.items():
        reasons = list(unknown)
        if not texts.searched_documents:
            reasons.append(f"no document has a text of {MIN_WORDS} words or more that is its own")
        overlaps[name] = Overlap(
            documents=[document for document in texts.ids if document in overlapping[name]],
            all_documents=len(texts.ids),
            searched_documents=texts.searched_documents,
            searched=searched,
            unknown=reasons,
        )
    return overlaps


class BenchmarkTexts:
    """The texts of one benchmark, indexed when they are first searched for."""

    def __init__(self, documents: Texts):
        self.ids = list(documents)
        self.key = digest_of([VERSION, NGRAM, MIN_WORDS, documents])
        self.documents_of: dict[str, list[int]] = {}
        """The numbers of the documents that each different text stands in."""
        for number, texts in enumerate(documents.values()):
            for text in dict.fromkeys(texts):
                self.documents_of.setdefault(text, []).append(number)
        self.indexed: IndexedSet = index_set(self.documents_of, len(self.ids))

    @property
    def searched_documents(self) -> int:
        """How many documents have a text that is searched for."""
        tables = self.indexed.tables
        texts = np.unique(np.concatenate([tables.runs["item"], tables.whole_texts["item"]]))
        return len(self.list_documents(texts))

    def list_documents(self, texts: Iterable[int]) -> list[str]:
        """List the ids of the documents that hold any of these texts, given by their numbers."""
        documents_of = list(self.documents_of.values())
        numbers = {number for text in texts for number in documents_of[text]}
        return [self.ids[number] for number in sorted(numbers)]


# ---- what a model was trained on


@dataclass
class CorpusTexts:
    """The training split of a corpus."""

    folder: Path
    key: str
    unread: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.folder} (training split)"

    def read(self) -> Iterator[str]:
        return read_corpus_texts(self.folder, "train")


@dataclass
class StageRows:
    """The training rows of a stage of post-training."""

    folder: Path
    stage: str
    section: dict[str, Any]
    """The stage's section, defaults filled in."""
    seed: int
    key: str
    unread: dict[str, int] = field(default_factory=dict)
    """Rows that the stage did not train on either, by reason; known once the rows are read."""

    @property
    def name(self) -> str:
        return f"the rows of {self.folder}"

    def read(self) -> Iterator[str]:
        """Yield all text of each row that the stage was trained on: its own loader holds out what it held out."""
        load = partial(load_conversations, documents=True)
        if self.stage == "kto":
            load = load_labelled_completions
        elif self.stage in ("grpo", "rloo") or self.section.get("rows") == "conversations":
            load = load_prompts
        elif self.stage != "sft":
            load = load_preferences
        known = {each.name for each in fields(ConversationSource)}
        sources = []
        for entry in self.section["data"]:
            sources.append(ConversationSource(**{key: value for key, value in entry.items() if key in known}))
        corpus = self.folder.with_name("corpus")
        share = self.section["evaluation_share"]
        train, _, report = load(sources, share, self.seed, self.section["allow_drop"], corpus=corpus)
        self.unread = dict(Counter(report["dropped"]) + Counter(report["left_out"]))
        for row in train:
            yield "\n".join(walk_strings(row))


@dataclass
class TrainingData:
    """Everything that a model was trained on."""

    sources: list[CorpusTexts | StageRows] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What of it is not here, and why."""


def list_training_data(model: Path | str) -> TrainingData:
    """List what the model at `model` was trained on, by the manifests of its folder and of what that was made from."""
    data = TrainingData()
    _add_folder(Path(model), data, set())
    return data


def _add_folder(folder: Path, data: TrainingData, seen: set[str]) -> None:
    """Add what is read in the stage that made `folder`, and all before it, to `data`."""
    digest = current_digest(folder)
    manifest = read_manifest(folder)
    if manifest is None or digest is None or manifest.get("folder") not in STAGES:
        data.unknown.append(f"{folder} was not made by a run here, so its training text is not known")
        return
    if digest in seen:
        return
    seen.add(digest)

    stage = manifest["folder"]
    if stage == "corpus":
        data.sources.append(CorpusTexts(folder, digest))
        return
    recipe = _read_recipe(folder, manifest, data)
    if recipe is None:
        return
    section = recipe.get(STAGES[stage].section) or {}
    for name, recorded in manifest["inputs"].items():
        if name != "tokenizer":
            _add_input(folder, name, recorded, section, data, seen)
    if stage in OPTIONAL:
        _add_rows(folder, manifest, recipe, data)


def _read_recipe(folder: Path, manifest: dict[str, Any], data: TrainingData) -> dict[str, Any] | None:
    """Return the recipe that a folder was made by, variables expanded; None, and a reason in `data`, without one."""
    recipe = manifest.get("recipe")
    if not recipe:
        data.unknown.append(f"{folder}: its manifest has no recipe, so its training text is not known")
        return None
    try:
        return expand_variables(recipe)
    except KeyError as error:
        _, name = error.args
        data.unknown.append(f"{folder}: its recipe reads the environment variable {name}, which is not set")
        return None


def _add_input(
    folder: Path, name: str, recorded: str, section: dict[str, Any], data: TrainingData, seen: set[str]
) -> None:
    """Add an input of `folder`, recorded by its digest or, without one, by its path or Hub id."""
    named = section.get(NAMING_KEYS.get(name, "model"))
    source = Path(named) if named else folder.parent / name
    present = current_digest(source)
    if present is None and recorded == str(source):
        data.unknown.append(f"{recorded} was not made by a run here, so its training text is not known")
    elif present != recorded:
        state = "is not here any more" if present is None else "has been rebuilt since"
        data.unknown.append(f"{source}, which {folder} was made from, {state}")
    else:
        _add_folder(source, data, seen)


def _add_rows(folder: Path, manifest: dict[str, Any], recipe: dict[str, Any], data: TrainingData) -> None:
    stage = manifest["folder"]
    key = f"{stage}.data"
    settings = {key: recipe[stage]["data"]}
    recorded = {name: entry for name, entry in manifest.get("local files", {}).items() if name.startswith(key)}
    changed = list_changed_files(settings, recorded)
    if changed:
        data.unknown.append(f"the rows of {folder}: {', '.join(changed)} changed since")
        return
    files = recorded or record_local_files(settings)
    section = {"evaluation_share": 0.05, "allow_drop": 0.01, **recipe[stage]}
    seed = recipe.get("seed", 42)
    identity = [
        stage, section["data"], section["evaluation_share"], section["allow_drop"], section.get("rows"), seed,
        {name: entry["digest"] for name, entry in files.items()}, current_digest(folder.with_name("corpus")),
    ]  # fmt: skip
    data.sources.append(StageRows(folder, stage, section, seed, digest_of(identity)))


# ---- the search


def _search_once(
    source: CorpusTexts | StageRows, benchmarks: Mapping[str, BenchmarkTexts], cache: Path
) -> dict[str, Any]:
    """Return what of the benchmarks is found in a source: `texts`, `unread`, and by benchmark key the ids `found`.

    What is in the cache already is not searched for again.
    """
    path = cache / f"{source.key}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        result = {"name": source.name, "texts": 0, "unread": {}, "found": {}}
    missing = {texts.key: texts for texts in benchmarks.values() if texts.key not in result["found"]}
    if missing:
        count = sum(len(texts.ids) for texts in missing.values())
        print_main(f"looking for {count:,} documents of {len(missing)} benchmarks in {source.name}")
        texts_read, documents = search_texts(source.read(), list(missing.values()))
        result["texts"] = texts_read
        result["unread"] = source.unread
        result["found"] |= dict(zip(missing, documents, strict=True))
        cache.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    return result


def search_texts(texts: Iterable[str], benchmarks: list[BenchmarkTexts]) -> tuple[int, list[list[str]]]:
    """Search texts for the documents of benchmarks; return the number of texts, and of each benchmark the ids found."""
    # In the tables of one benchmark, items are numbered from 0; number them over all.
    starts = [0]
    tables = []
    for benchmark in benchmarks:
        own = benchmark.indexed.tables
        runs = own.runs.copy()
        whole_texts = own.whole_texts.copy()
        runs["item"] += starts[-1]
        whole_texts["item"] += starts[-1]
        tables.append(type(own)(runs, whole_texts))
        starts.append(starts[-1] + len(benchmark.documents_of))
    index = TextIndex(merge_tables(tables))

    is_found = np.zeros(starts[-1], bool)
    count = 0
    for batch in batch_stream(texts, BATCH_CHARS, str):
        count += len(batch)
        for item, _ in index.find_items(batch, is_found):
            is_found[item] = True

    documents = []
    for benchmark, start in zip(benchmarks, starts[:-1], strict=True):
        own = is_found[start : start + len(benchmark.documents_of)]
        documents.append(benchmark.list_documents(np.flatnonzero(own)))
    return count, documents
