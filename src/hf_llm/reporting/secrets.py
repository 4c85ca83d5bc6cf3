"""Keep secrets out of what is made to be shared."""

import os
import re
from typing import Any

HIDDEN = "<hidden>"
_KEY = re.compile(
    r"((^|[._])(hub|hf|api|auth|access|bearer)_?(token|key)|secret|password|credential)s?$", re.IGNORECASE
)
_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")
_VARIABLE = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD)(_|$)", re.IGNORECASE)


def redact(value: Any) -> Any:
    """`value` (plain, nested) without secrets: by the key they stand under, by their shape, and by equality with an
    environment variable whose name says that it is one."""
    secrets = [text for name, text in os.environ.items() if _VARIABLE.search(name) and len(text) >= 8]
    return _redact(value, secrets)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _redact(key, secrets): HIDDEN if item and _KEY.search(str(key)) else _redact(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    return _VALUE.sub(HIDDEN, value)
