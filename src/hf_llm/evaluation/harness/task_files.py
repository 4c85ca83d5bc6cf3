"""Names of the harness's tasks to the YAML files that define them, without importing lm_eval.

lm_eval's own TaskManager parses all of its 14,000 files, which takes more than a minute. Here the lines that name
tasks, groups and tags are looked for in the text of the files, which takes a fifth of a second, and only the files of
the tasks asked for are parsed.
"""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from hf_llm.core.errors import UserError
from hf_llm.core.extras import require_extras
from hf_llm.core.similar_names import suggest_names

Config = dict[str, Any]  # what a YAML file of the harness says, its includes merged

YAML_SUFFIXES = {".yaml", ".yml"}

# The keys of a group that say what it is; its other keys are settings of the tasks in it (lm_eval's GroupConfig).
GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}

_NAMING_LINE = re.compile(r"""^["']?(task|group|tag|include|class)["']?[ ]*:[ ]*(.*)$""", re.MULTILINE)
_LIST_ITEM = re.compile(r"""\s*-\s+["']?([^"'#\n]+?)["']?\s*(?:#.*)?$""")


@dataclass(frozen=True)
class FunctionReference:
    """A function that a YAML file names with `!function`, in a module beside it or in any other."""

    name: str
    folder: Path

    def load(self) -> Any:
        """Import it. Raises UserError where there is no such function."""
        module_name, _, function = self.name.rpartition(".")
        beside = self.folder / f"{module_name.replace('.', '/')}.py"
        module = load_module_file(beside) if beside.exists() else importlib.import_module(module_name)
        if not hasattr(module, function):
            raise UserError(f"{self.folder}: a task names the function {self.name}, which {module_name} does not have")
        return getattr(module, function)


@dataclass(frozen=True)
class TaskFile:
    """One task: its file, and what the group that it was asked for by changes in it."""

    name: str
    path: Path | None
    """None for a task that a group's file defines by itself."""
    changes: Config = field(default_factory=dict)

    def read_config(self) -> Config:
        """Return what the harness's task classes take, functions as `FunctionReference`."""
        config = read_config(self.path) if self.path else {}
        config = {**config, **self.changes}
        for key in ("tag", "group", "task_list"):
            config.pop(key, None)
        return {**config, "task": self.name}


@dataclass
class TaskIndex:
    """The names in a folder of YAML files."""

    files: dict[str, Path] = field(default_factory=dict)
    """The file of each task and group."""
    groups: set[str] = field(default_factory=set)
    """Those names that are groups."""
    tags: dict[str, list[str]] = field(default_factory=dict)
    """The tasks of each tag, in alphabetical order."""

    def names(self) -> Iterator[str]:
        """Yield every name."""
        yield from self.files
        yield from self.tags

    def find_tasks(self, name: str) -> list[TaskFile]:
        """Return the tasks of a name: one, or those of a group or tag. Raises UserError where there is no such name."""
        return list(self._expand(name, {}))

    def _expand(self, name: str, changes: Config) -> Iterator[TaskFile]:
        if name in self.groups:
            yield from self._expand_group(name, read_config(self.files[name]), changes)
        elif name in self.files:
            yield TaskFile(changes.get("task", name), self.files[name], changes)
        elif name in self.tags:
            for task in self.tags[name]:
                yield TaskFile(task, self.files[task], changes)
        else:
            raise UserError(describe_unknown_task(name, self.names()))

    def _expand_group(self, group: str, config: Config, changes: Config) -> Iterator[TaskFile]:
        """Yield the tasks of a group, as lm_eval's TaskFactory builds them."""
        own_changes = {key: value for key, value in config.items() if key not in GROUP_KEYS}
        changes = {**own_changes, **changes}
        members = config.get("task") or []
        for member in members if isinstance(members, list) else [members]:
            if isinstance(member, str):
                yield from self._expand_member(group, member, changes)
            elif "group" in member:
                inner = {key: value for key, value in member.items() if key != "group"}
                if member["group"] in self.groups:
                    yield from self._expand(member["group"], {**changes, **inner})
                else:
                    yield from self._expand_group(f"{group}::{member['group']}", member, changes)
            else:
                inner = {key: value for key, value in member.items() if key != "task"}
                yield from self._expand_member(group, member["task"], {**changes, **inner})

    def _expand_member(self, group: str, name: str, changes: Config) -> Iterator[TaskFile]:
        is_known = name in self.files or name in self.tags
        if is_known:
            yield from self._expand(name, changes)
        elif "dataset_path" in changes or "custom_dataset" in changes:  # defined in the group's own file
            yield TaskFile(f"{group}::{name}", None, changes)
        else:
            raise UserError(f"the group {group} names a task that is not there: {name}")


def harness_folder() -> Path:
    """Return the folder of the tasks that come with lm_eval. Raises UserError where that is not installed."""
    require_extras("eval")
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("tasks of the evaluation harness need lm_eval: pip install 'hf-llm[eval]'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


@cache
def index_tasks(folder: Path) -> TaskIndex:
    """Find the names in all YAML files of a folder. Of two files with the same name the first counts, as in lm_eval."""
    index = TaskIndex()
    tagged: dict[str, set[str]] = {}
    for path in sorted(_list_yaml_files(folder)):
        fields = _read_naming_lines(path)
        name = _first(fields, "task")
        is_group = "group" in fields and "class" not in fields
        if is_group:
            name = _first(fields, "group")
        if not name or name in index.files:
            continue
        index.files[name] = Path(path)
        if is_group:
            index.groups.add(name)
            continue
        for tag in _find_tags(path, fields):
            tagged.setdefault(tag, set()).add(name)
    index.tags = {tag: sorted(names) for tag, names in tagged.items() if tag not in index.files}
    return index


def find_tasks(name: str) -> list[TaskFile]:
    """Return the tasks that `name` means: a task, group or tag of the harness, or a YAML file of a task or group.

    Raises UserError where there is no such name or file, and for a file that is not such a task.
    """
    if Path(name).suffix not in YAML_SUFFIXES:
        return index_tasks(harness_folder()).find_tasks(name)

    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"evaluate.tasks: {name} is not there; name a task of the harness or an existing YAML file")
    config = read_config(path)
    if "group" in config and "class" not in config:
        own = index_tasks(path.resolve().parent)
        shipped = index_tasks(harness_folder())
        both = TaskIndex({**shipped.files, **own.files}, shipped.groups | own.groups, {**shipped.tags, **own.tags})
        return list(both._expand_group(config["group"], config, {}))
    if not isinstance(config.get("task"), str):
        raise UserError(f"{name}: a task of the harness has a key `task` with its name, a group a key `group`")
    return [TaskFile(config["task"], path.resolve())]


def read_group_metrics(name: str) -> dict[str, bool]:
    """Return the metrics that a group has a mean of, and whether each task counts by its documents or all alike.

    Nothing for a name that is not a group, or a group that has no mean: its tasks are only run together.
    """
    if Path(name).suffix in YAML_SUFFIXES:
        config = read_config(Path(name).expanduser())
    else:
        index = index_tasks(harness_folder())
        config = read_config(index.files[name]) if name in index.groups else {}
    metrics = config.get("aggregate_metric_list") or []
    metrics = metrics if isinstance(metrics, list) else [metrics]
    return {metric["metric"]: metric.get("weight_by_size", True) for metric in metrics}


def describe_unknown_task(name: str, names: Iterable[str]) -> str:
    """Return the message for a name that is not a task, with the nearest names that are."""
    hint = suggest_names(name, names, otherwise="lm-eval ls tasks lists those of the harness")
    return f"evaluate.tasks: there is no task {name!r}; {hint}"


# ---- reading the files


def read_config(path: Path) -> Config:
    """Read a YAML file of the harness and what it includes. Raises UserError where it is not a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.load(file, _make_loader(path.parent))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be parsed as YAML: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a task of the harness is a mapping of keys")

    includes = config.pop("include", [])
    merged: Config = {}
    for name in [includes] if isinstance(includes, str) else includes:
        included = path.parent / name
        if not included.exists():
            raise UserError(f"{path} includes {name}, which is not there")
        part = read_config(included)
        part.pop("task_list", None)
        merged.update(part)
    return {**merged, **config}


def resolve_functions(value: Any) -> Any:
    """Return a config with every `FunctionReference` imported."""
    if isinstance(value, FunctionReference):
        return value.load()
    if isinstance(value, dict):
        return {key: resolve_functions(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_functions(item) for item in value]
    return value


def load_module_file(path: Path) -> ModuleType:
    """Import a Python file that is beside a task's YAML file, once in a process."""
    root = harness_folder()
    name = str(path.resolve().with_suffix(""))
    if path.is_relative_to(root):  # by the name that the harness gives it, since some import each other by that
        name = ".".join(["lm_eval", "tasks", *path.relative_to(root).with_suffix("").parts])
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_loader(folder: Path) -> type[yaml.SafeLoader]:
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = type("TaskLoader", (base,), {})

    def read_function(parser: yaml.SafeLoader, node: yaml.ScalarNode) -> FunctionReference:
        return FunctionReference(parser.construct_scalar(node), folder)

    yaml.add_constructor("!function", read_function, Loader=loader)
    return loader


def _list_yaml_files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        for name in names:
            if Path(name).suffix in YAML_SUFFIXES:
                yield f"{root}/{name}"


@cache
def _read_naming_lines(path: str) -> dict[str, list[str]]:
    """Return the values of the keys that name things in a YAML file, by key, without parsing the file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    fields: dict[str, list[str]] = {}
    for match in _NAMING_LINE.finditer(text):
        key, value = match.groups()
        value = value.split(" #")[0].strip()
        if value.startswith("["):
            values = value.strip("[]").split(",")
        elif value:
            values = [value]
        elif key in ("tag", "include"):
            values = _read_list_items(text, match.end() + 1)
        else:
            values = []
        fields[key] = [item.strip().strip("\"'") for item in values]
    return fields


def _read_list_items(text: str, start: int) -> list[str]:
    items = []
    for line in text[start:].splitlines():
        match = _LIST_ITEM.match(line)
        if match is None:
            break
        items.append(match[1])
    return items


def _find_tags(path: str, fields: dict[str, list[str]], depth: int = 0) -> list[str]:
    """Return the tags of a file, or else of the files that it includes."""
    if "tag" in fields or depth > 8:
        return fields.get("tag", [])
    tags: list[str] = []
    for include in fields.get("include", []):
        included = os.path.join(os.path.dirname(path), include)
        if os.path.exists(included):
            tags = _find_tags(included, _read_naming_lines(included), depth + 1) or tags
    return tags


def _first(fields: dict[str, list[str]], key: str) -> str | None:
    return next(iter(fields.get(key, [])), None)
