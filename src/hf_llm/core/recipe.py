"""Turn a recipe file and its command-line overrides into typed settings, or say exactly what is wrong with it.

A stage declares what it reads of the file as a dataclass `Recipe`; `hf_llm.pipeline.run.read_run` fills it. Where a
section belongs to a library (`transformers.TrainingArguments`, `peft.LoraConfig` ...) the field is annotated
`Settings[Class]`: its keys and types are checked here against that class, and the object is built later, when the
output folder and the device are known. Where the class depends on the section (`model_type`), a function of the section
that returns the class stands in its place.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hf_llm.core.errors import UserError
from hf_llm.core.shipped import find_recipe

T = TypeVar("T")


class Settings(dict):
    """Checked keyword arguments of another library's class: `Settings[LoraConfig]` in an annotation."""

    def __class_getitem__(cls, target: type | typing.Callable[[dict], type]) -> types.GenericAlias:
        return types.GenericAlias(cls, (target,))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (`6e-4` is a number, `no` is a word) and no duplicate keys."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\.inf|\.nan)$", re.IGNORECASE),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, read by the rules of recipes. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would take for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump_yaml(value: Any) -> str:
    """The YAML text that `parse_yaml` reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def build_recipe(cls: type[T], tree: dict[str, Any], where: str, known_keys: Sequence[str]) -> T:
    """Build the dataclass `cls` from a recipe's tree, whose top-level keys have to be among `known_keys`.

    Raises UserError with every problem, `where` (the recipe's file) before them.
    """
    problems = _unknown(tree, known_keys, "")
    wanted = {field.name for field in dataclasses.fields(cls)}.intersection(known_keys)
    given = {key: value for key, value in tree.items() if key in wanted}
    recipe = _build(cls, given, "", problems)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError("\n  ".join([f"{where}: {count}", *problems]))
    return recipe


def read_tree(argv: list[str]) -> tuple[Path, dict[str, Any]]:
    """The recipe file's path and its contents as plain values: overrides applied, `${NAME}` expanded.

    `argv` is the file, then overrides `--section.key=value`. Raises UserError where the file cannot be read.
    """
    if argv[0].startswith("-"):
        raise UserError(f"the recipe file comes first, then the overrides; got {argv[0]!r}")
    path = find_recipe(argv[0])
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, OSError) as error:
        raise UserError(f"cannot parse {path} as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no sections; a recipe starts with `name: my-model`")

    for key, value in _overrides(argv[1:]):
        set_key(tree, key, value)
    tree.setdefault("name", path.stem)
    return path, _expand(tree, "")


def _overrides(arguments: list[str]) -> typing.Iterator[tuple[str, Any]]:
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise UserError(f"{argument!r} is not an override; write --section.key=value")
        key, equals, text = argument[2:].partition("=")
        if not equals:
            text = next(rest, None)
            if text is None:
                raise UserError(f"--{key} has no value; write --{key}=value")
        try:
            yield key, parse_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"--{key}: {text!r} cannot be parsed: {error}") from None


def set_key(tree: dict, key: str, value: Any) -> None:
    """Enter `value` under the full path `key` of a recipe's tree, in place. Raises UserError where a plain value is in
    the way."""
    keys = key.split(".")
    for depth, section in enumerate(keys[:-1]):
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"--{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is a plain value, it has no keys")
    tree[keys[-1]] = value


def _expand(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{where}: the environment variable {match[1]} is not set; export {match[1]}=... first")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _unknown(given: dict, known: typing.Iterable[str], where: str) -> list[str]:
    known = list(known)
    problems = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) if len(known) < 25 else '--help'}"
            problems.append(f"{where}{key}: no such key; {hint}")
    return problems


def field_types(cls: type) -> dict[str, Any]:
    """The annotation of every field of a dataclass; `Any` where it names something that cannot be resolved."""
    found = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        annotation = field.type
        if isinstance(annotation, str):
            owner = next(c for c in cls.__mro__ if field.name in inspect.get_annotations(c))
            annotation = _resolve_annotation(annotation, sys.modules[owner.__module__])
        found[field.name] = annotation
    return found


def _resolve_annotation(annotation: str, module: types.ModuleType) -> Any:
    """What an annotation written as a string stands for in `module`; `Any` where a name of it cannot be resolved.

    `typing.get_type_hints` of a whole class fails as soon as one of its fields cannot be resolved, so each is asked for
    on its own.
    """
    carrier = types.SimpleNamespace(__annotations__={"field": annotation})
    try:
        return typing.get_type_hints(carrier, globalns=vars(module), include_extras=True)["field"]
    except NameError:
        return Any


def _build(annotation: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as `annotation` says; what does not fit is added to `problems`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Settings:
        return _settings(arguments[0], value, where, problems)
    if dataclasses.is_dataclass(annotation) and not isinstance(value, annotation):
        return _dataclass(annotation, value, where, problems)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            if dataclasses.is_dataclass(option) or typing.get_origin(option) in (Settings, list):
                if isinstance(value, list if typing.get_origin(option) is list else dict):
                    return _build(option, value, where, problems)
    if origin is list and isinstance(value, list):
        return [_build(arguments[0], item, f"{where}[{i}]", problems) for i, item in enumerate(value)]
    return _scalar(annotation, value, where, problems)


def _scalar(annotation: Any, value: Any, where: str, problems: list[str]) -> Any:
    try:
        return TypeAdapter(_with_dicts(annotation)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        problems.append(f"{where}: {value!r} does not fit; {first['msg'][0].lower()}{first['msg'][1:]}")
        return None


def _with_dicts(annotation: Any) -> Any:
    """`annotation` with dict in the place of every TypedDict: pydantic reads those from Python 3.12 on only."""
    if typing.is_typeddict(annotation):
        return dict
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return typing.Union[tuple(map(_with_dicts, arguments))]  # noqa: UP007 - as many as there are
    return origin[tuple(map(_with_dicts, arguments))] if isinstance(annotation, types.GenericAlias) else annotation


def _dataclass(cls: type, value: Any, where: str, problems: list[str]) -> Any:
    prefix = f"{where}." if where else ""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(f"{where}: {value!r} does not fit; this section holds keys")
        return None
    before = len(problems)
    hints = field_types(cls)
    problems += _unknown(value, hints, prefix)
    built = {k: _build(hints[k], v, prefix + k, problems) for k, v in value.items() if k in hints}
    for field in dataclasses.fields(cls):
        if field.init and field.name not in value:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                problems.append(f"{prefix}{field.name}: missing")
    if len(problems) > before:
        return None
    try:
        return cls(**built)
    except ValueError as error:  # a dataclass checks itself in __post_init__
        problems.append(f"{where}: {error}" if where else str(error))
        return None


def _settings(target: Any, value: Any, where: str, problems: list[str]) -> Settings:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(f"{where}: {value!r} does not fit; this section holds keys")
        return Settings()
    try:
        cls = target if isinstance(target, type) else target(value)
    except UserError as error:
        problems.append(f"{where}: {error}")
        return Settings()
    hints = field_types(cls)
    if hasattr(cls, "model_type"):  # a model's config, which also goes by the names its attribute_map gives
        hints |= {alias: hints[name] for alias, name in cls.attribute_map.items() if name in hints}
        hints |= {"model_type": str, "attn_implementation": str}
    problems += _unknown(value, hints, f"{where}.")
    given = {key: item for key, item in value.items() if key in hints and item != "auto"}
    return Settings({key: _scalar(hints[key], item, f"{where}.{key}", problems) for key, item in given.items()})


def plain(value: Any) -> Any:
    """A built recipe as plain values again, fit for JSON and YAML."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return str(value)


def help_text(cls: type) -> str:
    """What a stage does (its module's docstring) and every key it reads, with type and default."""
    lines = [(sys.modules[cls.__module__].__doc__ or "").strip(), "", "Keys (override any as --section.key=value):", ""]
    _describe(cls, "", lines)
    return "\n".join(lines)


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, its lines joined; also `metadata["help"]` where there is none."""
    docs = {field.name: field.metadata["help"] for field in dataclasses.fields(cls) if "help" in field.metadata}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for statement, following in itertools.pairwise(body):
            is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if is_field and is_text and isinstance(following.value.value, str):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs


def _describe(cls: type, where: str, lines: list[str]) -> None:
    hints = field_types(cls)
    notes = field_docs(cls)
    for field in dataclasses.fields(cls):
        annotation, key = hints[field.name], where + field.name
        inner = [option for option in typing.get_args(annotation) if dataclasses.is_dataclass(option)]
        if dataclasses.is_dataclass(annotation) or (inner and typing.get_origin(annotation) is not Settings):
            target = annotation if dataclasses.is_dataclass(annotation) else inner[0]
            many = typing.get_origin(annotation) is list
            lines.append(f"  {key}: {'a list of:' if many else ''}".rstrip())
            _describe(target, f"{key}[]." if many else f"{key}.", lines)
            continue
        settings = [o for o in (annotation, *typing.get_args(annotation)) if typing.get_origin(o) is Settings]
        if settings:
            target = typing.get_args(settings[0])[0]
            target = target if isinstance(target, type) else target({})
            lines.append(f"  {key}.*: every key of {target.__module__.split('.')[0]}.{target.__name__}")
            continue
        kind = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else annotation
        kind = str(kind).replace("typing.", "")
        if field.default is not dataclasses.MISSING:
            default = f" = {field.default!r}"
        elif field.default_factory is not dataclasses.MISSING:
            default = f" = {field.default_factory()!r}"
        else:
            default = " (required)"
        note = notes.get(field.name, "")
        lines.append(f"  {key}: {kind}{default}" + (f"  # {note}" if note else ""))
