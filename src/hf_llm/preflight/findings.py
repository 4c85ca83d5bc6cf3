"""What a check of a recipe has found: problems, which stop the run, and notes, which do not."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hf_llm.core.errors import UserError
from hf_llm.pipeline.stages import RECIPE_KEYS

T = TypeVar("T")


@dataclass
class Findings:
    """The problems and notes of one check, each once and in the order in which they were found."""

    problems: list[str] = field(default_factory=list)
    """What has to be corrected before anything runs, as `key: what is wrong; the remedy`."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing before the run, as rows that will be dropped, or what could not be checked."""
    run_time: str = ""
    """How long the trainings will take, in a line; empty where that was not asked for."""

    def add_problem(self, key: str, message: str) -> None:
        """Add a problem of the recipe key `key`, whose name is put before a message that does not begin with it."""
        text = message if _names_key(message, key) else f"{key}: {message}"
        if text not in self.problems:
            self.problems.append(text)

    def add_note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def attempt(self, key: str, check: Callable[..., T], *arguments: Any, **keywords: Any) -> T | None:
        """Return what `check` returns; where it raises a UserError, add that as a problem of `key` and return None."""
        try:
            return check(*arguments, **keywords)
        except UserError as error:
            self.add_problem(key, str(error))
            return None

    def has_problem(self, section: str) -> bool:
        """Whether a problem has been found in a section, or in a key below it."""
        return any(problem.startswith((f"{section}:", f"{section}.", f"{section}[")) for problem in self.problems)


def _names_key(message: str, key: str) -> bool:
    """Whether a message begins with the key itself, or with another key of a recipe."""
    section = re.match(r"(\w+)[.:\[]", message)
    return message.startswith(f"{key}:") or (section is not None and section[1] in RECIPE_KEYS)
