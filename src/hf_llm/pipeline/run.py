"""Manage the folders of one run, `runs/<name>/<folder>`: make them by their stages, and detect what is out of date."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_llm.core.console import is_main_process, print_main, terminal_width
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import BEGUN_FILE, digest_of, read_manifest, write_json, write_manifest
from hf_llm.core.recipe import build_recipe, read_tree, to_plain
from hf_llm.core.recipe_help import help_text
from hf_llm.pipeline.sizing import apply_sizing
from hf_llm.pipeline.stages import OPTIONAL, RECIPE_KEYS, STAGES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RecipeClass = TypeVar("RecipeClass", bound="DataclassInstance")

MAX_CHANGES_SHOWN = 8  # settings that an error lists by name

# Keys of a `training` section that change what is logged, kept or sent, never what is trained.
NEUTRAL = re.compile(
    r"\.training\.(logging_.*|eval_(steps|strategy|delay|on_start)|save_.*|resume_from_checkpoint"
    r"|report_to|run_name|project|trackio_.*|push_to_hub|hub_.*|disable_tqdm|log_level.*"
    r"|dataloader_(num_workers|pin_memory|prefetch_factor|persistent_workers))$"
    r"|\.samples(\.|$)"
)


@dataclass
class BaseRecipe:
    """The keys at the top of a recipe that every training stage reads."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    seed: int = dataclasses.field(default=42, kw_only=True)
    """Seeds the weights, the order of the data and everything else that is random."""
    price_per_hour: float | None = dataclasses.field(default=None, kw_only=True)
    """Cost of one device for an hour; the training log then shows the cost."""


def read_run(cls: type[RecipeClass], argv: list[str] | None = None) -> tuple["Run", RecipeClass]:
    """Parse the command line of a stage: return the run, and the recipe as the stage's class `cls`.

    `argv` is a recipe file, then overrides `--section.key=value`. Prints the help of the stage and exits on `--help`.
    Raises UserError that lists every problem in the recipe, each with its key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(cls, terminal_width()))
        sys.exit(0 if argv else 2)
    run = Run(argv)
    return run, run.read(cls)


class Run:
    """One pipeline run under `runs/<name>/`, named by a command line `argv` (recipe, then overrides)."""

    def __init__(self, argv: list[str] | None = None):
        self.argv = list(sys.argv[1:] if argv is None else argv)
        self.recipe_path, tree = read_tree(self.argv)
        self.tree, self.derived = apply_sizing(tree)
        self.name = str(self.tree["name"])
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", self.name):  # a/b is a run that belongs to the run a
            raise UserError(f"name: {self.name!r} cannot name a folder; use letters, digits, '.', '-' and '_'")
        self.root = Path("runs") / self.name

    def read(self, cls: type[RecipeClass]) -> RecipeClass:
        """Build the dataclass `cls` from the recipe. Raises UserError that lists every problem, each with its key."""
        return build_recipe(cls, self.tree, str(self.recipe_path), RECIPE_KEYS)

    def folder(self, name: str) -> Path:
        """Return the path of one of the run's folders, whether it exists or not."""
        return self.root / name

    def is_requested(self, folder: str) -> bool:
        """Whether the recipe asks for this folder."""
        return folder not in OPTIONAL or folder in self.tree

    def resolve_source(self, path: Path | str | None) -> Path | str | None:
        """Return a model or data set that the recipe names itself: its path if it exists on this disk, else the Hub id.

        None, where the recipe names none, is returned as it is.
        """
        if path is None or not Path(path).exists():
            return path
        return Path(path)

    def is_complete(self, folder: str) -> bool:
        """Whether the folder is complete.

        Raises UserError if it was made with settings other than this recipe's, or from inputs that have changed since.
        """
        path = self.folder(folder)
        manifest = read_manifest(path)
        if manifest is None:
            return False

        self._check_settings(folder)
        inputs = manifest["inputs"]
        current_inputs = {name: self._current_digest(name, recorded) for name, recorded in inputs.items()}
        self._check_inputs(folder, inputs, current_inputs)
        return True

    def ensure_stage(self, folder: str) -> Path:
        """Return the path of a folder, after running its stage in a subprocess if the folder is not complete.

        Raises UserError with the command to run if several processes were launched. Exits if the stage fails.
        """
        path = self.folder(folder)
        if self.is_complete(folder):
            return path

        stage = STAGES[folder]
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            command = f"python -m {stage.module} {shlex.join(self.argv)}"
            raise UserError(
                f"{path} is missing and several processes were launched; make it first, in one:\n  {command}"
            )
        print_main(f"{path} is missing: making it first with {stage.module}")
        completed = subprocess.run([sys.executable, "-m", stage.module, *self.argv], check=False)
        if completed.returncode:
            sys.exit(completed.returncode)
        return path

    def starting_model(self, folder: str, path: str | None = None) -> dict[str, str | None]:
        """Return the model that a post-training stage starts from, as the first entry of `inputs` for `open_stage`.

        It is the SFT model if the recipe has one, else the base model. `path` is what the recipe names instead, if any.
        """
        name = "sft" if folder != "sft" and self.is_requested("sft") else "base"
        return {name: path}

    def open_stage(
        self, folder: str, recipe: Any = None, inputs: Mapping[str, Path | str | None] | None = None
    ) -> "StageOutput":
        """Open the output folder of a stage, `runs/<name>/<folder>`, whether it is new, unfinished or complete.

        `inputs` are the folders it is made from, by name: a path or Hub id that the recipe names itself, or None for
        the run's own folder of that name, whose stage is run first if it is missing. `recipe` is the recipe as the
        stage has read it, which the manifest keeps with its defaults filled in. For a new folder, prints the values
        that sizing has derived for its sections, and why.

        Raises UserError if the folder was begun with other settings or inputs.
        """
        sources = {}
        for name, named_path in (inputs or {}).items():
            sources[name] = self.resolve_source(named_path) or self.ensure_stage(name)

        self._check_settings(folder)
        path = self.folder(folder)
        output = StageOutput(
            path=path,
            folder=folder,
            settings=settings_of(folder, self.tree),
            inputs={name: _identify_source(source) for name, source in sources.items()},
            sources=sources,
            recipe=to_plain(recipe),
        )

        recorded = read_manifest(path) or _read_begun(path)
        if recorded:
            self._check_inputs(folder, recorded["inputs"], output.inputs)
        elif is_main_process():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / BEGUN_FILE, {"settings": output.settings, "inputs": output.inputs})
            self._print_derived(folder)
        return output

    def archive_from(self, first: str) -> None:
        """Rename `first` and the folders of all later stages to `<folder>.1` (or the next free number)."""
        if first not in STAGES:
            raise UserError(f"fresh: {first!r} is not a folder of a run; one of {', '.join(STAGES)}")

        running_order = list(STAGES)
        for folder in running_order[running_order.index(first) :]:
            path = self.folder(folder)
            if not path.exists():
                continue
            number = next(n for n in range(1, 10_000) if not path.with_name(f"{folder}.{n}").exists())
            path.rename(path.with_name(f"{folder}.{number}"))
            print_main(f"{path} is kept as {folder}.{number}")

    def _current_digest(self, name: str, recorded: str) -> str:
        """Return the present digest of an input that is a folder of this run; `recorded` for any other input."""
        manifest = read_manifest(self.folder(name))
        if manifest and name in STAGES:
            return manifest["digest"]
        return recorded

    def _check_inputs(self, folder: str, recorded: dict[str, str], current: dict[str, str]) -> None:
        """Raise UserError if an input has another digest than the one recorded when the folder was begun."""
        changed = [name for name, digest in current.items() if recorded.get(name, digest) != digest]
        if changed:
            remedy = self._describe_remedy(folder)
            raise UserError(f"{self.folder(folder)}: inputs changed: {', '.join(changed)}.\n  {remedy}")

    def _check_settings(self, folder: str) -> None:
        """Raise UserError if the folder was begun with settings other than this recipe's."""
        path = self.folder(folder)
        recorded = read_manifest(path) or _read_begun(path)
        if not recorded:
            return

        old = _flatten_items(recorded["settings"])
        new = _flatten_items(settings_of(folder, self.tree))
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if not changed:
            return

        lines = [f"{path} was made with other settings:"]
        for key in changed[:MAX_CHANGES_SHOWN]:
            lines.append(f"  {key}: was {_format_setting(old, key)}, is {_format_setting(new, key)}")
        if len(changed) > MAX_CHANGES_SHOWN:
            lines.append(f"  and {len(changed) - MAX_CHANGES_SHOWN} more")
        lines.append("  " + self._describe_remedy(folder))
        raise UserError("\n".join(lines))

    def _describe_remedy(self, folder: str) -> str:
        command = f"python -m hf_llm.run {shlex.join(self.argv)} --fresh={folder}"
        return (
            f"Give this run another name (--name=...), undo the change, or rebuild {folder} and what follows, "
            f"the old folders kept beside them:\n  {command}"
        )

    def _print_derived(self, folder: str) -> None:
        """Print the values that sizing has derived for the sections of a folder, each with its reason."""
        for key, reason in self.derived.items():
            if not _is_below(key, STAGES[folder].sections):
                continue
            value = reduce(getitem, key.split("."), self.tree)
            shown = f"{value:,}" if isinstance(value, int) else value
            print_main(f"{key} {shown}: {reason}")


@dataclass
class StageOutput:
    """The output folder of a stage, used as a `with` block around its work; `complete` writes the manifest."""

    path: Path
    folder: str
    settings: dict[str, Any]
    """The keys of the recipe that determine what the folder holds, with the recipe's values (`settings_of`)."""
    inputs: dict[str, str]
    """The digests (or Hub ids) of its inputs, by name."""
    sources: dict[str, Path | str] = dataclasses.field(default_factory=dict)
    """The paths or Hub ids of its inputs, by name."""
    recipe: dict[str, Any] | None = None
    """The recipe as the stage has read it, defaults filled in."""

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether the folder is complete. If it is, prints a line that says so, with its headline."""
        manifest = read_manifest(self.path)
        if manifest is None:
            return False
        if is_main_process():
            (self.path / BEGUN_FILE).unlink(missing_ok=True)  # left by a run that was killed after its last write
        print_main(f"{self.path} is complete ({manifest['headline']})")
        return True

    @property
    def start(self) -> Path | str:
        """The path or Hub id of the model that the stage starts from: the first of its inputs."""
        return next(iter(self.sources.values()))

    @property
    def key(self) -> str:
        """A digest of settings and inputs: equal keys mean equal results."""
        return digest_of([self.settings, self.inputs])

    def __enter__(self) -> "StageOutput":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        """After a UserError, allow the next run to use other settings, unless there are checkpoints already."""
        if isinstance(error, UserError) and is_main_process() and not any(self.path.glob("checkpoint-*")):
            (self.path / BEGUN_FILE).unlink(missing_ok=True)

    def complete(self, headline: str, licenses: list[str], **facts: Any) -> None:
        """Write the manifest. `headline` is the main result in a phrase, `licenses` are those of all sources so far."""
        if not is_main_process():
            return
        write_manifest(
            self.path,
            folder=self.folder,
            headline=headline,
            seconds=round(time.monotonic() - self._started, 1),
            licenses=sorted(set(licenses)),
            settings=self.settings,
            inputs=self.inputs,
            recipe=self.recipe,
            facts=facts,
        )
        (self.path / BEGUN_FILE).unlink(missing_ok=True)
        print_main(f"{self.path}: {headline}")


def settings_of(folder: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Return what in a recipe determines what `folder` holds, besides its inputs: `{"model.hidden_size": 64}`."""
    stage = STAGES[folder]
    settings = {}
    for key, value in _flatten_sections(tree).items():
        is_ignored = _is_below(key, stage.ignores) or NEUTRAL.search(key)
        if _is_below(key, stage.sections) and not is_ignored:
            settings[key] = value
    return settings


def licenses_of(*folders: Path | str) -> list[str]:
    """Return the licences that the manifests of these folders name, sorted."""
    names = set()
    for folder in folders:
        manifest = read_manifest(Path(folder)) or {}
        names.update(manifest.get("licenses", []))
    return sorted(names)


def _read_begun(path: Path) -> dict | None:
    """Read the settings and inputs of an unfinished folder; None if it has not been begun."""
    try:
        return json.loads((path / BEGUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _flatten_sections(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to full keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`. Lists are kept as they are."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        full_key = f"{prefix}.{key}" if prefix else key
        flat |= _flatten_sections(item, full_key)
    return flat


def _flatten_items(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections and lists of sections, so that an error names the item that has changed (`a.b[0].c`)."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {f"[{i}]": item for i, item in enumerate(value)}
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        separator = "." if prefix and not key.startswith("[") else ""
        flat |= _flatten_items(item, prefix + separator + key)
    return flat


def _format_setting(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "not set"
    return repr(settings[key])


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    """Return whether a key is one of these sections (or keys), or lies within one."""
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _identify_source(source: Path | str) -> str:
    """Return the digest in the manifest of a folder; the path or Hub id itself if it has no manifest."""
    manifest = read_manifest(Path(source))
    return manifest["digest"] if manifest else str(source)
