"""Manage the folders of one run, `runs/<name>/<folder>`: make them by their stages, and detect what is out of date."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_llm.core.console import is_main_process, print_main, terminal_width
from hf_llm.core.errors import USER_ERROR_FILE, UserError
from hf_llm.core.manifest import (
    BEGUN_FILE,
    MANIFEST_FILE,
    STEP_FILE,
    current_digest,
    digest_of,
    read_manifest,
    write_json,
    write_manifest,
)
from hf_llm.core.recipe import build_recipe, expand_tree, read_tree, to_plain
from hf_llm.core.recipe_help import help_text
from hf_llm.core.secrets import restore_variables
from hf_llm.pipeline import stage_inputs
from hf_llm.pipeline.folder_lock import LOCK_FILE, FolderLock, check_not_held
from hf_llm.pipeline.session_clock import CLOCK_FILE, SessionClock
from hf_llm.pipeline.setting_kinds import Change, is_longer, kind_of, list_changes
from hf_llm.pipeline.sizing import apply_sizing
from hf_llm.pipeline.stage_inputs import list_inputs, record_local_files
from hf_llm.pipeline.stages import DATA, MODELS, RECIPE_KEYS, STAGES, is_requested
from hf_llm.pipeline.status import STATUS
from hf_llm.pipeline.tokens_folder import require_tokenizer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RecipeClass = TypeVar("RecipeClass", bound="DataclassInstance")

FRESH = "--fresh"  # the option that renames a folder and the later ones, so that they are rebuilt
MAX_SEED = 2**32 - 1  # what numpy takes
MAX_CHANGES_SHOWN = 8  # settings that an error lists by name

# What stays in the folder of a finished training that is continued, and what stays there as a copy too.
CONTINUED = ("checkpoint-*", "logs", LOCK_FILE + "*", CLOCK_FILE, STEP_FILE)
COPIED = ("samples.jsonl", STATUS)


@dataclass
class BaseRecipe:
    """The keys at the top of a recipe that every training stage reads."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    seed: int = dataclasses.field(default=42, kw_only=True)
    """Seeds the weights, the order of the data and everything else that is random."""
    price_per_hour: float | None = dataclasses.field(default=None, kw_only=True)
    """Cost of one device for an hour; the training log then shows the cost."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; give a whole number from 0 to {MAX_SEED}")


def read_run(cls: type[RecipeClass], argv: list[str] | None = None) -> tuple["Run", RecipeClass]:
    """Parse the command line of a stage: return the run, and the recipe as the stage's class `cls`.

    `argv` is a recipe file, then overrides `--section.key=value`; `--fresh=<folder>` among them renames a folder and
    the later ones first (`Run.archive_from`). Prints the help of the stage and exits on `--help`.
    Raises UserError that lists every problem in the recipe, each with its key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "-h" in argv or "--help" in argv:
        print(help_text(cls, terminal_width()))
        sys.exit(0 if argv else 2)
    argv, fresh_folders = split_fresh(argv)
    run = Run(argv)
    recipe = run.read(cls)
    if fresh_folders:
        run.archive_for_one_launch(fresh_folders)
    return run, recipe


def split_fresh(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the recipe and its overrides, and the folders that `--fresh=<folder>` asks to rebuild."""
    remaining = []
    folders = []
    words = iter(argv)
    for word in words:
        name, equals, folder = word.partition("=")
        if name != FRESH:
            remaining.append(word)
            continue
        folder = folder if equals else next(words, "")
        if not folder:
            raise UserError(f"{FRESH} has no folder; write {FRESH}=sft to rebuild sft and what follows")
        folders.append(folder)
    return remaining, folders


class Run:
    """One pipeline run under `runs/<name>/`, named by a command line `argv` (recipe, then overrides)."""

    def __init__(self, argv: list[str] | None = None):
        self.argv = list(sys.argv[1:] if argv is None else argv)
        self.recipe_path, written = read_tree(self.argv)
        self.tree, self.derived = apply_sizing(expand_tree(written))
        self.written_tree = restore_variables(self.tree, written)
        """The same with `${NAME}` as in the recipe: what is written to files."""
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
        """Whether the recipe asks for this folder (`hf_llm.pipeline.stages.is_requested`)."""
        return is_requested(self.tree, folder)

    def resolve_source(self, path: Path | str | None) -> Path | str | None:
        """Return a model or data set that the recipe names itself: its path if it exists on this disk, else the Hub id.

        None, where the recipe names none, is returned as it is.
        """
        if path is None or not Path(path).exists():
            return path
        return Path(path)

    def is_complete(self, folder: str) -> bool:
        """Whether the folder is complete and up to date: made with this recipe's settings, from what is there now.

        A summary that is out of date is not complete, since it is made again. Raises UserError for any other folder
        that is out of date, with what has changed.
        """
        if read_manifest(self.folder(folder)) is None or self.is_longer_now(folder):
            return False
        problem = self.find_problem(folder)
        if problem is None:
            return True
        if STAGES[folder].is_summary:
            return False
        raise UserError(problem)

    def is_longer_now(self, folder: str) -> bool:
        """Whether the recipe asks for more steps than a finished training has made, and for nothing else.

        False where no checkpoint is left, from which it could be continued.
        """
        recorded = read_manifest(self.folder(folder))
        has_checkpoint = any(self.folder(folder).glob("checkpoint-*"))
        if recorded is None or folder not in MODELS or not has_checkpoint:
            return False
        changes = self._list_changes(folder, recorded)
        kinds = {change.kind for change in changes if change.kind != "free"}
        return kinds == {"horizon"} and is_longer(changes)

    def find_problem(self, folder: str, _known: dict[str, str | None] | None = None) -> str | None:
        """Return why a finished folder is out of date, and what to do; None where it is up to date.

        A folder is out of date too where one that it is made from is. What is not there cannot have changed.
        """
        known = {} if _known is None else _known
        if folder not in known:
            known[folder] = None  # while it is looked for
            known[folder] = self._find_own_problem(folder) or self._find_problem_upstream(folder, known)
        return known[folder]

    def _find_own_problem(self, folder: str) -> str | None:
        recorded = read_manifest(self.folder(folder))
        if recorded is None or self.is_longer_now(folder):
            return None
        return (
            self._describe_changes(folder, recorded)
            or self._describe_changed_inputs(folder, recorded, self._identify_inputs(folder, recorded))
            or self._describe_changed_files(folder, recorded)
        )

    def _find_problem_upstream(self, folder: str, known: dict[str, str | None]) -> str | None:
        for name, source in list_inputs(folder, self.tree).items():
            if source is not None or name not in STAGES or self.named_folder(name):
                continue
            problem = self.find_problem(name, known)
            if problem is None and self.is_longer_now(name) and not STAGES[folder].is_summary:
                section = STAGES[name].section
                problem = (
                    f"{self.folder(folder)} was made from {self.folder(name)}, which is to be trained for longer.\n"
                    f"  {self._describe_remedy(folder)}\n"
                    f"  Where the learning rate of {name} has begun to fall, add --{section}.extend=true as well."
                )
            if problem:
                return problem
        return None

    def ensure_stage(self, folder: str) -> Path | str:
        """Return the path of a folder, after running its stage in a subprocess if the folder is not complete.

        Tokens or a tokenizer that `pretrain` names are returned as they are (`named_folder`). Raises UserError with the
        command to run if several processes were launched. Exits if the stage fails.
        """
        named = self.named_folder(folder)
        if named:
            return named
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

    def named_folder(self, folder: str) -> Path | str | None:
        """Return the tokens or the tokenizer of another run that `pretrain` names, to be used instead of this run's.

        Tokens bring their tokenizer. Raises UserError where it is not at hand.
        """
        pretrain = self._pretrain_section()
        tokens = self.resolve_source(pretrain.get("tokens"))
        if folder == "tokens":
            return tokens
        if folder == "tokenizer":
            named = self.resolve_source(pretrain.get("tokenizer"))
            return named or (require_tokenizer(tokens) if tokens else None)
        return None

    def _pretrain_section(self) -> dict[str, Any]:
        section = self.tree.get("pretrain")
        return section if isinstance(section, dict) else {}

    def starting_model(self, folder: str, path: str | None = None) -> dict[str, str | None]:
        """Return the model that a post-training stage starts from, as the first entry of `inputs` for `open_stage`.

        It is the SFT model if the recipe has one, else the base model. `path` is what the recipe names instead, if any.
        """
        return stage_inputs.starting_model(folder, self.tree, path)

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

        path = self.folder(folder)
        output = StageOutput(
            path=path,
            folder=folder,
            settings=self._settings(folder),
            inputs={name: _identify_source(source) for name, source in sources.items()},
            sources=sources,
            recipe=restore_variables(to_plain(recipe), self.written_tree),
            extends=self.is_longer_now(folder),
        )
        if self._is_settled(output):
            return output

        # Two processes that write to one folder would spoil each other's files.
        if is_main_process():
            output.lock = FolderLock(path).acquire()
        else:
            check_not_held(path)
        try:
            self._begin(output)
        except BaseException:
            output.release_lock()
            raise
        return output

    def _is_settled(self, output: "StageOutput") -> bool:
        """Whether there is nothing to do in a folder. Raises UserError where it is out of date and not a summary."""
        stage = STAGES[output.folder]
        recorded = read_manifest(output.path)
        if recorded is None or output.extends or stage.restates:
            return False
        problem = (
            self._describe_changes(output.folder, recorded)
            or self._describe_changed_inputs(output.folder, recorded, output.inputs)
            or self._describe_changed_files(output.folder, recorded)
        )
        if problem and not stage.is_summary:
            raise UserError(problem)
        return problem is None

    def _begin(self, output: "StageOutput") -> None:
        """Begin a folder, or take up one that is unfinished, whose lock this process holds.

        Raises UserError where it was begun with other settings or inputs.
        """
        folder = output.folder
        manifest = read_manifest(output.path)
        if manifest and not output.extends and self._is_settled(output):
            output.release_lock()  # another process has finished it meanwhile
            return

        recorded = manifest or _read_begun(output.path)
        if manifest and STAGES[folder].is_summary:
            if not STAGES[folder].restates and is_main_process():
                kept = set_aside(output.path, keep=(LOCK_FILE + "*", *STAGES[folder].keeps))
                print_main(f"{output.path} is out of date and made again; the old one is kept as {kept.name}")
            recorded = None

        changes = []
        if recorded:
            changes = self._list_changes(folder, recorded)
            output.former_settings = [digest_of(recorded["settings"]), *recorded.get("former settings", [])]
            if not output.extends:
                problem = self._describe_changes(folder, recorded, is_begun=True) or self._describe_changed_inputs(
                    folder, recorded, output.inputs
                )
                if problem:
                    raise UserError(problem)

        if not is_main_process():
            return
        output.clock.start(manifest["seconds"] if manifest and output.extends else 0.0)
        output.local_files = record_local_files(settings_of(folder, self.tree), (recorded or {}).get("local files"))
        for change in changes:
            if change.kind == "free":
                print_main(f"{change.describe()}; a step is the same, though not to the last bit")
        if not any(change.kind == "horizon" for change in changes):
            output.write_begun()
        if not recorded:
            self._print_derived(folder)

    def archive_for_one_launch(self, folders: list[str]) -> None:
        """Call `archive_from`, which a stage may do once: not in several processes, and not in every relaunch.

        Raises UserError where this process is one of several, or may be launched again.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or USER_ERROR_FILE in os.environ:
            command = f"python -m hf_llm.run {shlex.join(self.argv)} {FRESH}={folders[0]}"
            raise UserError(
                f"{FRESH}={folders[0]}: each of several processes or launches would rename the folder again; leave it "
                f"out here, and rename {self.folder(folders[0])} yourself, or let this command do both:\n  {command}"
            )
        for folder in folders:
            self.archive_from(folder)

    def archive_from(self, first: str) -> None:
        """Rename `first` and the folders of all later stages to `<folder>.1` (or the next free number)."""
        if first not in STAGES:
            raise UserError(f"fresh: {first!r} is not a folder of a run; one of {', '.join(STAGES)}")

        for folder in self.list_dependents(first):
            path = self.folder(folder)
            if not path.exists():
                continue
            check_not_held(path)
            kept = next_free_path(path)
            path.rename(kept)
            (kept / LOCK_FILE).unlink(missing_ok=True)  # of a process that is dead
            print_main(f"{path} is kept as {kept.name}")

    def list_dependents(self, first: str) -> list[str]:
        """List `first` and the folders that are made from it, directly or not, in running order."""
        dependents = [first]
        for folder in STAGES:
            named = self._list_named_inputs(folder)
            recorded = read_manifest(self.folder(folder)) or _read_begun(self.folder(folder)) or {}
            names = {*list_inputs(folder, self.tree), *recorded.get("inputs", {})} - named
            if folder not in dependents and names.intersection(dependents):
                dependents.append(folder)
        return dependents

    def _list_named_inputs(self, folder: str) -> set[str]:
        """List the inputs of a folder that the recipe names, instead of this run's own."""
        named = set()
        for name, source in list_inputs(folder, self.tree).items():
            if source is not None or self.named_folder(name):
                named.add(name)
        return named

    def _settings(self, folder: str) -> dict[str, Any]:
        return settings_of(folder, self.written_tree)

    def _list_changes(self, folder: str, recorded: dict[str, Any]) -> list[Change]:
        """List the settings that differ between the recipe and what is recorded of a folder.

        A recorded value may be the one that a `${NAME}` of the recipe stands for: older versions wrote that.
        """
        if STAGES[folder].restates and not recorded["settings"]:
            return []  # an older version recorded none
        old = _flatten_items(recorded["settings"])
        new = _flatten_items(self._settings(folder))
        expanded = _flatten_items(settings_of(folder, self.tree))
        for key, value in old.items():
            if key in expanded and expanded[key] == value:
                new[key] = value
        return [change for change in list_changes(old, new) if not _is_ignored(change.key, folder)]

    def _describe_changes(self, folder: str, recorded: dict[str, Any], is_begun: bool = False) -> str | None:
        """Return the error for a folder that was made, or begun, with other settings; None where it was not.

        A training that has only been begun may get another length: its schedule is compared when it resumes.
        """
        tolerated = ("free", "horizon") if is_begun and folder in MODELS else ("free",)
        changed = [change for change in self._list_changes(folder, recorded) if change.kind not in tolerated]
        if not changed:
            return None

        lines = [f"{self.folder(folder)} was made with other settings:"]
        lines += [f"  {change.describe()}" for change in changed[:MAX_CHANGES_SHOWN]]
        if len(changed) > MAX_CHANGES_SHOWN:
            lines.append(f"  and {len(changed) - MAX_CHANGES_SHOWN} more")
        lines.append("  " + self._describe_remedy(folder))
        return "\n".join(lines)

    def _identify_inputs(self, folder: str, recorded: dict[str, Any]) -> dict[str, str]:
        """Return the present digests of the inputs of a folder by the recipe; the recorded one where none is known."""
        inputs = {}
        for name, named_path in list_inputs(folder, self.tree).items():
            source = self.resolve_source(named_path) or self.named_folder(name)
            if source is not None:
                inputs[name] = _identify_source(source)
            elif read_manifest(self.folder(name)) is not None:
                inputs[name] = _identify_source(self.folder(name))
            else:
                inputs[name] = recorded["inputs"].get(name, "")  # of a folder that is not there now
        return inputs

    def _describe_changed_inputs(self, folder: str, recorded: dict[str, Any], current: dict[str, str]) -> str | None:
        """Return the error for a folder whose inputs are not those recorded; None where they are."""
        old = recorded["inputs"]
        if not old:  # an older version recorded none of a report
            return self._describe_newer_inputs(folder, recorded, current) if STAGES[folder].restates else None
        changed = [name for name in old if name in current and current[name] != old[name]]
        # The folders of data are inputs by whatever recipe: where they are not recorded, nobody recorded them.
        always = () if STAGES[folder].restates else DATA
        changed += [f"{name} (new)" for name in current if name not in old and name not in always]
        changed += [f"{name} (no longer one)" for name in old if name not in current]
        return self._describe_stale(folder, changed)

    def _describe_newer_inputs(self, folder: str, recorded: dict[str, Any], current: dict[str, str]) -> str | None:
        """Return the error for a folder without recorded inputs where one of them is younger, or not there."""
        newer = []
        for name in current:
            manifest = read_manifest(self.folder(name))
            if manifest is None or manifest["created"] > recorded["created"]:
                newer.append(name)
        return self._describe_stale(folder, newer)

    def _describe_changed_files(self, folder: str, recorded: dict[str, Any]) -> str | None:
        """Return the error for a folder whose local files have changed; None where they have not, or are unknown."""
        files = recorded.get("local files")
        if not files or not is_main_process():
            return None
        settings = settings_of(folder, self.tree)
        for key in stage_inputs.list_missing_files(settings, files):
            print_main(f"{key}: no longer on this disk; {self.folder(folder)} stays as it was made from it")
        return self._describe_stale(folder, stage_inputs.list_changed_files(settings, files))

    def _describe_stale(self, folder: str, changed: list[str]) -> str | None:
        if not changed:
            return None
        return f"{self.folder(folder)}: inputs changed: {', '.join(changed)}.\n  {self._describe_remedy(folder)}"

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
    local_files: dict[str, dict] = dataclasses.field(default_factory=dict)
    """The local files it is made from, by key (`record_local_files`)."""
    extends: bool = False
    """Whether it is a finished training that the recipe asks to continue."""
    former_settings: list[str] = dataclasses.field(default_factory=list)
    """Digests of the settings that it was begun with, by which checkpoints of older versions know it."""
    lock: FolderLock | None = None

    def __post_init__(self) -> None:
        self.clock = SessionClock(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether the folder is complete. If it is, prints a line that says so, with its headline."""
        manifest = read_manifest(self.path)
        if manifest is None or self.extends:
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
        if not is_main_process():
            return
        self.clock.stop()
        if isinstance(error, UserError) and not any(self.path.glob("checkpoint-*")):
            (self.path / BEGUN_FILE).unlink(missing_ok=True)
            self.clock.remove()
        self.release_lock()

    def release_lock(self) -> None:
        """Let other processes write to the folder."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def write_begun(self) -> None:
        """Write down what the folder is being made with, for the next run. Main process only."""
        if not is_main_process():
            return
        entries = {"settings": self.settings, "inputs": self.inputs, "local files": self.local_files}
        write_json(self.path / BEGUN_FILE, {**entries, "former settings": self.former_settings})

    def accept_changes(self) -> None:
        """Begin to train with the recipe's settings, once they are known to suit the checkpoints.

        The finished model of a training that is continued is kept beside the folder.
        """
        if not is_main_process():
            return
        self.write_begun()
        if self.extends:
            kept = set_aside(self.path, keep=(*CONTINUED, BEGUN_FILE), copied=COPIED)
            print_main(f"{self.path}: the model so far is kept as {kept.name}")
            self.extends = False

    def complete(self, headline: str, licenses: list[str], **facts: Any) -> None:
        """Write the manifest. `headline` is the main result in a phrase, `licenses` are those of all sources so far."""
        if not is_main_process():
            return
        self.clock.remove()
        write_manifest(
            self.path,
            folder=self.folder,
            headline=headline,
            seconds=round(self.clock.seconds, 1),
            licenses=sorted(set(licenses)),
            settings=self.settings,
            inputs=self.inputs,
            recipe=self.recipe,
            facts=facts,
            **{"local files": self.local_files},
        )
        (self.path / BEGUN_FILE).unlink(missing_ok=True)
        self.release_lock()
        print_main(f"{self.path}: {headline}")


def settings_of(folder: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Return what in a recipe determines what `folder` holds, besides its inputs: `{"model.hidden_size": 64}`."""
    stage = STAGES[folder]
    settings = {}
    for key, value in _flatten_sections(tree).items():
        belongs = stage.restates or _is_below(key, stage.sections)
        if belongs and not _is_ignored(key, folder):
            settings[key] = value
    return settings


def next_free_path(path: Path) -> Path:
    """Return `<path>.1`, or with the next number that is free."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.{n}").exists())
    return path.with_name(f"{path.name}.{number}")


def set_aside(path: Path, keep: tuple[str, ...], copied: tuple[str, ...] = ()) -> Path:
    """Move what is in a folder to a new one beside it, and return that.

    What matches a pattern of `keep` stays; the files called `copied` are copied.
    """
    kept = next_free_path(path)
    kept.mkdir()
    # The manifest comes last: until then the old folder is the finished one.
    entries = sorted(path.iterdir(), key=lambda entry: entry.name == MANIFEST_FILE)
    for entry in entries:
        if entry.name in copied:
            shutil.copy2(entry, kept / entry.name)
        elif not any(entry.match(pattern) for pattern in keep):
            entry.rename(kept / entry.name)
    return kept


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


def _is_ignored(key: str, folder: str) -> bool:
    """Whether a setting changes nothing in what a folder holds."""
    return _is_below(key, STAGES[folder].ignores) or kind_of(key) == "free"


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    """Return whether a key is one of these sections (or keys), or lies within one."""
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _identify_source(source: Path | str) -> str:
    """Return the digest of what a finished folder holds now; the path or Hub id itself if it has no manifest."""
    return current_digest(Path(source)) or str(source)
