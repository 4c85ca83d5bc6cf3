"""Read a dataclass: the type, the default and the docstring of each field."""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from functools import cache
from typing import Any

UNIONS = (types.UnionType, typing.Union)


def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass; `Any` if it names something that cannot be resolved."""
    annotations = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue

        annotation = field.type
        if isinstance(annotation, str):
            # Its names are those of the module of the class that defines the field, which may be a base class.
            owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
            annotation = _resolve_annotation(annotation, sys.modules[owner.__module__])
        annotations[field.name] = annotation
    return annotations


def _resolve_annotation(annotation: str, module: types.ModuleType) -> Any:
    """Resolve an annotation written as a string in `module`; `Any` if one of its names cannot be resolved.

    `typing.get_type_hints` of a class fails if one of its fields cannot be resolved, so it is called for each field.
    """
    carrier = types.SimpleNamespace(__annotations__={"field": annotation})
    try:
        return typing.get_type_hints(carrier, globalns=vars(module), include_extras=True)["field"]
    except NameError:
        return Any


def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, its lines joined; `metadata["help"]` if it has none.

    The fields of base classes are included. Python does not keep these docstrings, so they are read from the source.
    """
    docs = {field.name: field.metadata["help"] for field in dataclasses.fields(cls) if "help" in field.metadata}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        for statement, following in itertools.pairwise(_find_definition(owner).body):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _find_definition(cls: type) -> ast.ClassDef:
    """Return the syntax tree of a class. One at the top of its module is found in the module's, parsed once for all."""
    definition = _parse_classes(cls.__module__).get(cls.__qualname__)
    if definition is None:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return definition


@cache
def _parse_classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {statement.name: statement for statement in tree.body if isinstance(statement, ast.ClassDef)}


def describe_type(annotation: Any) -> str:
    """Return an annotation as it is written in Python."""
    is_plain_class = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    if is_plain_class:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def describe_default(field: dataclasses.Field) -> str:
    """Return the default of a field as it is written in Python; `(required)` if it has none."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(required)"
