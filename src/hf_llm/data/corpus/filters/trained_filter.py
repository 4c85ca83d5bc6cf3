"""What the filters that are trained on the user's texts share: settings, held-out texts, the file of a model."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import xxhash

from hf_llm.core.atomic_io import atomic_path, write_text
from hf_llm.data.corpus.filters.base import Filter

MIN_HELD_OUT_TEXTS = 20  # of each kind, before a measurement means anything
HELD_OUT_FRACTION = 5  # one text in so many is held out


@dataclass
class TrainedFilterSettings:
    """The settings of a filter whose model is trained on example texts before any document is read."""

    def example_paths(self) -> list[str]:
        """Return the files, folders or glob patterns of the example texts, one for each kind of text."""
        raise NotImplementedError

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that the model depends on."""
        return asdict(self)

    def train_model(self, examples: list[Iterable[str]], model: Path) -> dict:
        """Train on the texts at each of `example_paths` and write the model. Returns and writes what was measured."""
        raise NotImplementedError

    def make_filter(self, model: Path) -> Filter:
        """Build the filter that judges by these settings and the model that `train_model` wrote."""
        raise NotImplementedError


def is_held_out(text: str) -> bool:
    """Whether a text measures and is not trained on: a fifth of all are, the same ones in every run."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8")) % HELD_OUT_FRACTION == 0


def write_model(path: Path, numbers: numpy.ndarray, report: dict) -> None:
    """Write a model's numbers to `path` (.npy), then the report beside it (.json), which stands for the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        numpy.save(file, numbers)
    write_text(path.with_suffix(".json"), json.dumps(report, indent=2))
