"""The folders of one run, `runs/<name>/<folder>`: which stage makes each, and when one is finished or out of date."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import BEGUN, digest_of, read_manifest, write_json, write_manifest
from hf_llm.core.recipe import plain, read_derived


@dataclass(frozen=True)
class Stage:
    """A module that makes one folder: the recipe sections it obeys and the folders it reads."""

    module: str
    sections: tuple[str, ...] = ()  # or single keys of one, as section.key
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()  # keys of its sections that change nothing of what it makes


CLEAR = "\r\x1b[2K"  # a terminal's line under the cursor
MOST_CHANGES = 8  # named in an error
MIX = ("corpus.shares", "corpus.max_epochs", "corpus.max_tokens", "corpus.curriculum")

# folder -> the stage that makes it, in running order
STAGES = {
    "corpus": Stage("hf_llm.prepare_data", ("corpus",), (), (*MIX, "corpus.executor", "corpus.cluster")),
    "tokenizer": Stage("hf_llm.train_tokenizer", ("tokenizer", "corpus.shares"), ("corpus",)),
    "tokens": Stage("hf_llm.tokenize_corpus", MIX, ("corpus", "tokenizer")),
    "base": Stage("hf_llm.pretrain", ("model", "pretrain", "seed"), ("tokens", "tokenizer")),
    "sft": Stage("hf_llm.sft", ("sft", "seed"), ("base",)),
    "reward": Stage("hf_llm.reward", ("reward", "seed"), ("base", "sft")),
    "dpo": Stage("hf_llm.dpo", ("dpo", "seed"), ("base", "sft")),
    "kto": Stage("hf_llm.kto", ("kto", "seed"), ("base", "sft")),
    "grpo": Stage("hf_llm.grpo", ("grpo", "seed"), ("base", "sft", "reward")),
    "rloo": Stage("hf_llm.rloo", ("rloo", "seed"), ("base", "sft", "reward")),
    "ppo": Stage("hf_llm.ppo", ("ppo", "seed"), ("base", "sft", "reward")),
    "evaluation": Stage("hf_llm.evaluate", ("evaluate",), ("base", "sft", "dpo", "kto", "grpo", "rloo", "ppo")),
    "report": Stage("hf_llm.report", (), ("corpus", "base", "evaluation")),
}
ALIGNED = ("dpo", "kto", "grpo", "rloo", "ppo")  # folders of chat models that were taught what people prefer
GENERATORS = ("base", "sft", *ALIGNED)  # folders of models that write text
TRAINED = (*GENERATORS, "reward")  # folders of models
OPTIONAL = ("sft", "reward", *ALIGNED)  # made where the recipe has their section

# Keys of a `training` section that change what is logged, kept or sent, never what is learnt.
NEUTRAL = re.compile(
    r"\.training\.(logging_.*|eval_(steps|strategy|delay|on_start)|save_.*|resume_from_checkpoint"
    r"|report_to|run_name|project|trackio_.*|push_to_hub|hub_.*|disable_tqdm|log_level.*"
    r"|dataloader_(num_workers|pin_memory|prefetch_factor|persistent_workers))$"
    r"|\.samples(\.|$)"
)


def is_main_process() -> bool:
    """Whether this process is the first of its launch (it alone writes and prints)."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print a line, once for all processes of a launch; on a terminal in place of a progress line that stands there."""
    if is_main_process():
        print((CLEAR if sys.stdout.isatty() else "") + message, flush=True)


class Run:
    """One model's whole life under `runs/<name>/`, seen from the command line `argv` (recipe, then overrides)."""

    def __init__(self, argv: list[str] | None = None):
        self.argv = list(sys.argv[1:] if argv is None else argv)
        _, self.tree, self.derived = read_derived(self.argv)
        self.name = str(self.tree["name"])
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", self.name):  # a/b is a run that belongs to the run a
            raise UserError(f"name: {self.name!r} cannot name a folder; use letters, digits, '.', '-' and '_'")
        self.root = Path("runs") / self.name

    def __getattr__(self, folder: str) -> Path:
        if folder in STAGES:
            return self.root / folder
        raise AttributeError(folder)

    def has(self, folder: str) -> bool:
        """Whether the recipe asks for this folder."""
        return folder not in OPTIONAL or folder in self.tree

    def given(self, path: str | None) -> Path | str | None:
        """A folder or Hub id that the recipe names itself, instead of one of this run."""
        if path is None or not Path(path).exists():
            return path
        return Path(path)

    def is_finished(self, folder: str) -> bool:
        """Whether the folder is finished, with these settings and from what its inputs hold now.

        Raises UserError where it was made with other settings.
        """
        manifest = read_manifest(self.root / folder)
        if manifest is None:
            return False
        self._check(folder)
        changed = [name for name, digest in manifest["inputs"].items() if self._digest(name, digest) != digest]
        if changed:
            raise UserError(f"{self.root / folder} was made from another {changed[0]}.\n  {self._remedy(folder)}")
        return True

    def _digest(self, folder: str, otherwise: str) -> str:
        manifest = read_manifest(self.root / folder)
        return manifest["digest"] if manifest and folder in STAGES else otherwise

    def require(self, folder: str) -> Path:
        """The finished folder. Makes it first where this is the only process; with several, says how and stops."""
        path = self.root / folder
        if self.is_finished(folder):
            return path
        stage = STAGES[folder]
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            command = f"python -m {stage.module} {shlex.join(self.argv)}"
            raise UserError(
                f"{path} is missing and several processes were launched; make it first, in one:\n  {command}"
            )
        say(f"{path} is missing: making it first with {stage.module}")
        done = subprocess.run([sys.executable, "-m", stage.module, *self.argv], check=False)
        if done.returncode:
            sys.exit(done.returncode)
        return path

    def model_before(self, folder: str) -> str:
        """The folder of the model that a stage starts from: SFT's where the recipe asks for it, else the base model."""
        return "sft" if folder != "sft" and self.has("sft") else "base"

    def begin(self, folder: str, recipe: Any = None, **inputs: Path | str) -> "Making":
        """Start, go on with, or find finished `runs/<name>/<folder>`, made of the `inputs` (folders or Hub ids).

        `recipe` is what the stage has read of the recipe, kept in the manifest with its defaults filled in. At the
        start it says what the recipe's dial has chosen for this folder, and why.

        Raises UserError where the folder was begun with other settings or inputs.
        """
        self._check(folder)
        path = self.root / folder
        identities = {name: _identity(source) for name, source in inputs.items()}
        making = Making(path, folder, settings_of(folder, self.tree), identities, plain(recipe))
        before = read_manifest(path) or _read_begun(path)
        if before:
            changed = [key for key, value in making.inputs.items() if before["inputs"].get(key, value) != value]
            if changed:
                raise UserError(f"{path} was made from another {changed[0]}.\n  {self._remedy(folder)}")
        elif is_main_process():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / BEGUN, {"settings": making.settings, "inputs": making.inputs})
            self._say_derived(folder)
        return making

    def _say_derived(self, folder: str) -> None:
        for key, reason in self.derived.items():
            if _is_below(key, STAGES[folder].sections):
                *sections, name = key.split(".")
                value = reduce(getitem, sections, self.tree)[name]
                say(f"{key} {f'{value:,}' if isinstance(value, int) else value}: {reason}")

    def _check(self, folder: str) -> None:
        path = self.root / folder
        before = read_manifest(path) or _read_begun(path)
        if not before:
            return
        old, new = _itemised(before["settings"]), _itemised(settings_of(folder, self.tree))
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            lines = [f"  {key}: was {_shown(old, key)}, is {_shown(new, key)}" for key in changed[:MOST_CHANGES]]
            if len(changed) > MOST_CHANGES:
                lines.append(f"  and {len(changed) - MOST_CHANGES} more")
            raise UserError("\n".join([f"{path} was made with other settings:", *lines, "  " + self._remedy(folder)]))

    def _remedy(self, folder: str) -> str:
        command = f"python -m hf_llm.run {shlex.join(self.argv)} --fresh={folder}"
        return (
            f"Give this run another name (--name=...), take the change back, or make {folder} and what follows anew, "
            f"the old folders kept beside them:\n  {command}"
        )

    def set_aside(self, first: str) -> None:
        """Rename `first` and every folder made after it to `<folder>.1` (or the next free number)."""
        if first not in STAGES:
            raise UserError(f"fresh: {first!r} is no folder of a run; one of {', '.join(STAGES)}")
        order = list(STAGES)
        for folder in order[order.index(first) :]:
            path = self.root / folder
            if path.exists():
                number = next(n for n in range(1, 10_000) if not path.with_name(f"{folder}.{n}").exists())
                path.rename(path.with_name(f"{folder}.{number}"))
                say(f"{path} is kept as {folder}.{number}")


@dataclass
class Making:
    """A folder under way, for the length of a `with` block: its settings and inputs, and the manifest that ends it."""

    path: Path
    folder: str
    settings: dict[str, Any]  # as the recipe gives them
    inputs: dict[str, str]
    recipe: dict[str, Any] | None = None  # with the defaults

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether the folder is finished; says so where it is."""
        manifest = read_manifest(self.path)
        if manifest is not None:
            if is_main_process():
                (self.path / BEGUN).unlink(missing_ok=True)  # left by a run that was killed after its last write
            say(f"{self.path} is finished ({manifest['headline']})")
        return manifest is not None

    @property
    def key(self) -> str:
        """A digest of settings and inputs: equal keys mean equal results."""
        return digest_of([self.settings, self.inputs])

    def __enter__(self) -> "Making":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        """After a fault of the input let the next run begin with other settings, unless training has come to a save."""
        if isinstance(error, UserError) and not any(self.path.glob("checkpoint-*")) and is_main_process():
            (self.path / BEGUN).unlink(missing_ok=True)

    def finish(self, headline: str, licenses: list[str], **facts: Any) -> None:
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
        (self.path / BEGUN).unlink(missing_ok=True)
        say(f"{self.path}: {headline}")


def settings_of(folder: str, tree: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe decides what `folder` holds, its inputs apart: `{"model.hidden_size": 64}`."""
    stage = STAGES[folder]
    return {
        key: value
        for key, value in _flat(tree).items()
        if _is_below(key, stage.sections) and not _is_below(key, stage.ignores) and not NEUTRAL.search(key)
    }


def licenses_of(*folders: Path | str) -> list[str]:
    """The licences the manifests of these folders name."""
    return sorted({name for folder in folders for name in (read_manifest(Path(folder)) or {}).get("licenses", [])})


def _read_begun(path: Path) -> dict | None:
    try:
        return json.loads((path / BEGUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _itemised(value: Any, where: str = "") -> dict[str, Any]:
    """Flat settings with the items of lists told apart, so that an error names the one that has changed."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {f"[{i}]": item for i, item in enumerate(value)}
    if not isinstance(value, dict) or (where and not value):
        return {where: value}
    found = {}
    for key, item in value.items():
        found |= _itemised(item, where + (f".{key}" if where and not key.startswith("[") else key))
    return found


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def _is_below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _identity(source: Path | str) -> str:
    manifest = read_manifest(Path(source))
    return manifest["digest"] if manifest else str(source)


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or (not value and where):
        return {where: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{where}.{key}" if where else key).items()}
