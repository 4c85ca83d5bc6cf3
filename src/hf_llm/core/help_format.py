"""Print a command's docstring as its help, wrapped to the width of the terminal between words."""

import textwrap

from hf_llm.core.console import terminal_width


def wrap_text(text: str, width: int) -> str:
    """Wrap the paragraphs of a docstring to `width` columns. Indented lines, which are commands, stay as they are."""
    wrapped = []
    paragraph: list[str] = []
    for line in [*text.strip().splitlines(), ""]:
        if line.strip() and not line.startswith(" "):
            paragraph.append(line.strip())
            continue
        if paragraph:
            wrapped.append(fill_words(" ".join(paragraph), width))
            paragraph = []
        wrapped.append(line.rstrip())
    return "\n".join(wrapped).strip()


def fill_words(text: str, width: int, indent: str = "", further_indent: str = "") -> str:
    """Break a text into lines of at most `width` columns, between words only."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=further_indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_help(docstring: str | None) -> None:
    """Print a command's docstring."""
    print(wrap_text(docstring or "", terminal_width()))
