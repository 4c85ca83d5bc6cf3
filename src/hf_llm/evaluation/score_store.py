"""What is measured of each model, kept in `evaluation/measured/`, so that only what is new is measured.

A measurement is kept under the model, its name and a digest of all that its numbers depend on: the model, the settings
and the files. Where one of them changes, it is measured again beside the old one; where it changes back, it is there.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_llm.core.console import print_main
from hf_llm.core.manifest import digest_of, write_json
from hf_llm.evaluation.evaluated_model import EvaluatedModel

MEASURED = "measured"  # a folder in the evaluation's folder, which is not in its digest
RESULT = "result.json"
DIGEST_LENGTH = 12  # characters in the name of a folder

Result = dict[str, Any]


class ScoreStore:
    """The measurements in the evaluation folder `root` of a run."""

    def __init__(self, root: Path):
        self.root = root / MEASURED

    def folder(self, model: EvaluatedModel, name: str, identity: dict[str, Any]) -> Path:
        """Return the folder of a measurement of a model."""
        digest = digest_of([model.identity, identity])[:DIGEST_LENGTH]
        return self.root / _as_file_name(model.name) / f"{_as_file_name(name)}-{digest}"

    def read(self, model: EvaluatedModel, name: str, identity: dict[str, Any]) -> Result | None:
        """Return the result of a measurement; None where it is not finished."""
        try:
            return json.loads((self.folder(model, name, identity) / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write(self, model: EvaluatedModel, name: str, identity: dict[str, Any], result: Result) -> None:
        """Write the result of a measurement, which makes it finished."""
        folder = self.folder(model, name, identity)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT, result)

    def measure(
        self, model: EvaluatedModel, name: str, identity: dict[str, Any], function: Callable[[], Result]
    ) -> Result:
        """Return the result of a measurement, after calling `function` where there is none."""
        known = self.read(model, name, identity)
        if known is not None:
            return known
        print_main(f"{model.name}: {name}")
        start = time.perf_counter()
        result = function()
        result["seconds"] = round(time.perf_counter() - start, 3)
        self.write(model, name, identity, result)
        return result


def _as_file_name(name: str) -> str:
    """Return a name without what folders cannot have: the names of tasks hold slashes and spaces."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
