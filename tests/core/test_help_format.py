"""Help in terminals of any width: lines end between words, and commands stay on one line."""

import importlib
import textwrap

import pytest

from hf_llm.__main__ import command_names
from hf_llm.core.help_format import wrap_text

DOCSTRING = """Turn one thing into another, as this first line says at some length, so that it has to be wrapped.

    python -m hf_llm.stage recipe.yaml --section.key=value --section.other_key=another_value

A second paragraph
on two lines.
"""


def test_paragraphs_are_wrapped_and_commands_are_not():
    lines = wrap_text(DOCSTRING, 40).splitlines()
    command = DOCSTRING.splitlines()[2]
    assert command in lines
    assert all(len(line) <= 40 for line in lines if line != command)
    assert lines[-1] == "A second paragraph on two lines."
    assert " ".join(" ".join(lines).split()) == " ".join(DOCSTRING.split())


@pytest.mark.parametrize("name", [name for name in command_names() if name not in ("recipe", "configs")])
def test_every_help_fits_in_eighty_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"hf_llm.{name}").main(["--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    usage = lines.index("")  # argparse wraps it, between options only
    too_long = [line for line in lines[usage:] if len(line) > 80 and len(line.split()) > 2]
    commands = [line for line in too_long if line.startswith("    ") and "-m " in textwrap.dedent(line)]
    assert too_long == commands


def test_watch_lists_its_commands_one_a_line(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("hf_llm.watch").main(["--help"])
    assert "\n    python -m hf_llm.watch runs/quickstart\n" in capsys.readouterr().out
