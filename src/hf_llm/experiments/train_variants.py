"""Train many variants, one after the other: each is a separate run, and variants with the same data share them.

    runs/<name>/<into>/<variant>/seed-<n>/    recipe.yaml, base/, and links to corpus/, tokenizer/ and tokens/
    runs/<name>/<into>/data/<digest>/         corpus, tokenizer, tokens of variants whose recipe asks for other data

Finished trainings are skipped, interrupted ones are resumed, and one that fails does not stop the others.
"""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from hf_llm.core.atomic_io import write_text
from hf_llm.core.console import print_main
from hf_llm.core.errors import USER_ERROR_CODE, UserError
from hf_llm.core.format import one_line
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import dump_yaml, parse_yaml
from hf_llm.core.secrets import hide_secrets
from hf_llm.experiments.variants import PRETRAINING, Variant, has_data
from hf_llm.pipeline.run import Run, settings_of
from hf_llm.pipeline.stages import DATA, STAGES
from hf_llm.training.fault_tolerance.launch import can_fork, gpu_count, run_stage
from hf_llm.training.fault_tolerance.supervisor import RECORD_FILE
from hf_llm.training.step_choice import BY_RULE

T = TypeVar("T")

RECIPE_FILE = "recipe.yaml"
INTERRUPTED_EXIT_CODES = (130, 143)  # SIGINT and SIGTERM
MAX_CHANGES_SHOWN = 8


@dataclass(frozen=True)
class Training:
    """One pretraining: a variant with a seed, in its own folder."""

    variant: Variant
    seed: int
    root: Path

    @property
    def base(self) -> Path:
        """The folder of the trained model."""
        return self.root / "base"

    @property
    def tree(self) -> dict[str, Any]:
        """The recipe of this training: the variant's, with this training's name and seed."""
        name = self.root.relative_to("runs").as_posix()
        return {**self.variant.tree, "name": name, "seed": self.seed}

    @property
    def failure(self) -> str:
        """Why the last attempt ended without a model, as its supervisor noted; empty where there was none."""
        record = self.base / RECORD_FILE
        if not record.exists():
            return ""
        attempts = json.loads(record.read_text(encoding="utf-8"))["attempts"]
        if not attempts:
            return ""
        return one_line(attempts[-1]["reason"])


def list_trainings(run: Run, into: str, variants: list[Variant], seeds: list[int]) -> list[Training]:
    """List every variant with every seed, seed by seed, so that an interrupted experiment can be compared already."""
    folder = run.root / into
    trainings = []
    for seed in seeds:
        trainings += [Training(variant, seed, folder / variant.name / f"seed-{seed}") for variant in variants]
    return trainings


def check_same_settings(trainings: list[Training], into: str) -> None:
    """Raise UserError where a training was begun with other settings than now."""
    for training in trainings:
        path = training.root / RECIPE_FILE
        if not path.exists():
            continue
        old = pretraining_settings(parse_yaml(path.read_text(encoding="utf-8")))
        new = pretraining_settings(training.tree)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if not changed:
            continue

        lines = [f"{training.root} was made with other settings:"]
        for key in changed[:MAX_CHANGES_SHOWN]:
            lines.append(f"  {key}: was {old.get(key, 'not set')}, is {new.get(key, 'not set')}")
        lines.append(f"  Keep it and use another folder (--into {into}-2), undo the change, or delete {training.root}")
        raise UserError("\n".join(lines))


def pretraining_settings(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that determine the pretrained model, by full key."""
    settings = {}
    for folder in PRETRAINING:
        settings |= settings_of(folder, tree)
    return settings


def prepare_data(run: Run, variants: list[Variant]) -> None:
    """Make the corpora, tokenizers and tokens that the variants need.

    A folder that another of these runs holds with the same settings is linked. Ends this program with the stage's exit
    code where a stage fails.
    """
    if has_data(variants[0].tree):
        return
    # Run that holds the data -> a variant's recipe; variants that share a run all have the same data settings.
    needed = {variant.tree["name"]: variant.tree for variant in reversed(variants)}
    trees = {run.name: run.tree, **needed}

    for name in reversed(needed):
        data_run = run
        if name != run.name:
            data_run = Run([str(write_recipe(Path("runs") / name, trees[name]))])
        for index, folder in enumerate(DATA):
            path = Path("runs") / name / folder
            twin = _find_twin(trees, name, DATA[: index + 1])
            if twin and not path.exists():
                link_folder(path, Path("runs") / twin / folder)
            elif not data_run.is_complete(folder):
                _run_data_stage(data_run, folder)


def _run_data_stage(run: Run, folder: str) -> None:
    exit_code = run_stage(run, folder)
    if exit_code:
        remedy = "correct what the error names" if exit_code == USER_ERROR_CODE else "the same command resumes"
        print_main(f"\n{STAGES[folder].module} stopped (exit code {exit_code}); {remedy}")
        sys.exit(exit_code)


def _find_twin(trees: dict[str, dict[str, Any]], name: str, folders: tuple[str, ...]) -> str | None:
    """Find another run that holds these folders, finished, by the settings that `name` asks for."""
    for other, other_tree in trees.items():
        if other == name:
            continue
        is_finished = all(read_manifest(Path("runs") / other / folder) for folder in folders)
        if is_finished and all(settings_of(f, other_tree) == settings_of(f, trees[name]) for f in folders):
            return other
    return None


def train_variants(trainings: list[Training], after_each: Callable[[], None]) -> int:
    """Run the trainings that are not finished, with a call of `after_each` after each. Returns how many failed.

    Ends this program where it is interrupted.
    """
    os.environ[BY_RULE] = "1"  # variants of other shapes would choose another precision
    failed = 0
    for number, training in enumerate(trainings, 1):
        run = Run([str(write_recipe(training.root, training.tree))])
        if not has_data(training.tree):
            for folder in DATA:
                link_folder(training.root / folder, Path("runs") / training.variant.tree["name"] / folder)

        title = f"{training.variant.name}, seed {training.seed} ({number} of {len(trainings)})"
        if run.is_complete("base"):
            print_main(f"{title}: finished")
            continue

        print_main(f"\n== {title} ==")
        exit_code = run_stage(run, "base")
        if exit_code in INTERRUPTED_EXIT_CODES:
            print_main("interrupted; the same command resumes")
            sys.exit(exit_code)
        if exit_code:
            print_main(f"{title} failed (exit code {exit_code}); the others are still trained")
            failed += 1
        after_each()
    return failed


def write_recipe(root: Path, tree: dict[str, Any]) -> Path:
    """Write a run's own recipe into its folder, so that every command works on it. Returns its path.

    A secret that came from a `${NAME}` of the first recipe is written as `${NAME}` again.
    """
    tree = hide_secrets(tree)
    text = dump_yaml(tree)
    assert parse_yaml(text) == tree
    root.mkdir(parents=True, exist_ok=True)
    path = root / RECIPE_FILE
    write_text(path, text)
    return path


def link_folder(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`, relative so that both can be moved together."""
    if not path.is_symlink():
        path.symlink_to(os.path.relpath(target, path.parent))


def run_in_subprocess(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in another process, so that this one runs no PyTorch threads, after which it must not fork."""
    start_method = "fork" if can_fork() and not gpu_count() else "spawn"
    with ProcessPoolExecutor(1, get_context(start_method)) as pool:
        return pool.submit(function, *arguments).result()


def is_finished(training: Training) -> bool:
    """Whether its model is complete."""
    return read_manifest(training.base) is not None
