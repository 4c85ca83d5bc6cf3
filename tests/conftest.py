"""One whole life of the tiny recipe, shared by the tests of the stages."""

import pytest
from tiny_recipe import run_module, write_inputs


@pytest.fixture(scope="session")
def tiny_life(tmp_path_factory):
    """A folder where the tiny recipe's whole life has been run: `runs/tiny`. Read it, do not write to it."""
    folder = tmp_path_factory.mktemp("life")
    write_inputs(folder)
    done = run_module("hf_llm.run", "tiny.yaml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def tiny_inputs(tmp_path):
    """A fresh folder with the tiny recipe and its inputs, nothing made of it yet."""
    write_inputs(tmp_path)
    return tmp_path
