"""Make text that UTF-8 can encode: JSON, and names of files that are not UTF-8, may hold halves of surrogate pairs."""

from typing import Any


def replace_lone_surrogates(value: Any) -> Any:
    """Replace each lone half of a surrogate pair in `value` by U+FFFD.

    `value` is a string, or a list or dictionary of such values; other values are returned as they are.
    """
    if isinstance(value, str):
        if _can_encode(value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {replace_lone_surrogates(key): replace_lone_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_lone_surrogates(item) for item in value]
    return value


def _can_encode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
