"""Find the files that come with hf_llm: its recipes, and the configs of accelerate and DeepSpeed.

An installed wheel has them in `hf_llm/shipped/` (setup.py copies them there); a git checkout has them at its top.
"""

from importlib.resources import files
from pathlib import Path

from hf_llm.core.errors import UserError
from hf_llm.core.similar_names import suggest_names

SHIPPED_FOLDERS = ("recipes", "accelerate_configs", "ds_configs")


def shipped_folder(name: str) -> Path:
    """Return the path of the folder `name`, one of SHIPPED_FOLDERS, in this installation."""
    package = Path(str(files("hf_llm")))
    in_wheel = package / "shipped" / name
    if in_wheel.is_dir():
        return in_wheel
    return package.parent.parent / name


def shipped_recipes() -> dict[str, Path]:
    """Return the path of every shipped recipe by name: those in `recipes/`, then those in `recipes/examples/`."""
    folder = shipped_folder("recipes")
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("examples/*.yaml"))]
    return {path.stem: path for path in paths}


def find_recipe(name: str) -> Path:
    """Find the recipe file for an argument of the command line, which is a path or the name of a shipped recipe.

    `<name>.yaml` in the current folder takes precedence over a shipped recipe. Raises UserError if there is neither,
    with the most similar name that exists.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():  # a file, or a pipe
        return path
    is_bare_name = path.parent == Path(".") and not path.suffix
    if is_bare_name:
        in_current_folder = path.with_suffix(".yaml")
        if in_current_folder.is_file():
            return in_current_folder

        recipes = shipped_recipes()
        if name in recipes:
            return recipes[name]
        hint = suggest_names(name, recipes, "`hf-llm recipe --list` prints the shipped recipes")
        raise UserError(f"no recipe file {in_current_folder} here, and none is shipped by the name {name!r}; {hint}")

    existing_paths = [str(recipe) for recipe in Path("recipes").rglob("*.yaml")]
    hint = suggest_names(path, existing_paths, "`hf-llm recipe --list` prints the shipped recipes")
    raise UserError(f"no recipe at {path}; {hint}")


def describe_recipe(path: Path) -> str:
    """Return the comment at the top of a recipe that says what it makes.

    The first line, which is the command to run, is skipped.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
