"""The folders of one run, `runs/<name>/<folder>`: which stage makes each, and when one is complete or out of date."""

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
from typing import Any, TypeVar

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import BEGUN_FILE, digest_of, read_manifest, write_json, write_manifest
from hf_llm.core.recipe import build_recipe, read_tree, to_plain
from hf_llm.core.recipe_help import help_text
from hf_llm.pipeline.sizing import apply_sizing
from hf_llm.pipeline.stages import OPTIONAL, RECIPE_KEYS, STAGES

RecipeClass = TypeVar("RecipeClass")

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
    """Parse the command line of a stage, once: the run it is about, and what its class `cls` reads of the recipe.

    `argv` is a recipe file, then overrides `--section.key=value`. Prints the help of the stage and exits on `--help`.
    Raises UserError with every problem of the recipe, each with its key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(cls))
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
        """Build the dataclass `cls` from the recipe. Raises UserError with every problem, each with its key."""
        return build_recipe(cls, self.tree, str(self.recipe_path), RECIPE_KEYS)

    def folder(self, name: str) -> Path:
        """The path of one of the run's folders, whether it exists or not."""
        return self.root / name

    def is_requested(self, folder: str) -> bool:
        """Whether the recipe asks for this folder."""
        return folder not in OPTIONAL or folder in self.tree

    def resolve_source(self, path: str | None) -> Path | str | None:
        """A folder or Hub id that the recipe names itself, instead of a folder of this run."""
        if path is None or not Path(path).exists():
            return path
        return Path(path)

    def is_complete(self, folder: str) -> bool:
        """Whether the folder is complete, with these settings and from what its inputs hold now.

        Raises UserError where it was made with other settings or inputs.
        """
        path = self.folder(folder)
        manifest = read_manifest(path)
        if manifest is None:
            return False

        self._check_settings(folder)
        current = {name: self._current_digest(name, digest) for name, digest in manifest["inputs"].items()}
        self._check_inputs(folder, manifest["inputs"], current)
        return True

    def ensure_stage(self, folder: str) -> Path:
        """The complete folder; runs its stage first where this is the only process.

        Raises UserError with the command to run where several processes were launched.
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
        """The model that a stage of post-training starts from, as the first of its inputs (`open_stage`).

        That is SFT's where the recipe asks for it, else the base model; or `path`, which the recipe names instead.
        """
        name = "sft" if folder != "sft" and self.is_requested("sft") else "base"
        return {name: path}

    def open_stage(
        self, folder: str, recipe: Any = None, inputs: Mapping[str, Path | str | None] | None = None
    ) -> "StageOutput":
        """Begin, resume, or find complete `runs/<name>/<folder>`.

        `inputs` are the folders it is made from, by name: a path or Hub id that the recipe names itself, or None for
        the run's own folder, whose stage is run first where it is missing. `recipe` is what the stage has read of the
        recipe, kept in the manifest with its defaults filled in. At the start it prints what the recipe's sizing has
        chosen for this folder, and why.

        Raises UserError where the folder was begun with other settings or inputs.
        """
        sources = {name: self.resolve_source(path) or self.ensure_stage(name) for name, path in (inputs or {}).items()}
        self._check_settings(folder)
        path = self.folder(folder)
        output = StageOutput(
            path=path,
            folder=folder,
            settings=settings_of(folder, self.tree),
            inputs={name: _identity(source) for name, source in sources.items()},
            sources=sources,
            recipe=to_plain(recipe),
        )
        earlier = read_manifest(path) or _read_begun(path)
        if earlier:
            self._check_inputs(folder, earlier["inputs"], output.inputs)
        elif is_main_process():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / BEGUN_FILE, {"settings": output.settings, "inputs": output.inputs})
            self._print_derived(folder)
        return output

    def archive_from(self, first: str) -> None:
        """Rename `first` and every folder made after it to `<folder>.1` (or the next free number)."""
        if first not in STAGES:
            raise UserError(f"fresh: {first!r} is not a folder of a run; one of {', '.join(STAGES)}")
        order = list(STAGES)
        for folder in order[order.index(first) :]:
            path = self.folder(folder)
            if path.exists():
                number = next(n for n in range(1, 10_000) if not path.with_name(f"{folder}.{n}").exists())
                path.rename(path.with_name(f"{folder}.{number}"))
                print_main(f"{path} is kept as {folder}.{number}")

    def _current_digest(self, folder: str, otherwise: str) -> str:
        """The digest of what a folder of this run holds now; `otherwise` for what is not one, or is missing."""
        manifest = read_manifest(self.folder(folder))
        return manifest["digest"] if manifest and folder in STAGES else otherwise

    def _check_inputs(self, folder: str, earlier: dict[str, str], current: dict[str, str]) -> None:
        changed = [name for name, digest in current.items() if earlier.get(name, digest) != digest]
        if changed:
            raise UserError(f"{self.folder(folder)}: inputs changed: {', '.join(changed)}.\n  {self._remedy(folder)}")

    def _check_settings(self, folder: str) -> None:
        path = self.folder(folder)
        earlier = read_manifest(path) or _read_begun(path)
        if not earlier:
            return
        old = _flatten_items(earlier["settings"])
        new = _flatten_items(settings_of(folder, self.tree))
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if not changed:
            return

        lines = [f"{path} was made with other settings:"]
        for key in changed[:MAX_CHANGES_SHOWN]:
            lines.append(f"  {key}: was {_shown(old, key)}, is {_shown(new, key)}")
        if len(changed) > MAX_CHANGES_SHOWN:
            lines.append(f"  and {len(changed) - MAX_CHANGES_SHOWN} more")
        lines.append("  " + self._remedy(folder))
        raise UserError("\n".join(lines))

    def _remedy(self, folder: str) -> str:
        command = f"python -m hf_llm.run {shlex.join(self.argv)} --fresh={folder}"
        return (
            f"Give this run another name (--name=...), undo the change, or rebuild {folder} and what follows, "
            f"the old folders kept beside them:\n  {command}"
        )

    def _print_derived(self, folder: str) -> None:
        for key, reason in self.derived.items():
            if not _is_below(key, STAGES[folder].sections):
                continue
            value = reduce(getitem, key.split("."), self.tree)
            shown = f"{value:,}" if isinstance(value, int) else value
            print_main(f"{key} {shown}: {reason}")


@dataclass
class StageOutput:
    """The folder that a stage makes, for the length of a `with` block, and the manifest that completes it."""

    path: Path
    folder: str
    settings: dict[str, Any]
    """What of the recipe decides what the folder holds, as the recipe gives it."""
    inputs: dict[str, str]
    """The digests (or Hub ids) of what it is made from."""
    sources: dict[str, Path | str] = dataclasses.field(default_factory=dict)
    """Where its inputs are: folders or Hub ids."""
    recipe: dict[str, Any] | None = None
    """The recipe as the stage has read it, defaults filled in."""

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether the folder is complete; prints so where it is."""
        manifest = read_manifest(self.path)
        if manifest is None:
            return False
        if is_main_process():
            (self.path / BEGUN_FILE).unlink(missing_ok=True)  # left by a run that was killed after its last write
        print_main(f"{self.path} is complete ({manifest['headline']})")
        return True

    @property
    def start(self) -> Path | str:
        """Where the model is that the stage starts from: the first of its inputs."""
        return next(iter(self.sources.values()))

    @property
    def key(self) -> str:
        """A digest of settings and inputs: equal keys mean equal results."""
        return digest_of([self.settings, self.inputs])

    def __enter__(self) -> "StageOutput":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        """After a user's error let the next run begin with other settings, unless there are checkpoints already."""
        if isinstance(error, UserError) and is_main_process() and not any(self.path.glob("checkpoint-*")):
            (self.path / BEGUN_FILE).unlink(missing_ok=True)

    def complete(self, headline: str, licenses: list[str], **facts: Any) -> None:
        """Write the manifest. `headline` is the one number that matters; `licenses` those of all sources so far."""
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
    """What of a recipe decides what `folder` holds, apart from its inputs: `{"model.hidden_size": 64}`."""
    stage = STAGES[folder]
    settings = {}
    for key, value in _flatten(tree).items():
        is_ignored = _is_below(key, stage.ignores) or NEUTRAL.search(key)
        if _is_below(key, stage.sections) and not is_ignored:
            settings[key] = value
    return settings


def licenses_of(*folders: Path | str) -> list[str]:
    """The licences that the manifests of these folders name."""
    names = set()
    for folder in folders:
        manifest = read_manifest(Path(folder)) or {}
        names.update(manifest.get("licenses", []))
    return sorted(names)


def _read_begun(path: Path) -> dict | None:
    try:
        return json.loads((path / BEGUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists stay whole."""
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


def _flatten_items(value: Any, prefix: str = "") -> dict[str, Any]:
    """As `_flatten`, with the items of lists apart too, so that an error names the one that has changed."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {f"[{i}]": item for i, item in enumerate(value)}
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    flat = {}
    for key, item in value.items():
        separator = "." if prefix and not key.startswith("[") else ""
        flat |= _flatten_items(item, prefix + separator + key)
    return flat


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _identity(source: Path | str) -> str:
    manifest = read_manifest(Path(source))
    return manifest["digest"] if manifest else str(source)
