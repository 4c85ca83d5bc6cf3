"""Know the keys of the libraries' settings classes (`trl.SFTConfig`, `peft.LoraConfig` ...) without importing them.

To import TRL takes ten times as long as everything else that parses a recipe. So the keys of these classes, with their
types, come with the package in `library_settings.json`, which `make reference` makes from the classes themselves. What
stands there counts only for the library versions, and for the very source files, that it was made from. With others the
class is imported: that takes longer and is right.
"""

import collections.abc
import dataclasses
import enum
import hashlib
import importlib
import importlib.util
import json
import typing
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import AfterValidator

from hf_llm.core.settings.dataclass_fields import UNIONS, field_types

SHIPPED_FILE = Path(__file__).with_suffix(".json")
# What the settings classes are defined by. TrainingArguments also looks at the version of torch.
LIBRARIES = ("huggingface_hub", "peft", "torch", "transformers", "trl")
ARGUMENT = ":"  # in the name of a class that a function returns: `module.function:argument`

# Types by the names that the shipped file gives them.
PLAIN_TYPES: dict[str, Any] = {
    "Any": Any,
    "None": type(None),
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "set": set,
    "str": str,
    "tuple": tuple,
}
CONTAINERS: dict[str, Any] = {
    "dict": dict,
    "list": list,
    "set": set,
    "tuple": tuple,
    "Collection": collections.abc.Collection,
    "Iterable": collections.abc.Iterable,
    "Mapping": collections.abc.Mapping,
    "Sequence": collections.abc.Sequence,
}
ELLIPSIS = "..."  # in the shipped file: tuple[int, ...]


class UnknownType(Exception):
    """A type that cannot be written as plain data, as a class of the library itself."""


@dataclass(frozen=True)
class LibraryClass:
    """The keys of a settings class, and the source files that define it."""

    name: str
    """As `load_class` takes it."""
    keys: dict[str, Any]
    """Name -> its annotation as plain data, as `encode_type` returns it; None where only the class itself can check a
    value."""
    files: dict[str, str]
    """Module -> digest of its file, for the class and the classes it inherits from."""

    def find_annotation(self, key: str) -> Any:
        """Return the annotation to check a value of `key` against. Imports the class only for types of its own."""
        encoded = self.keys[key]
        if encoded is not None:
            return decode_type(encoded)
        cls = import_class(self.name)
        return field_types(cls)[_list_aliases(cls).get(key, key)]


def load_class(name: str) -> LibraryClass:
    """Return the keys of the class `name`: as shipped, where that was made from what is installed, else from itself.

    `name` is `trl.SFTConfig`, or `module.function:argument` for the class that `function(argument)` returns.
    """
    return read_shipped().get(name) or describe_class(import_class(name), name)


def import_class(name: str) -> type:
    """Import the class `name`, as `load_class` takes it."""
    path, _, argument = name.partition(ARGUMENT)
    module, _, attribute = path.rpartition(".")
    imported = getattr(importlib.import_module(module), attribute)
    return imported(argument) if argument else imported


def describe_class(cls: type, name: str) -> LibraryClass:
    """Describe a settings class that has been imported by `name`."""
    annotations = field_types(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    keys = {name: encode_type(annotations[name]) for name in fields if name in annotations}

    is_model_config = hasattr(cls, "model_type")
    if is_model_config:
        keys |= {alias: keys[key] for alias, key in _list_aliases(cls).items() if key in keys}
        keys |= {"model_type": "str", "attn_implementation": "str"}

    modules = sorted({base.__module__ for base in cls.__mro__ if dataclasses.is_dataclass(base)})
    return LibraryClass(name, keys, digest_files(modules))


def _list_aliases(cls: Any) -> dict[str, str]:
    """Return the other names that a config of transformers takes for its keys: other name -> key."""
    return getattr(cls, "attribute_map", {})


def encode_type(annotation: Any) -> Any:
    """Return an annotation as plain data: a name of PLAIN_TYPES, or `{"union": [...]}` and the like.

    None where it holds another type than Python's own, and the names of an enumeration.
    """
    try:
        return _encode(annotation)
    except UnknownType:
        return None


def _encode(annotation: Any) -> Any:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if annotation is None:
        return "None"
    if origin in UNIONS:
        return {"union": [_encode(option) for option in arguments]}
    if origin is typing.Literal:
        return {"literal": list(arguments)}
    if typing.is_typeddict(annotation):
        return "dict"  # as in a recipe (`hf_llm.core.recipe`)
    for name, container in CONTAINERS.items():
        if origin is container:
            return {name: [ELLIPSIS if item is Ellipsis else _encode(item) for item in arguments]}
    for name, plain_type in PLAIN_TYPES.items():
        if annotation is plain_type:
            return name
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum) and issubclass(annotation, str):
        return {"enum": [member.value for member in annotation]}
    raise UnknownType(annotation)


def decode_type(encoded: Any) -> Any:
    """Return the annotation that `encode_type` has encoded. A value of an enumeration becomes a plain string."""
    if isinstance(encoded, str):
        return PLAIN_TYPES[encoded]
    ((kind, items),) = encoded.items()
    if kind == "literal":
        return typing.Literal[tuple(items)]
    if kind == "enum":
        values = enum.Enum("Values", {f"VALUE_{number}": value for number, value in enumerate(items)}, type=str)
        return typing.Annotated[values, AfterValidator(_get_value)]  # told as pydantic tells an enumeration's values
    options = tuple(Ellipsis if item == ELLIPSIS else decode_type(item) for item in items)
    if kind == "union":
        return typing.Union[options]  # noqa: UP007 - as many as there are
    return CONTAINERS[kind][options]


def _get_value(member: enum.Enum) -> Any:
    return member.value


@cache
def installed_versions() -> dict[str, str]:
    """Return the versions of LIBRARIES that are installed; a local part of a version (`+cpu`) does not count."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library).partition("+")[0]
        except metadata.PackageNotFoundError:
            versions[library] = ""
    return versions


def digest_files(modules: collections.abc.Iterable[str]) -> dict[str, str]:
    """Return the digest of each module's source file, without importing any; empty where there is no such file."""
    digests = {}
    for module in modules:
        path = _find_file(module)
        digests[module] = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else ""
    return digests


def _find_file(module: str) -> Path | None:
    package, *parts = module.split(".")
    spec = importlib.util.find_spec(package)  # of a package at the top, which is not imported for that
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def read_shipped() -> dict[str, LibraryClass]:
    """Return the shipped classes by name, those only that were made from what is installed."""
    shipped = _read_shipped_file()
    if shipped["versions"] != installed_versions():
        return {}
    described = {name: LibraryClass(name, **each) for name, each in shipped["classes"].items()}
    installed_files = digest_files({module for each in described.values() for module in each.files})
    return {name: each for name, each in described.items() if each.files.items() <= installed_files.items()}


def read_model_types() -> list[str]:
    """Return every `model_type` of the installed transformers; empty where that is not the version as shipped."""
    shipped = _read_shipped_file()
    is_current = shipped["versions"].get("transformers") == installed_versions()["transformers"]
    return shipped["model_types"] if is_current else []


@cache
def _read_shipped_file() -> dict[str, Any]:
    try:
        return json.loads(SHIPPED_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"versions": {}, "classes": {}, "model_types": []}
