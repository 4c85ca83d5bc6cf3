"""The `corpus` section of a recipe: its keys, their types, defaults and checks.

Settings only. What reads, filters and deduplicates documents is elsewhere and imports from here; this module loads
neither datatrove nor torch, so that every stage can parse the section.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

from hf_llm.data.corpus import python_docs
from hf_llm.data.corpus.dedup.minhash import NearDuplicates
from hf_llm.data.corpus.dedup.substring import RepeatedPassages
from hf_llm.data.corpus.filters.adult import Adult
from hf_llm.data.corpus.filters.base import FilterSettings
from hf_llm.data.corpus.filters.c4 import C4
from hf_llm.data.corpus.filters.classifier import Classifier
from hf_llm.data.corpus.filters.decontamination import Decontaminate
from hf_llm.data.corpus.filters.fineweb import FineWeb
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality
from hf_llm.data.corpus.filters.gopher_repetition import GopherRepetition
from hf_llm.data.corpus.filters.language import Language
from hf_llm.data.corpus.filters.perplexity import Perplexity
from hf_llm.data.corpus.filters.spam import Spam
from hf_llm.data.corpus.filters.trained_filter import TrainedFilterSettings
from hf_llm.data.corpus.pii import Redaction
from hf_llm.data.corpus.splits import Split
from hf_llm.data.files.download import Crawl
from hf_llm.data.files.file_formats import Format, check_origins
from hf_llm.data.tokens.curriculum import Curriculum


@dataclass
class Rules:
    """`corpus.rules`: the filters of prose, in the order in which they run.

    This is the table of filters. A field's name is the filter's name in recipes and in the ledger; its type is the
    filter's settings, whose `make_filter` builds it. A filter that the recipe does not name does not run;
    `gopher_quality: {}` runs one with its published settings. A source with `rules` uses those instead.
    """

    language: Language | None = None
    """Keep documents in these languages: `{keep: [en]}`."""

    gopher_repetition: GopherRepetition | None = None
    """Drop documents that repeat lines, paragraphs or n-grams of words."""

    gopher_quality: GopherQuality | None = None
    """Drop documents whose words, symbols or lines are not those of prose."""

    c4: C4 | None = None
    """Cut out lines that are not sentences, and drop pages with few sentences left."""

    fineweb: FineWeb | None = None
    """Drop documents whose lines are those of lists and menus."""

    spam: Spam | None = None
    """Drop advertisements, link farms, notices and placeholder text."""

    adult: Adult | None = None
    """Drop pornography and abuse."""

    perplexity: Perplexity | None = None
    """Drop texts that a model of your own good texts finds improbable."""

    classifier: Classifier | None = None
    """Drop texts that are more like your bad ones than like your good ones."""

    pii: Redaction | None = None
    """Replace e-mail addresses, phone numbers and the like. Drops nothing; runs last."""

    def enabled_filters(self) -> Iterator[tuple[str, FilterSettings | TrainedFilterSettings | Redaction]]:
        """Yield the name and the settings of every filter that is switched on, in the order in which they run."""
        for entry in fields(self):
            settings = getattr(self, entry.name)
            if settings is not None:
                yield entry.name, settings


@dataclass
class Source:
    """One entry of `corpus.sources`: a licence, and one of `path`, `hub`, `git`, `crawl`, `installed`, `synthetic`."""

    license: str
    """SPDX identifier of the text's licence; `unknown` if you do not know."""

    name: str | None = None
    """What the source is called in the ledger and in `shares`; several sources may have one name."""

    path: str | None = None
    """A file, a folder (with all that is below it) or a glob pattern."""

    hub: str | None = None
    """The id of a data set on the Hub."""

    git: str | None = None
    """A repository: its folder or clone URL."""

    crawl: Crawl | None = None
    """Segments of Common Crawl."""

    installed: list[str] | None = None
    """Documentation of this Python: any of language_reference, standard_library, packages."""

    synthetic: Literal["small_world"] | None = None
    """Text that a grammar of ours writes: `small_world`, people and villages whose facts a small model can learn."""

    format: Format | None = None
    """How the files are read, where their names do not tell."""

    rules: Rules | None = None
    """The filters of this source, in the place of `corpus.rules`."""

    subset: str | None = None
    """The subset (configuration) of the Hub data set."""

    split: str = "train"
    """The split of the Hub data set."""

    skip: int = 0
    """How many rows of the Hub data set to skip before the first one that is read."""

    take: int | None = None
    """How many rows of the Hub data set to read; all if left out."""

    streaming: bool = True
    """Read the Hub data set while it is downloaded, without a copy on disk."""

    text: str = "text"
    """The column that holds the text."""

    table: str | None = None
    """The table to read of an SQLite database that has several."""

    def __post_init__(self) -> None:
        origins = [self.path, self.hub, self.git, self.crawl, self.installed, self.synthetic]
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("a source has exactly one of `path`, `hub`, `git`, `crawl`, `installed` and `synthetic`")
        check_origins({"path": self.path, "hub": self.hub, "git": self.git, "name": self.name, "text": self.text})
        if not self.license.strip():
            raise ValueError("license is empty; name the text's licence, or write `unknown`")

        unknown = [item for item in self.installed or () if item not in python_docs.ITEMS]
        if unknown or self.installed == []:
            raise ValueError(f"installed: {unknown} is not one of {', '.join(python_docs.ITEMS)}")

        hub_settings = (self.subset, self.split, self.skip, self.take, self.streaming)
        if not self.hub and hub_settings != (None, "train", 0, None, True):
            raise ValueError("`subset`, `split`, `skip`, `take` and `streaming` belong to `hub`")
        if self.format and not self.path:
            raise ValueError("`format` belongs to `path`")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out to read all rows")
        if self.skip < 0:
            raise ValueError(f"skip is {self.skip}; it cannot be negative")


@dataclass
class Deduplicate:
    """`corpus.deduplicate`. Exact copies are always dropped."""

    near: NearDuplicates | None = field(default_factory=NearDuplicates)
    """Drop documents that are nearly equal to another; `null` keeps them."""

    substring: RepeatedPassages | None = None
    """Cut passages that stand in several documents out of all but the first."""


@dataclass
class Cluster:
    """`corpus.cluster`: what each task gets, and how to reach the cluster."""

    workers: int = -1
    """How many tasks run at a time; -1 is one per core of this machine, and no limit on Ray or Slurm."""

    memory_gb: float = 2.0
    """Memory to reserve for a task on Ray or Slurm, in GB."""

    partition: str | None = None
    """The partition of Slurm."""

    time: str = "12:00:00"
    """The time limit of a Slurm task."""

    qos: str | None = None
    """The quality of service of Slurm."""

    env_command: str | None = None
    """A command to run first in a Slurm task, such as: source .venv/bin/activate"""

    srun: bool = True
    """Whether a Slurm task is started by srun."""

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers is {self.workers}; write -1 or how many tasks may run at a time")
        if self.memory_gb <= 0:
            raise ValueError(f"memory_gb is {self.memory_gb}; it has to be positive")


@dataclass
class Corpus:
    """The `corpus` section."""

    sources: list[Source]
    """Where text comes from, in order of precedence: of equal documents the one from the earliest source is kept."""

    min_chars: int = 100
    """Shorter documents are dropped."""

    max_chars: int = 100_000
    """Longer rows are dropped, longer files are cut."""

    rules: Rules = field(default_factory=Rules)
    """The filters of prose. Code is not filtered, unless its source has `rules`."""

    decontaminate: Decontaminate | None = None
    """Drop documents that hold text of these evaluation sets."""

    deduplicate: Deduplicate = field(default_factory=Deduplicate)
    """Which duplicates are dropped, beside exact copies."""

    split: Split = field(default_factory=Split)
    """The shares of train, validation and test."""

    max_tokens: int | None = None
    """How many tokens to train on, repetitions counted; all if left out."""

    shares: dict[str, float] | None = None
    """The shares of the train tokens, by source name."""

    max_epochs: float = 4.0
    """How often a small source may be repeated to reach its share."""

    curriculum: Curriculum | None = None
    """In which order the train tokens are shown."""

    executor: Literal["local", "ray", "slurm"] = "local"
    """Where the tasks run: processes of this machine, Ray or Slurm."""

    cluster: Cluster = field(default_factory=Cluster)
    """What each task gets, and how to reach the cluster."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; name at least one")
        if not 0 <= self.min_chars < self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) has to be less than max_chars ({self.max_chars})")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; leave it out to train on everything")
        if self.shares and self.curriculum and self.curriculum.by == "mix":
            raise ValueError("shares stand in the stages of a curriculum by mix; leave corpus.shares out")
        if self.executor == "slurm" and not self.cluster.partition:
            raise ValueError("executor is slurm: name its partition, cluster: {partition: ...}")

    def select_rules(self, source: Source, is_code: bool = False) -> Rules:
        """Return the filters of a source: its own, else the corpus's.

        Code has none, since they are made for prose: that of `format: code`, or, where `is_code`, of a `git` or `path`
        source whose files are a program.
        """
        if source.rules is not None:
            return source.rules
        if source.format == "code" or is_code:
            return Rules()
        return self.rules
