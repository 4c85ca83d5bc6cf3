"""Trainings of many variants, one after the other: each a run of its own, on data that they share where it is alike.

    runs/<name>/<into>/<variant>/seed-<n>/    recipe.yaml, base/, and links to corpus/, tokenizer/ and tokens/
    runs/<name>/<into>/data/<digest>/         corpus, tokenizer, tokens of variants whose recipe asks for other ones

What is finished is skipped, what was interrupted goes on, and what fails does not keep the others from being trained.
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
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import dump_yaml, parse_yaml
from hf_llm.experiments.variants import PREPARED, PRETRAINING, Variant, has_data
from hf_llm.pipeline.run import Run, settings_of
from hf_llm.pipeline.stages import STAGES
from hf_llm.training.fault_tolerance.launch import gpu_count, run_stage
from hf_llm.training.fault_tolerance.supervisor import RECORD

T = TypeVar("T")

RECIPE = "recipe.yaml"
TOLD_TO_STOP = (130, 143)


@dataclass(frozen=True)
class Training:
    """One pretraining: a variant with a seed, in its own folder."""

    variant: Variant
    seed: int
    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def tree(self) -> dict[str, Any]:
        name = self.root.relative_to("runs").as_posix()
        return {**self.variant.tree, "name": name, "seed": self.seed}

    @property
    def failure(self) -> str:
        """Why it has ended without a model, as its supervisor noted it; empty where it has not been tried."""
        record = self.base / RECORD
        attempts = json.loads(record.read_text(encoding="utf-8"))["attempts"] if record.exists() else []
        return " ".join(attempts[-1]["reason"].split()) if attempts else ""


def trainings(run: Run, into: str, variants: list[Variant], seeds: list[int]) -> list[Training]:
    """Every variant with every seed, seed by seed, so that what is there is comparable when it is interrupted."""
    folder = run.root / into
    return [Training(v, seed, folder / v.name / f"seed-{seed}") for seed in seeds for v in variants]


def check_standing(planned: list[Training], into: str) -> None:
    """Raise UserError where a training was begun with other settings than now."""
    for training in planned:
        path = training.root / RECIPE
        if not path.exists():
            continue
        old, new = settings_below(parse_yaml(path.read_text(encoding="utf-8"))), settings_below(training.tree)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            lines = [f"  {key}: was {old.get(key, 'not set')}, is {new.get(key, 'not set')}" for key in changed[:8]]
            raise UserError(
                "\n".join([f"{training.root} was made with other settings:", *lines])
                + f"\n  Keep it and write beside it (--into {into}-2), take the change back, or delete {training.root}"
            )


def settings_below(tree: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe decides what its pretraining learns."""
    return {key: value for folder in PRETRAINING for key, value in settings_of(folder, tree).items()}


def prepare(run: Run, variants: list[Variant]) -> None:
    """Make the corpora, tokenizers and tokens that the variants need; ends this program where one cannot be made."""
    if has_data(variants[0].tree):
        return
    needed = {variant.tree["name"]: variant.tree for variant in reversed(variants)}
    trees = {run.name: run.tree, **needed}
    for name in reversed(needed):
        argv = run.argv if name == run.name else [str(write_recipe(Path("runs") / name, trees[name]))]
        for number, folder in enumerate(PREPARED, 1):
            path = Path("runs") / name / folder
            twin = next((other for other in trees if other != name and are_alike(trees, other, name, number)), None)
            if twin and not path.exists():
                link(path, Path("runs") / twin / folder)
            elif not Run(argv).is_complete(folder):
                code = run_stage(folder, argv)
                if code:
                    print_main(
                        f"\n{STAGES[folder].module} stopped (exit code {code}); the same command goes on from there"
                    )
                    sys.exit(code)


def are_alike(trees: dict[str, dict[str, Any]], other: str, name: str, number: int) -> bool:
    """Whether the run `other` holds the first `number` of PREPARED finished, by the settings that `name` asks for."""
    folders = PREPARED[:number]
    finished = all(read_manifest(Path("runs") / other / folder) for folder in folders)
    return finished and all(settings_of(f, trees[other]) == settings_of(f, trees[name]) for f in folders)


def train(planned: list[Training], after_each: Callable[[], None]) -> int:
    """Train what is not finished. Returns how many failed; ends this program where it is told to stop."""
    failed = 0
    for number, training in enumerate(planned, 1):
        argv = [str(write_recipe(training.root, training.tree))]
        if not has_data(training.tree):
            for folder in PREPARED:
                link(training.root / folder, Path("runs") / training.variant.tree["name"] / folder)
        title = f"{training.variant.name}, seed {training.seed} ({number} of {len(planned)})"
        if Run(argv).is_complete("base"):
            print_main(f"{title}: finished")
            continue
        print_main(f"\n== {title} ==")
        code = run_stage("base", argv)
        if code in TOLD_TO_STOP:
            print_main("stopped; the same command goes on from there")
            sys.exit(code)
        if code:
            print_main(f"{title} failed (exit code {code}); the others are trained all the same")
            failed += 1
        after_each()
    return failed


def write_recipe(root: Path, tree: dict[str, Any]) -> Path:
    """Write a run's own recipe into its folder, so that every command works on it. Returns its path."""
    root.mkdir(parents=True, exist_ok=True)
    path, text = root / RECIPE, dump_yaml(tree)
    assert parse_yaml(text) == tree
    write_text(path, text)
    return path


def link(path: Path, target: Path) -> None:
    """Let `path` stand for the folder `target`, wherever both are moved together."""
    if not path.is_symlink():
        path.symlink_to(os.path.relpath(target, path.parent))


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own: after PyTorch's threads have run, none can be forked from this one."""
    with ProcessPoolExecutor(1, get_context("spawn" if gpu_count() or sys.platform != "linux" else "fork")) as pool:
        return pool.submit(function, *arguments).result()


def is_finished(training: Training) -> bool:
    """Whether its model is there."""
    return read_manifest(training.base) is not None
