"""Text that UTF-8 can write. JSON may hold halves of surrogate pairs, and so do names of files that are not UTF-8."""

from typing import Any


def replace_lone_surrogates(value: Any) -> Any:
    """`value`, a string or lists and dictionaries of them, with U+FFFD for each half of a surrogate pair that stands
    alone."""
    if isinstance(value, str):
        return value if _is_whole(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {replace_lone_surrogates(key): replace_lone_surrogates(item) for key, item in value.items()}
    return [replace_lone_surrogates(item) for item in value] if isinstance(value, list) else value


def _is_whole(text: str) -> bool:
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
