"""The jinja2 templates beside this file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def html() -> Environment:
    """For HTML: every value is escaped."""
    return _environment(autoescape=True)


def markdown() -> Environment:
    """For Markdown: `|cell` makes a value safe inside a table."""
    environment = _environment(autoescape=False)
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", r"\|").split())
    return environment


def _environment(autoescape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
