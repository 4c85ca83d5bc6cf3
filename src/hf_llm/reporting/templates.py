"""Load the jinja2 templates and styles of this folder, and those of other folders that render pages."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_llm.core.format import format_megabytes, one_line

FOLDER = Path(__file__).parent


def html_environment(*folders: Path) -> Environment:
    """Build the environment for HTML: every value is escaped. Templates in `folders` come before those here.

    `|size` writes a number of bytes in a unit that fits it.
    """
    return _build_environment(folders, autoescape=True)


def markdown_environment() -> Environment:
    """Build the environment for Markdown: `|cell` makes a value safe inside a table."""
    environment = _build_environment((), autoescape=False)
    environment.filters["cell"] = _escape_cell
    return environment


def read_asset(name: str) -> Markup:
    """Read a style or script from this folder, to be put into a page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _escape_cell(value: object) -> str:
    return one_line(str(value).replace("|", r"\|"))


def _build_environment(folders: tuple[Path, ...], autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([*folders, FOLDER]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = format_megabytes
    return environment
