"""The jinja2 templates and styles beside this file, and those of rooms that make pages of their own."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


def html(*folders: Path) -> Environment:
    """For HTML: every value is escaped. Templates of `folders` are found too, before those here."""
    return _environment(True, *folders)


def file(name: str) -> Markup:
    """A style or script beside this file, to be put into a page as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def markdown() -> Environment:
    """For Markdown: `|cell` makes a value safe inside a table."""
    environment = _environment(False)
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", r"\|").split())
    return environment


def _environment(autoescape: bool, *folders: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader([*folders, HERE]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
