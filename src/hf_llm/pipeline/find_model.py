"""Find the model that a command means by a run or a recipe: `runs/mine` and `mine.yaml` are the run's last model."""

import shlex
import sys
from pathlib import Path

from hf_llm.core.console import is_main_process
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import read_tree
from hf_llm.pipeline.stages import LANGUAGE_MODELS, MODELS, STAGES

MODEL_FILES = ("config.json", "adapter_config.json")
RECIPE_SUFFIXES = (".yaml", ".yml")


def find_model(name: Path | str) -> Path | str:
    """Return the model folder or Hub id that `name` means; for a run's folder or a recipe, the run's last language
    model, which is printed.

    Raises UserError where a run has no finished language model, or a folder of it is not a model.
    """
    path = Path(name)
    if path.suffix in RECIPE_SUFFIXES and path.is_file():
        _, tree = read_tree([str(path)])
        root = Path("runs") / str(tree["name"])
        if not root.is_dir():
            raise UserError(
                f"{path} has not been run: there is no {root}; run it with "
                f"python -m hf_llm.run {shlex.quote(str(path))}"
            )
        return _choose_last_model(root)
    if not path.is_dir() or is_model(path):
        return name
    if is_run(path):
        return _choose_last_model(path)

    check_is_model(path)
    return name


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, or an adapter."""
    return any((folder / file).is_file() for file in MODEL_FILES)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run: with folders of its stages, and no model itself."""
    return not is_model(folder) and any((folder / stage).is_dir() for stage in ("corpus", *MODELS))


def check_is_model(folder: Path) -> None:
    """Raise UserError for a folder of a run, or a run, that is not a model, with the models that are there."""
    if is_model(folder):
        return
    if is_run(folder):
        models = [str(folder / stage) for stage in MODELS if read_manifest(folder / stage)]
        listed = f"one of its models: {', '.join(models)}" if models else "a model; it has none yet"
        raise UserError(f"{folder} is a run and not a model; name {listed}")
    checkpoints = _list_checkpoints(folder)
    if checkpoints:
        raise UserError(
            f"{folder} is not finished, so it holds no model yet; its last checkpoint is one: {checkpoints[-1]}"
        )
    if folder.name in STAGES and is_run(folder.parent):
        holds = "a model that is not finished" if folder.name in MODELS else "no model"
        raise UserError(f"{folder} holds {holds}; {_describe_models(folder.parent)}")


def check_model_path(path: Path | str) -> None:
    """Raise UserError for a path that is not a folder and cannot be a Hub id, `owner/name` or `name`, and for a run or
    an unfinished folder of one."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        check_is_model(folder)
    looks_local = folder.is_absolute() or str(path).startswith((".", "~", "runs/")) or len(folder.parts) > 2
    if not folder.is_dir() and looks_local:
        raise UserError(f"there is no folder {path}; name one made by a stage, such as runs/<name>/base, or a Hub id")


def default_output(source: Path | str, suffix: str) -> Path:
    """Return the folder beside a model where what is made of it goes by default; of a Hub id, in the current folder."""
    path = Path(source)
    name = f"{path.resolve().name if path.is_dir() else path.name}-{suffix}"
    return path.parent / name if path.is_dir() else Path(name)


def _choose_last_model(root: Path) -> Path:
    finished = [stage for stage in LANGUAGE_MODELS if read_manifest(root / stage)]
    if not finished:
        begun = [stage for stage in LANGUAGE_MODELS if (root / stage).is_dir()]
        if begun:
            check_is_model(root / begun[-1])
        raise UserError(f"{root} has no finished model; run its recipe with python -m hf_llm.run first")

    model = root / finished[-1]
    if is_main_process():
        others = [str(root / stage) for stage in finished[:-1]]
        also = f" (also: {', '.join(others)})" if others else ""
        print(f"{root}: its last model is {model}{also}", file=sys.stderr)
    return model


def _describe_models(root: Path) -> str:
    models = [str(root / stage) for stage in MODELS if read_manifest(root / stage)]
    return f"the models of this run are {', '.join(models)}" if models else "this run has no finished model yet"


def _list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a training that hold a model, by step."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and is_model(path)]
    return sorted(checkpoints, key=lambda path: int(path.name[11:]))
