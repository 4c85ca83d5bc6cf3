"""Say from a recipe what a folder of its run is made from, before anything is made: other folders, and local files.

Both belong to the folder's identity: a folder is out of date where one of them has changed since.
"""

import glob
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_llm.core.manifest import digest_of, file_digest, read_manifest
from hf_llm.pipeline.stages import LANGUAGE_MODELS, OPTIONAL, STAGES, is_requested

# Keys whose value names a file, a folder or a glob pattern, wherever they stand in a section.
PATH_KEYS = frozenset(
    ["path", "git", "documents", "data", "task_data", "good", "bad", "use", "compare", "chat_template"]
)
FUNCTION_KEYS = frozenset(["reward_functions"])  # their values are `module:function`


def list_inputs(folder: str, tree: dict[str, Any]) -> dict[str, str | None]:
    """List what the recipe `tree` makes a folder from, as `Run.open_stage` takes it, the starting model first.

    The values are paths or Hub ids that the recipe names, or None for what the run itself has of that name: its
    own folder, or the tokens and the tokenizer that `pretrain` names (`Run.named_folder`).
    """
    section = _section(tree, folder)
    if folder == "base":
        return _list_pretraining_inputs(_section(tree, "pretrain"))
    if folder == "evaluation":
        return _list_evaluated_models(tree)
    if folder == "report":
        return {name: None for name in STAGES if name != "report" and is_requested(tree, name)}
    if folder not in OPTIONAL:
        return dict.fromkeys(STAGES[folder].reads)

    inputs = starting_model(folder, tree, section.get("model"))
    if "reward" in STAGES[folder].reads:
        inputs |= reward_input(tree, section.get("reward_model"), section.get("reward_functions"))
    return inputs


def starting_model(folder: str, tree: dict[str, Any], path: str | None) -> dict[str, str | None]:
    """Return the model that a post-training stage starts from: the SFT model if the recipe has one, else the base."""
    name = "sft" if folder != "sft" and is_requested(tree, "sft") else "base"
    return {name: path}


def reward_input(tree: dict[str, Any], model: str | None, functions: list[str] | None) -> dict[str, str | None]:
    """Return the reward model of a stage; empty where only functions score."""
    if model:
        return {"reward": model}
    if functions or not is_requested(tree, "reward"):
        return {}
    return {"reward": None}  # this run's own


def name_models(paths: list[str]) -> dict[str, str]:
    """Name the models of `evaluate.models`: by the last part of their paths, unless two share that."""
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = paths
    return dict(zip(names, paths, strict=True))


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _list_pretraining_inputs(section: dict[str, Any]) -> dict[str, str | None]:
    inputs = {"tokens": section.get("tokens"), "tokenizer": section.get("tokenizer")}
    if section.get("start_from"):
        inputs["start_from"] = section["start_from"]
    return inputs


def _list_evaluated_models(tree: dict[str, Any]) -> dict[str, str | None]:
    section = _section(tree, "evaluate")
    text = {} if section.get("tokens") == 0 else {"tokens": section.get("text")}
    named = section.get("models")
    if isinstance(named, list):
        return {**text, **name_models([str(path) for path in named])}
    return {**text, **{name: None for name in LANGUAGE_MODELS if is_requested(tree, name)}}


def list_local_files(settings: dict[str, Any]) -> dict[str, list[tuple[str, Path]]]:
    """List the local files that the settings of a folder name, by key: each with its name below what is named.

    What does not exist on this disk (a Hub id, a URL) is not listed. Files that a reward function imports are not
    followed.
    """
    files = {}
    for key, value in _walk_strings(settings, ""):
        name = key.rpartition(".")[2].split("[")[0]
        if name in PATH_KEYS:
            listed = _list_files(value)
        elif name in FUNCTION_KEYS:
            listed = _list_module_files(value.partition(":")[0])
        else:
            continue
        if listed:
            files[key] = listed
    return files


def record_local_files(settings: dict[str, Any], recorded: dict[str, dict] | None = None) -> dict[str, dict[str, str]]:
    """Return what is kept of the local files of a folder, by key: `state` of names, sizes and times, and `digest`.

    The bytes are read only where the state differs from the one in `recorded`.
    """
    records = {}
    for key, files in list_local_files(settings).items():
        known = (recorded or {}).get(key, {})
        state = _state_of(files)
        digest = known.get("digest")
        if known.get("state") != state:
            digest = _digest_of_files(files)
        records[key] = {"state": state, "digest": digest}
    return records


def list_changed_files(settings: dict[str, Any], recorded: dict[str, dict[str, str]]) -> list[str]:
    """List the keys whose local files are not the ones in `recorded`; one that is gone altogether is not listed."""
    present = record_local_files(settings, recorded)
    return [key for key in recorded if key in present and present[key]["digest"] != recorded[key]["digest"]]


def list_missing_files(settings: dict[str, Any], recorded: dict[str, dict[str, str]]) -> list[str]:
    """List the keys whose local files were recorded and are no longer on this disk."""
    present = list_local_files(settings)
    return [key for key in recorded if key not in present]


def _walk_strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every string in nested settings with its full key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _walk_strings(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk_strings(item, f"{key}[{number}]")


def _list_files(path: str) -> list[tuple[str, Path]]:
    """List a file, the files below a folder (not the hidden ones), or those that match a glob pattern."""
    root = Path(path).expanduser()
    if root.is_file():
        return [(root.name, root)]
    if read_manifest(root) is not None:  # a folder of a run, whose manifest has the digest of all of it
        return [("manifest.json", root / "manifest.json")]

    if root.is_dir():
        listed = [(file.relative_to(root).as_posix(), file) for file in _walk_folder(root)]
    elif glob.has_magic(str(root)):
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        listed = [(str(file), file) for file in matches if file.is_file()]
    else:
        return []
    return sorted(listed)


def _walk_folder(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, links followed and each folder once, as the readers of the corpus do."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _list_module_files(module: str) -> list[tuple[str, Path]]:
    """List the source of a Python module, or of all modules of a package, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return []
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return [(origin.name, origin)]
    return sorted((file.relative_to(origin.parent).as_posix(), file) for file in origin.parent.rglob("*.py"))


def _state_of(files: list[tuple[str, Path]]) -> str:
    states = []
    for name, path in files:
        status = path.stat()
        states.append([name, status.st_size, status.st_mtime_ns])
    return digest_of(states)


def _digest_of_files(files: list[tuple[str, Path]]) -> str:
    return digest_of([[name, file_digest(path)] for name, path in files])
