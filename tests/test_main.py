"""`hf-llm`: the list of commands, and their dispatch."""

import ast
import json
import os
import subprocess
import sys

import pytest

from hf_llm.__main__ import command_names, main, overview, summary_of
from tests.tiny_recipe import ROOT, run_module

MODULES = {path.stem for path in (ROOT / "src/hf_llm").glob("*.py")} - {"__init__", "__main__"}
FORWARDED = {"judge"}  # an old name that says its new one


def test_every_command_is_listed_once_with_a_line_of_its_own():
    names = command_names()
    assert len(names) == len(set(names))
    assert set(names) == MODULES - FORWARDED
    for name in names:
        assert summary_of(name)
        assert summary_of(name) in overview()


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_alone_it_lists_the_commands(capsys, arguments):
    main(arguments)
    assert capsys.readouterr().out.strip() == overview().strip()


@pytest.mark.parametrize("name", ["average_checkpoints", "average-checkpoints"])
def test_a_command_gets_the_rest_of_the_line(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "average_checkpoints" in capsys.readouterr().out


def test_an_unknown_command_is_an_error_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrian"])
    assert stop.value.code == 2
    assert "did you mean pretrain?" in capsys.readouterr().err


def test_python_m_hf_llm_is_the_same_and_imports_no_torch(tmp_path):
    done = run_module("hf_llm", "recipe", "quickstart", folder=tmp_path, forked=False)
    assert done.stdout == (ROOT / "recipes/quickstart.yaml").read_text()
    for name in ("__main__", "recipe", "configs", "core/shipped"):
        tree = ast.parse((ROOT / f"src/hf_llm/{name}.py").read_text())
        roots = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert not roots & {"torch", "transformers", "datasets"}


def test_recipe_lists_what_is_shipped_with_what_it_makes(capsys):
    main(["recipe", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list((ROOT / "recipes").rglob("*.yaml")))
    assert any(line.startswith("gpt125m ") and "125M" in line for line in lines)


def test_configs_are_written_together_and_never_over_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accelerate_configs").mkdir()
    (tmp_path / "accelerate_configs/ddp.yaml").write_text("mine")
    main(["configs"])
    assert (tmp_path / "accelerate_configs/ddp.yaml").read_text() == "mine"
    assert {p.name for p in (tmp_path / "ds_configs").iterdir()} == {p.name for p in (ROOT / "ds_configs").iterdir()}
    assert "1 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(own, tmp_path):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = f"import json, os, hf_llm; print(json.dumps({{name: os.environ.get(name) for name in {names}}}))"
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    seen = {name: value for name, value in json.loads(done.stdout).items() if value}
    assert seen == (own or {"GOMP_SPINCOUNT": "6000"})
