"""Keep secrets out of pages, model cards and results, which are made to be shared."""

import os
import re
from typing import Any

from hf_llm.core.secrets import MIN_SECRET_LENGTH, SECRET_VALUE, hide_secrets

HIDDEN = "<hidden>"
SECRET_KEY = re.compile(
    r"((^|[._])(hub|hf|api|auth|access|bearer)_?(token|key)|secret|password|credential)s?$", re.IGNORECASE
)
SECRET_VARIABLE = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD)(_|$)", re.IGNORECASE)


def redact_secrets(value: Any) -> Any:
    """Return `value` (nested plain data) with its secrets replaced by `HIDDEN`.

    One that came from a `${NAME}` of the recipe is shown as that. Any other is recognised by its key, by its shape, or
    because it is the value of an environment variable with a name like TOKEN or PASSWORD.
    """
    value = hide_secrets(value)
    secrets = [
        text for name, text in os.environ.items() if SECRET_VARIABLE.search(name) and len(text) >= MIN_SECRET_LENGTH
    ]
    return _redact_value(value, secrets)


def _redact_value(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        redacted = {}
        for key, item in value.items():
            is_secret = item and SECRET_KEY.search(str(key))
            redacted[_redact_value(key, secrets)] = HIDDEN if is_secret else _redact_value(item, secrets)
        return redacted
    if isinstance(value, list | tuple):
        return [_redact_value(item, secrets) for item in value]
    if not isinstance(value, str):
        return value

    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    return SECRET_VALUE.sub(HIDDEN, value)
