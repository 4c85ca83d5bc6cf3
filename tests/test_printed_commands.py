"""Commands that are printed to be copied work with any path: what is put into them is quoted for the shell."""

import ast
import re
from pathlib import Path

import pytest

import hf_llm

PACKAGE = Path(hf_llm.__file__).parent
COMMAND = re.compile(r"\b(python -m hf_llm\.|hf upload |accelerate launch )")

# What may be put in as it is: names of ours, and what has been quoted before.
PLAIN = re.compile(
    r"stage\.module|program|FRESH|folder|folders\[0\]|\w+_command|launch|launch_command|quoted_\w+|trainer\.args\.n_gpu"
)


def unquoted_values(source: str) -> list[str]:
    """What the f-strings with a command put in after it that is not quoted."""
    values = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        is_command = False
        for part in node.values:
            if isinstance(part, ast.Constant):
                is_command = is_command or COMMAND.search(part.value) is not None
            elif is_command:
                value = ast.unparse(part.value)
                if not value.startswith("shlex.") and not PLAIN.fullmatch(value):
                    values.append(value)
    return values


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("""f'{name}: run python -m hf_llm.run {path} {shlex.quote(other)}'""", ["path"]),
        ("""f'{name} is missing'""", []),
    ],
)
def test_unquoted_values_are_found(source, values):
    assert unquoted_values(source) == values


def test_every_printed_command_quotes_what_it_holds():
    unquoted = {str(path.relative_to(PACKAGE)): unquoted_values(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {name: values for name, values in unquoted.items() if values} == {}
