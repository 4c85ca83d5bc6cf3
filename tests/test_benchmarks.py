"""The scripts of benchmarks/ use the package as it is."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_recipe import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def import_name(module: str, name: str) -> Any:
    """What `from module import name` gives: a name of the module, or a module in it."""
    imported = importlib.import_module(module)
    return getattr(imported, name) if hasattr(imported, name) else importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_is_there_and_takes_what_it_is_given(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imported = {}
    of_other_packages = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_llm"):
            for alias in node.names:
                imported[alias.asname or alias.name] = import_name(str(node.module), alias.name)
        elif isinstance(node, ast.ImportFrom):
            of_other_packages.update(alias.asname or alias.name for alias in node.names)

    for node in ast.walk(tree):
        is_named_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if not is_named_call or node.func.id not in imported or node.func.id in of_other_packages:
            continue
        signature = inspect.signature(imported[node.func.id])
        is_spread = any(isinstance(argument, ast.Starred) for argument in node.args)
        is_spread = is_spread or any(keyword.arg is None for keyword in node.keywords)
        bind = signature.bind_partial if is_spread else signature.bind
        positional = [None for argument in node.args if not isinstance(argument, ast.Starred)]
        bind(*positional, **{keyword.arg: None for keyword in node.keywords if keyword.arg})
