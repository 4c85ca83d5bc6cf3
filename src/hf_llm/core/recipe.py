"""Parse a recipe file and its command-line overrides into typed settings, or report every problem in it.

A stage declares what it reads of the file as a dataclass `Recipe`; `hf_llm.pipeline.run.read_run` fills it. Where a
section belongs to a library the field is annotated with the name of the library's class, `Settings["trl.SFTConfig"]`:
its keys and types are checked here against what `settings/library_settings.py` knows of that class, mostly without
importing it, and the object is built later, when the output folder and the device are known. Where the class depends on
the section (`model_type`), a function of the section that returns the name is written instead: `Settings[name_class]`.
"""

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.secrets import expand_variables
from hf_llm.core.settings.dataclass_fields import UNIONS, field_types
from hf_llm.core.settings.library_settings import LibraryClass, describe_class, load_class
from hf_llm.core.shipped import find_recipe
from hf_llm.core.similar_names import suggest_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

MAX_KEYS_LISTED = 25  # in the error for an unknown key


# The class of a section in `Settings[...]`: its name, a function of the section that returns the name, or the class.
Target = str | type | Callable[[dict], str]


class Settings(dict):
    """Checked keyword arguments of another library's class: `Settings["peft.LoraConfig"]` in an annotation."""

    def __class_getitem__(cls, target: Target) -> types.GenericAlias:
        return types.GenericAlias(cls, (target,))


_BOOL_TAG = "tag:yaml.org,2002:bool"
_FLOAT_TAG = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does (`6e-4` is a number, `no` is a string), and refuses duplicate keys."""


# PyYAML's own patterns for booleans and numbers (those of YAML 1.1) are replaced by those of YAML 1.2. The table lists
# them by the first character that a scalar may have.
_Loader.yaml_implicit_resolvers = {
    first_character: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL_TAG, _FLOAT_TAG)]
    for first_character, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL_TAG, re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT_TAG,
    re.compile(r"^[-+]?(?:(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\.inf|\.nan)$", re.IGNORECASE),
    list("-+0123456789."),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    """Construct a dictionary as PyYAML does, but raise an error for a key that occurs twice."""
    keys = set()
    for key, _ in node.value:
        if key.value in keys:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
        keys.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text by the rules of recipes. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


def describe_yaml_error(error: yaml.YAMLError, text: str) -> str:
    """Return where a YAML text is wrong and how, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return one_line(error)
    mark = error.problem_mark

    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    indentation = line[: len(line) - len(line.lstrip())]
    if "\t" in indentation:
        return f"line {mark.line + 1} is indented with a tab; use spaces"
    if "\\t" in (error.problem or ""):
        return f"line {mark.line + 1}, column {mark.column + 1} has a tab; use spaces"
    return f"line {mark.line + 1}, column {mark.column + 1}: {one_line(error.problem)}"


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would read as a number, a boolean or null."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump_yaml(value: Any) -> str:
    """Return the YAML text that `parse_yaml` reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def build_recipe(cls: type[T], tree: dict[str, Any], where: str, known_keys: Sequence[str]) -> T:
    """Build the dataclass `cls` from a recipe's tree, whose top-level keys have to be among `known_keys`.

    Raises UserError that lists every problem, after `where` (the recipe's file).
    """
    recipe, problems = find_problems(cls, tree, known_keys)
    if problems:
        plural = "s" if len(problems) > 1 else ""
        heading = f"{where}: {len(problems)} problem{plural}"
        raise UserError("\n  ".join([heading, *problems]))
    return recipe


def find_problems(cls: type[T], tree: dict[str, Any], known_keys: Sequence[str]) -> tuple[T, list[str]]:
    """Build the dataclass `cls` from a recipe's tree as `build_recipe` does; also return all problems, each with its
    key. Where there are any, what is built is not to be used."""
    # Each stage reads other sections, and all are to say the same of a wrong one: so no places are named here.
    problems = _find_unknown_keys(tree, known_keys, "")

    # The sections of other stages are not read.
    own_keys = {field.name for field in dataclasses.fields(cls)}.intersection(known_keys)
    own_sections = {key: value for key, value in tree.items() if key in own_keys}
    recipe = _build_value(cls, own_sections, "", problems)
    return recipe, problems


def read_tree(argv: list[str]) -> tuple[Path, dict[str, Any]]:
    """Read a recipe: return the file's path and its contents as plain values, overrides applied.

    A `${NAME}` is left as it is written; `expand_tree` replaces it.

    `argv` is the file, then overrides `--section.key=value`. Raises UserError if the file cannot be read.
    """
    if argv[0].startswith("-"):
        raise UserError(f"the recipe file comes first, then the overrides; got {argv[0]!r}")
    path = find_recipe(argv[0])
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot parse {path} as YAML: {describe_yaml_error(error, text)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no sections; a recipe starts with `name: my-model`")

    for key, value in _parse_overrides(argv[1:]):
        set_key(tree, key, value)
    tree.setdefault("name", path.stem)
    return path, tree


def expand_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace `${NAME}` in every string of a recipe by the environment variable. Raises UserError if it is not set."""
    try:
        return expand_variables(tree)
    except KeyError as error:
        where, name = error.args
        raise UserError(f"{where}: the environment variable {name} is not set; export {name}=... first") from None


def _parse_overrides(arguments: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of each override, written as `--key=value` or as `--key value`."""
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("--"):
            raise UserError(f"{argument!r} is not an override; write --section.key=value")
        key, equals, text = argument[2:].partition("=")
        if not equals:
            text = next(remaining, None)
            if text is None:
                raise UserError(f"--{key} has no value; write --{key}=value")

        try:
            yield key, parse_yaml(text)
        except yaml.YAMLError as error:
            reason = describe_yaml_error(error, text)
            raise UserError(f"--{key}: {text!r} cannot be parsed as YAML: {reason}") from None


def set_key(tree: dict, key: str, value: Any) -> None:
    """Set the value of a key, given by its full path (`pretrain.training.seed`), in a recipe's tree, in place.

    Raises UserError if one of the sections on that path is a plain value.
    """
    keys = key.split(".")
    for depth, section in enumerate(keys[:-1]):
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"--{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is a plain value, it has no keys")
    tree[keys[-1]] = value


@dataclasses.dataclass
class _Places:
    """Where a name belongs that is not a key of the section in which it stands: in a section below it or beside it."""

    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    """Key -> its full path."""
    choices: dict[str, str] = dataclasses.field(default_factory=dict)
    """One of the values that a key lets choose -> `path: value`."""

    def add(self, other: "_Places") -> None:
        """Add what is not here yet."""
        self.keys = other.keys | self.keys
        self.choices = other.choices | self.choices


def _find_unknown_keys(
    given: dict, known: Iterable[str], where: str, find_places: Callable[[], _Places] = _Places
) -> list[str]:
    """Describe each key that is not known, with the place where it belongs, or the most similar known keys."""
    known = list(known)
    problems = []
    for key in given:
        if key in known:
            continue

        places = find_places()
        similar = suggest_names(key, known)
        if key in places.keys:
            hint = f"did you mean {places.keys[key]}?"
        elif similar:
            hint = similar
        elif key in places.choices:
            hint = f"did you mean {places.choices[key]}?"
        else:
            hint = f"known: {', '.join(known)}" if len(known) < MAX_KEYS_LISTED else "known: --help"
        problems.append(f"{where}{key}: no such key; {hint}")
    return problems


def _list_places(cls: type, section: dict, prefix: str) -> _Places:
    """List the keys, and the values to choose, of a section of ours and of the sections in it.

    Those of a list's sections are left out: which item is meant is not known.
    """
    places = _Places()
    below = _Places()
    for key, annotation in field_types(cls).items():
        path = prefix + key
        places.keys[key] = path
        places.add(_Places(choices={value: f"{path}: {value}" for value in _list_choices(annotation)}))

        inner = section.get(key)
        inner = inner if isinstance(inner, dict) else {}
        for option in (annotation, *typing.get_args(annotation)):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                below.add(_list_places(option, inner, f"{path}."))
            elif typing.get_origin(option) is Settings:
                (target,) = typing.get_args(option)
                below.add(_list_library_places(target, inner, f"{path}."))
    places.add(below)
    return places


def _list_library_places(target: Target, section: dict, prefix: str) -> _Places:
    """List the keys, and the values to choose, of a section that belongs to a library's class."""
    try:
        library_class = find_library_class(target, section)
    except UserError:  # is told where the section is built
        return _Places()
    places = _Places({key: prefix + key for key in library_class.keys})
    for key, encoded in library_class.keys.items():
        if encoded is not None:
            values = _list_choices(library_class.find_annotation(key))
            places.add(_Places(choices={value: f"{prefix}{key}: {value}" for value in values}))
    return places


def _list_choices(annotation: Any) -> list[str]:
    """List the names that an annotation lets choose: those of a Literal or of an enumeration, in a union too."""
    if typing.get_origin(annotation) is typing.Literal:
        return [value for value in typing.get_args(annotation) if isinstance(value, str)]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation if isinstance(member.value, str)]
    if typing.get_origin(annotation) in (*UNIONS, typing.Annotated):
        return [value for option in typing.get_args(annotation) for value in _list_choices(option)]
    return []


# The functions below convert a plain value of a recipe to the type in an annotation. What does not fit is appended to
# `problems`, with its key `where`.


def _build_value(
    annotation: Any, value: Any, where: str, problems: list[str], find_outer_places: Callable[[], _Places] = _Places
) -> Any:
    """Convert a value to any annotation: a section, a list of sections, or a plain type.

    `find_outer_places` lists where else a key may belong that a section does not have.
    """
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Settings:
        return _build_settings(arguments[0], value, where, problems, find_outer_places)
    is_section = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
    if is_section and not isinstance(value, annotation):
        return _build_dataclass(annotation, value, where, problems, find_outer_places)
    if origin in UNIONS:
        if value is None and type(None) in arguments:
            return None
        option = _find_section_option(arguments, value)
        if option is not None:
            return _build_value(option, value, where, problems, find_outer_places)
    if origin is list and isinstance(value, list):
        return [_build_value(arguments[0], item, f"{where}[{i}]", problems) for i, item in enumerate(value)]
    return _build_scalar(annotation, value, where, problems)


def _find_section_option(options: tuple, value: Any) -> Any:
    """Find the first option of a union that is a section, or a list of them, and fits `value`; None if none does."""
    for option in options:
        option_origin = typing.get_origin(option)
        if option_origin is list and isinstance(value, list):
            return option
        is_section = dataclasses.is_dataclass(option) or option_origin is Settings
        if is_section and isinstance(value, dict):
            return option
    return None


def _build_scalar(annotation: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Convert a value by pydantic: numbers, strings, lists and dictionaries of them."""
    try:
        return TypeAdapter(_replace_typed_dicts(annotation)).validate_python(value)
    except ValidationError as error:
        errors = error.errors()
        choices = [each["msg"] for each in errors if each["type"] == "literal_error"]
        message = choices[0] if choices else errors[0]["msg"]  # the values to choose from say the most
        hint = suggest_names(value, _list_choices(annotation)) if choices and isinstance(value, str) else ""
        hint = f"; {hint}" if hint else ""
        problems.append(f"{where}: {value!r} does not fit; {message[0].lower()}{message[1:]}{hint}")
        return None


def _replace_typed_dicts(annotation: Any) -> Any:
    """Replace every TypedDict in an annotation by dict: pydantic needs Python 3.12 to check one."""
    if typing.is_typeddict(annotation):
        return dict
    origin = typing.get_origin(annotation)
    arguments = tuple(map(_replace_typed_dicts, typing.get_args(annotation)))
    if origin in UNIONS:
        return typing.Union[arguments]  # noqa: UP007 - as many as there are
    if isinstance(annotation, types.GenericAlias):
        return origin[arguments]
    return annotation


def _build_dataclass(
    cls: type, value: Any, where: str, problems: list[str], find_outer_places: Callable[[], _Places] = _Places
) -> Any:
    """Build a section of ours, which checks itself in `__post_init__`."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(f"{where}: {value!r} does not fit; this section holds keys")
        return None

    prefix = f"{where}." if where else ""
    problems_before = len(problems)
    annotations = field_types(cls)

    def find_places() -> _Places:
        places = _Places()
        if where:
            places.add(_list_places(cls, value, prefix))
            places.add(find_outer_places())
        return places

    problems += _find_unknown_keys(value, annotations, prefix, find_places)
    built = {}
    for key, item in value.items():
        if key in annotations:
            built[key] = _build_value(annotations[key], item, prefix + key, problems, find_places)

    for field in dataclasses.fields(cls):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.init and field.name not in value and not has_default:
            problems.append(f"{prefix}{field.name}: missing")

    if len(problems) > problems_before:
        return None

    try:
        return cls(**built)
    except ValueError as error:  # raised in __post_init__
        problems.append(f"{where}: {error}" if where else str(error))
        return None


def _build_settings(
    target: Target, value: Any, where: str, problems: list[str], find_outer_places: Callable[[], _Places]
) -> Settings:
    """Check a section that belongs to a library's class, `target`."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(f"{where}: {value!r} does not fit; this section holds keys")
        return Settings()

    try:
        library_class = find_library_class(target, value)
    except UserError as error:
        problems.append(f"{where}: {error}")
        return Settings()

    def find_places() -> _Places:
        places = _list_library_places(target, value, f"{where}.")
        places.add(find_outer_places())
        return places

    problems += _find_unknown_keys(value, library_class.keys, f"{where}.", find_places)

    # `auto` leaves a key to the class's default.
    settings = Settings()
    for key, item in value.items():
        if key in library_class.keys and item != "auto":
            annotation = library_class.find_annotation(key)
            settings[key] = _build_scalar(annotation, item, f"{where}.{key}", problems)
    return settings


def find_library_class(target: Target, section: dict[str, Any]) -> LibraryClass:
    """Return the keys of the class of `Settings[target]` for a section. Raises UserError for a section without one."""
    if isinstance(target, type):
        return describe_class(target, f"{target.__module__}.{target.__qualname__}")
    return load_class(target if isinstance(target, str) else target(section))


def to_plain(value: Any) -> Any:
    """Convert a built recipe back to plain values, which JSON and YAML can write."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_plain(item) for item in value]
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return str(value)
