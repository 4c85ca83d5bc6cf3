"""Print a recipe that comes with hf_llm, to be changed and run.

hf-llm recipe quickstart > my.yaml
hf-llm recipe --list
"""

import sys
import textwrap
from shutil import get_terminal_size

from hf_llm.core.errors import UserError, command
from hf_llm.core.help_format import print_help
from hf_llm.core.shipped import describe_recipe, find_recipe, shipped_recipes


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--list"]:
        print_recipes()
    elif not argv or "-h" in argv or "--help" in argv:
        print_help(__doc__)
    elif len(argv) > 1:
        raise UserError(f"one recipe at a time; got {' '.join(argv)}")
    else:
        print(find_recipe(argv[0]).read_text(encoding="utf-8"), end="")


def print_recipes() -> None:
    """Print every shipped recipe with what it makes, one to a line."""
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        description = describe_recipe(path)
        if sys.stdout.isatty():
            description = textwrap.shorten(description, get_terminal_size().columns - width - 2, placeholder=" ...")
        print(f"{name:<{width}}  {description}")


if __name__ == "__main__":
    main()
