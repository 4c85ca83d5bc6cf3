"""The filters of a recipe's `rules`, as steps of a datatrove pipeline; and the training of those that have a model.

The filters themselves (`filters/`, `pii.py`) know nothing of datatrove. Two adapters here make steps of them, with the
names and statistics of which the ledger is made.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters.base import BaseFormatter

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.config import Rules, Source
from hf_llm.data.corpus.dropped import DETAIL_KEY
from hf_llm.data.corpus.filters.base import Filter
from hf_llm.data.corpus.filters.trained_filter import TrainedFilterSettings
from hf_llm.data.corpus.normalize import normalize_text
from hf_llm.data.corpus.pii import Redaction, redact_text
from hf_llm.data.corpus.reader_step import IS_CODE_KEY, SourceReader
from hf_llm.data.corpus.sources import ReadTask, list_read_tasks

MAX_EXAMPLE_CHARS = 100_000  # of a text to train on; longer ones are cut or dropped as those of sources are


class FilterStep(BaseFilter):
    """One of our filters as a step: documents in, those that it keeps out. With `spares_code` it keeps all code."""

    def __init__(self, document_filter: Filter, spares_code: bool = False):
        self.name = document_filter.name
        super().__init__()
        self.document_filter = document_filter
        self.spares_code = spares_code

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self.spares_code and doc.metadata[IS_CODE_KEY]:
            return True
        verdict = self.document_filter.filter(doc)
        for kind, count in verdict.changes.items():
            self.stat_update(kind, value=count)
        if verdict.is_kept:
            return True

        if verdict.detail:
            doc.metadata[DETAIL_KEY] = verdict.detail
        return False, verdict.reason


class RedactionStep(BaseFormatter):
    """Redaction as a step: documents in, the same documents out, redacted. Counts go to `redacted_<kind>`.

    With `spares_code` code is not redacted.
    """

    name = "pii"

    def __init__(self, settings: Redaction, spares_code: bool = False):
        super().__init__()
        self.settings = settings
        self.spares_code = spares_code

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            is_spared = self.spares_code and document.metadata[IS_CODE_KEY]
            if not is_spared:
                document.text = self.format(document.text)
            yield document

    def format(self, text: str) -> str:
        text, counts = redact_text(text, self.settings)
        for kind, count in counts.items():
            self.stat_update(f"redacted_{kind}", value=count)
        return text


def make_filter_steps(rules: Rules, models: Path, spares_code: bool = False) -> list[PipelineStep]:
    """Make the steps that filter normalized documents, in order. `models` is the folder of `train_filters`.

    With `spares_code` they keep documents of code as they are, since the filters are made for prose.
    """
    steps = []
    for name, settings in rules.enabled_filters():
        if isinstance(settings, Redaction):
            steps.append(RedactionStep(settings, spares_code))
        elif isinstance(settings, TrainedFilterSettings):
            model = _locate_model(name, settings, models)
            steps.append(FilterStep(settings.make_filter(model), spares_code))
        else:
            steps.append(FilterStep(settings.make_filter(), spares_code))
    return steps


def train_filters(rules: Rules, models: Path) -> dict[str, dict]:
    """Train the filters that have a model, unless it is in the folder `models` already.

    Returns what was measured on held-out texts, by filter. Raises UserError where the example texts are missing, too
    few, or cannot be distinguished.
    """
    reports = {}
    for name, settings in rules.enabled_filters():
        if not isinstance(settings, TrainedFilterSettings):
            continue
        model = _locate_model(name, settings, models)
        report = model.with_suffix(".json")
        if report.exists():
            reports[name] = json.loads(report.read_text(encoding="utf-8"))
        else:
            examples: list[Iterable[str]] = [_read_examples(path) for path in settings.example_paths()]
            reports[name] = settings.train_model(examples, model)
    return reports


def _locate_model(name: str, settings: TrainedFilterSettings, models: Path) -> Path:
    """Return the file of a filter's model, whose name is a digest of its settings and of the files it is trained on."""
    file_states = [task.state for path in settings.example_paths() for task in _list_example_tasks(path)]
    state = [name, settings.training_settings(), file_states]
    return models / f"{name}-{xxhash.xxh3_64_hexdigest(json.dumps(state).encode())}.npy"


def _list_example_tasks(path: str) -> list[ReadTask]:
    try:
        return list_read_tasks([Source(path=path, license="unknown")])
    except UserError as error:
        raise UserError(f"rules, example texts: {error}") from None


def _read_examples(path: str) -> Iterator[str]:
    """Yield the texts at a path, each once, normalized as the documents that are filtered are."""
    tasks = _list_example_tasks(path)
    reader = SourceReader(tasks, MAX_EXAMPLE_CHARS)
    seen = set()
    for rank in range(len(tasks)):
        for document in reader.run(None, rank, len(tasks)):
            text = normalize_text(document.text)
            key = xxhash.xxh3_64_intdigest(text.encode("utf-8"))
            if text and key not in seen:
                seen.add(key)
                yield text
    reader.faults.check_dropped_share(path)
