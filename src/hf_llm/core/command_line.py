"""Parse the options of a command: `--max_new_tokens` is `--max-new-tokens`, since the field writes both."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hf_llm.core.console import terminal_width
from hf_llm.core.help_format import wrap_text


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's formatter, for a description that is a command's docstring."""

    def __init__(self, prog: str):
        super().__init__(prog, width=terminal_width() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrap_text(text, width)


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose options may be typed with underscores in place of dashes, and whose description is the
    command's docstring."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, formatter_class=HelpFormatter, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse the options as argparse does; overrides of recipe keys stay as they are."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._replace_underscores(words), namespace)

    def _replace_underscores(self, words: list[str]) -> list[str]:
        """Write the options as they are defined. What follows `--` is a command of its own."""
        options = list(self._option_string_actions)
        end = words.index("--") if "--" in words else len(words)
        replaced = []
        for word in words[:end]:
            name, equals, value = word.partition("=")
            dashed = name.replace("_", "-")
            is_option = name.startswith("--") and any(option.startswith(dashed) for option in options)
            replaced.append(f"{dashed}{equals}{value}" if is_option else word)
        return [*replaced, *words[end:]]
