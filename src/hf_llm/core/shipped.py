"""The files that come with hf_llm: its recipes, and the configs of accelerate and DeepSpeed.

A wheel holds them in `hf_llm/shipped/` (setup.py copies them there); a checkout, at its top.
"""

import difflib
from importlib.resources import files
from pathlib import Path

from hf_llm.core.errors import UserError

SHIPPED_FOLDERS = ("recipes", "accelerate_configs", "ds_configs")


def shipped_folder(name: str) -> Path:
    """The folder `name` of SHIPPED_FOLDERS that came with this installation."""
    package = Path(str(files("hf_llm")))
    in_wheel = package / "shipped" / name
    if in_wheel.is_dir():
        return in_wheel
    return package.parent.parent / name


def shipped_recipes() -> dict[str, Path]:
    """Every recipe that came with hf_llm by its name, those of `recipes/` first, then `recipes/examples/`."""
    folder = shipped_folder("recipes")
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("examples/*.yaml"))]
    return {path.stem: path for path in paths}


def find_recipe(name: str) -> Path:
    """The recipe file that a command line names: a path, or without one the name of a shipped recipe.

    A file of that name in the current folder wins over a shipped recipe. Raises UserError where there is neither, with
    the nearest name there is.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():  # a file, or a pipe
        return path
    is_bare_name = path.parent == Path(".") and not path.suffix
    if is_bare_name:
        beside = path.with_suffix(".yaml")
        if beside.is_file():
            return beside
        recipes = shipped_recipes()
        if name in recipes:
            return recipes[name]
        near = difflib.get_close_matches(name, recipes, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "`hf-llm recipe --list` prints the shipped recipes"
        raise UserError(f"no recipe file {beside} here, and none is shipped by the name {name!r}; {hint}")
    near = difflib.get_close_matches(str(path), [str(p) for p in Path("recipes").rglob("*.yaml")], 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"no recipe at {path}{hint}")


def describe_recipe(path: Path) -> str:
    """The comment at the top of a recipe that says what it makes: the lines after the command."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
