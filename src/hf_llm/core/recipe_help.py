"""Describe the keys of a recipe that a stage reads, for `--help` and for docs/reference.md."""

import dataclasses
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_llm.core.help_format import fill_words, wrap_text
from hf_llm.core.recipe import Settings
from hf_llm.core.settings.dataclass_fields import describe_default, describe_type, field_docs, field_types


@dataclass(frozen=True)
class KeyDoc:
    """One key of a recipe, or a section that holds further keys."""

    key: str
    """Its full path, as `pretrain.tokens_per_step`; `corpus.sources[]` is an item of a list."""
    kind: str
    """Its type; `section`, `list of sections`, or `keys of <class>` where it holds keys."""
    default: str
    """Its default as written in Python; empty for sections, `(required)` where there is none."""
    text: str
    """The docstring under the field."""


def help_text(cls: type, width: int) -> str:
    """Return what `--help` of a stage prints, in lines of `width` columns: its module's docstring, and every key it
    reads with type and default."""
    module_docstring = sys.modules[cls.__module__].__doc__ or ""
    lines = [wrap_text(module_docstring, width), "", "Keys (override any as --section.key=value):", ""]
    for entry in describe_keys(cls):
        if entry.kind == "section":
            line = f"  {entry.key}:"
        elif entry.kind == "list of sections":
            line = f"  {entry.key}: a list of:"
        elif entry.kind.startswith("keys of "):
            line = f"  {entry.key}.*: every key of {entry.kind.removeprefix('keys of ')}"
        else:
            default = f" {entry.default}" if entry.default == "(required)" else f" = {entry.default}"
            line = f"  {entry.key}: {entry.kind}{default}"
        if entry.text:
            line += f"  # {entry.text}"
        lines.append(fill_words(line.strip(), width, indent="  ", further_indent=" " * 6))
    return "\n".join(lines)


def describe_keys(cls: type, prefix: str = "") -> Iterator[KeyDoc]:
    """Yield every key that the dataclass `cls` reads, sections before their keys. What all stages share comes last."""
    annotations = field_types(cls)
    texts = field_docs(cls)
    own_keys_first = sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)
    for field in own_keys_first:
        annotation = annotations[field.name]
        key = prefix + field.name
        text = texts.get(field.name, "")

        section = _find_dataclass(annotation)
        settings = _find_settings(annotation)
        if settings is not None:
            yield KeyDoc(key, f"keys of {settings}", "", text)
        elif section is not None:
            is_list = _is_list_of(annotation, section)
            yield KeyDoc(key, "list of sections" if is_list else "section", "", text)
            yield from describe_keys(section, f"{key}[]." if is_list else f"{key}.")
        else:
            yield KeyDoc(key, describe_type(annotation), describe_default(field), text)


def _find_dataclass(annotation: Any) -> type | None:
    """Find the dataclass in an annotation: itself, an option of a union, or the item of a list."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return annotation
    if typing.get_origin(annotation) is Settings:
        return None
    for option in typing.get_args(annotation):
        inner = _find_dataclass(option)
        if inner is not None:
            return inner
    return None


def _find_settings(annotation: Any) -> str | None:
    """Find the class in an annotation `Settings[...]`, which may be an option of a union: its library and its name."""
    for option in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(option) is Settings:
            (target,) = typing.get_args(option)
            if isinstance(target, type):
                return f"{target.__module__.split('.')[0]}.{target.__name__}"
            path = target if isinstance(target, str) else target({})
            return f"{path.split('.')[0]}.{path.split('.')[-1]}"
    return None


def _is_list_of(annotation: Any, section: type) -> bool:
    """Return whether an annotation is a list of sections, or a union with one. Its items may also be plain values."""
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is list:
        options = (annotation,)
    for option in options:
        if typing.get_origin(option) is list:
            (item,) = typing.get_args(option)
            if section in (item, *typing.get_args(item)):
                return True
    return False
