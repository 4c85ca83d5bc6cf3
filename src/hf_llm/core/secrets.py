"""Keep the values that `${NAME}` in a recipe stands for out of every file that a run writes.

A recipe is written as it was given, with `${NAME}` in it (`restore_variables`). Where a value went elsewhere, into an
address or an error, it is replaced by `${NAME}` if it looks like a secret (`hide_secrets`).
"""

import os
import re
from pathlib import Path
from typing import Any

VARIABLE = re.compile(r"\$\{(\w+)\}")

# Shorter values are not searched for: they would match in many places.
MIN_SECRET_LENGTH = 8

SECRET_VARIABLE = re.compile(
    r"(TOKEN|KEY|SECRET|PASS(WORD|WD|PHRASE)?|PWD|CRED(ENTIAL)?S?|AUTH|PAT)S?(_|$)", re.IGNORECASE
)
# Tokens of Hugging Face, OpenAI and the like, GitHub and AWS.
SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"
)
# A value of this length without spaces, with letters and digits, is a key whatever its variable is called.
KEY_LENGTH = 16

# The value of a secret that this process has read from a variable -> `${NAME}`.
_secrets: dict[str, str] = {}


def expand_variables(value: Any, where: str = "") -> Any:
    """Replace `${NAME}` in every string of a recipe's tree by the environment variable, and remember the secrets.

    `where` is the path of `value`. Raises KeyError with the path and the name of a variable that is not set.
    """
    if isinstance(value, dict):
        prefix = f"{where}." if where else ""
        return {key: expand_variables(item, f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def read_variable(match: re.Match) -> str:
        name = match[1]
        if name not in os.environ:
            raise KeyError(where, name)
        if _looks_secret(name, os.environ[name]):
            _secrets[os.environ[name]] = match[0]
        return os.environ[name]

    return VARIABLE.sub(read_variable, value)


def restore_variables(value: Any, written: Any) -> Any:
    """Return `value`, a recipe's tree or a part of it, with `${NAME}` wherever `written`, the recipe's text, has it."""
    if isinstance(written, str):
        return written if VARIABLE.search(written) else value
    if isinstance(value, dict) and isinstance(written, dict):
        return {key: restore_variables(item, written.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        return [restore_variables(item, other) for item, other in zip(value, written, strict=True)]
    return value


def hide_secrets(value: Any) -> Any:
    """Return `value` (nested plain data) with `${NAME}` in the place of every secret that came from a recipe."""
    if not _secrets:
        return value
    if isinstance(value, dict):
        return {hide_secrets(key): hide_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    for secret, name in _secrets.items():
        value = value.replace(secret, name)
    return value


def _looks_secret(name: str, value: str) -> bool:
    """Whether the value of a variable is a secret, by the variable's name or by its own looks. A path never is one."""
    if len(value) < MIN_SECRET_LENGTH or value.startswith(("/", "~", ".")) or Path(value).exists():
        return False
    if SECRET_VARIABLE.search(name) or SECRET_VALUE.search(value):
        return True
    has_letters = re.search(r"[A-Za-z]", value)
    has_digits = re.search(r"\d", value)
    is_one_word = re.fullmatch(r"[\w+=-]+", value)
    return bool(len(value) >= KEY_LENGTH and has_letters and has_digits and is_one_word)
