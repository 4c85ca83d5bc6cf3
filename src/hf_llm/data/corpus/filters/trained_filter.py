"""What the rules that are learnt share: which texts are held out, and how a model lies on the disk."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy
import xxhash

from hf_llm.core.atomic_io import whole, write_text

FEWEST = 20  # texts that have to be held out of each kind before a measurement means anything


def held_out(text: str) -> bool:
    """Whether a text serves to measure, not to learn: a fifth of all do, the same ones in every run."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8")) % 5 == 0


@dataclass
class Learnt:
    """A model: its numbers, and a report of what was measured."""

    numbers: numpy.ndarray
    report: dict

    def write(self, path: Path) -> None:
        """Write `path` (.npy) and the report beside it (.json), which stands for the whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary, open(temporary, "wb") as file:
            numpy.save(file, self.numbers)
        write_text(path.with_suffix(".json"), json.dumps(self.report, indent=2))
