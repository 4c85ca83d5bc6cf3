"""`rules` of a recipe, turned into the steps that judge and clean documents.

Each rule is a file of `filters/`. A rule that is left out does not judge; `gopher_quality: {}` switches one on as it
was published. Two of them are learnt from the user's own texts, once, before the documents are read.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from datatrove.pipeline.base import PipelineStep

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.filters.adult import Adult, AdultFilter
from hf_llm.data.corpus.filters.c4 import C4, C4Filter
from hf_llm.data.corpus.filters.classifier import Classifier, ClassifierFilter, train_classifier
from hf_llm.data.corpus.filters.fineweb import FineWeb, FineWebFilter
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality, GopherQualityFilter
from hf_llm.data.corpus.filters.gopher_repetition import GopherRepetition, GopherRepetitionFilter
from hf_llm.data.corpus.filters.language import Language, LanguageFilter
from hf_llm.data.corpus.filters.perplexity import Perplexity, PerplexityFilter, train_perplexity
from hf_llm.data.corpus.filters.spam import Spam, SpamFilter
from hf_llm.data.corpus.normalize import normalised
from hf_llm.data.corpus.pii import Redact, Redaction

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Part

LONGEST_EXAMPLE = 100_000  # characters of a text to learn from; longer ones are cut or left out as sources are


@dataclass
class Rules:
    """`corpus.rules`, for prose of every source, and `rules` of a source in their place. In the order of running."""

    language: Language | None = field(default=None, metadata={"help": "{keep: [en]}"})
    gopher_repetition: GopherRepetition | None = None
    gopher_quality: GopherQuality | None = None
    c4: C4 | None = None
    fineweb: FineWeb | None = None
    spam: Spam | None = None
    adult: Adult | None = None
    perplexity: Perplexity | None = None
    classifier: Classifier | None = None
    pii: Redaction | None = field(default=None, metadata={"help": "replace e-mail addresses, phone numbers, ..."})

    def prepare(self, folder: Path) -> dict[str, dict]:
        """Learn what has to be learnt into `folder`, unless it lies there already. Returns what was measured, by rule.

        Raises UserError where the texts to learn from are missing, too few, or teach nothing.
        """
        reports = {}
        for name, train in (("perplexity", self._train_perplexity), ("classifier", self._train_classifier)):
            if getattr(self, name) is not None:
                report = self._model(name, folder).with_suffix(".json")
                reports[name] = _read(report) if report.exists() else train(self._model(name, folder))
        return reports

    def steps(self, folder: Path) -> list[PipelineStep]:
        """The steps for documents that are normalised, in order. `folder` is the one that was prepared."""
        make: dict[str, Callable[..., PipelineStep]] = {
            "language": LanguageFilter,
            "gopher_repetition": GopherRepetitionFilter,
            "gopher_quality": GopherQualityFilter,
            "c4": C4Filter,
            "fineweb": FineWebFilter,
            "spam": SpamFilter,
            "adult": AdultFilter,
            "perplexity": lambda settings: PerplexityFilter(self._model("perplexity", folder)),
            "classifier": lambda settings: ClassifierFilter(settings, self._model("classifier", folder)),
            "pii": Redact,
        }
        chosen = {name: getattr(self, name) for name in make}
        return [make[name](settings) for name, settings in chosen.items() if settings is not None]

    def state(self) -> str:
        """A digest of the settings and of the files that are learnt from: what a result of these rules depends on."""
        files = [part.state for path in self._examples() for part in _parts(path)]
        return xxhash.xxh3_128_hexdigest(json.dumps([asdict(self), files]).encode())

    def _examples(self) -> list[str]:
        paths = [self.perplexity.good] if self.perplexity else []
        return paths + ([self.classifier.good, self.classifier.bad] if self.classifier else [])

    def _model(self, name: str, folder: Path) -> Path:
        settings = getattr(self, name)
        paths = [settings.good, settings.bad] if name == "classifier" else [settings.good]
        # How sure one wants to be is asked when a document is judged, and needs no new model.
        learnt = {key: value for key, value in asdict(settings).items() if key != "min_probability"}
        state = [name, learnt, [part.state for path in paths for part in _parts(path)]]
        return folder / f"{name}-{xxhash.xxh3_64_hexdigest(json.dumps(state).encode())}.npy"

    def _train_perplexity(self, model: Path) -> dict:
        return train_perplexity(self.perplexity, _texts(self.perplexity.good), model)

    def _train_classifier(self, model: Path) -> dict:
        return train_classifier(self.classifier, _texts(self.classifier.good), _texts(self.classifier.bad), model)


def _parts(path: str) -> "list[Part]":
    from hf_llm.data.corpus.sources import Source, parts_of  # which has rules itself

    try:
        return parts_of([Source(path=path, license="unknown")])
    except UserError as error:
        raise UserError(f"rules, texts to learn from: {error}") from None


def _texts(path: str) -> Iterator[str]:
    """The texts at a path, each once, normalised as those to be judged are."""
    from hf_llm.data.corpus.reader_step import Read

    parts = _parts(path)
    read, seen = Read(parts, LONGEST_EXAMPLE), set()
    for rank in range(len(parts)):
        for document in read.run(None, rank, len(parts)):
            text = normalised(document.text)
            key = xxhash.xxh3_64_intdigest(text.encode("utf-8"))
            if text and key not in seen:
                seen.add(key)
                yield text
    read.faults.check(path)


def _read(report: Path) -> dict:
    return json.loads(report.read_text(encoding="utf-8"))
