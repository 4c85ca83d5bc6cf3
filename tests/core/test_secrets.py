"""Secrets that a recipe takes from the environment stay out of all that is written."""

import json

import pytest
import yaml

from hf_llm.core import secrets
from hf_llm.core.manifest import read_manifest, write_json
from hf_llm.core.secrets import expand_variables, hide_secrets, restore_variables
from hf_llm.experiments.train_variants import write_recipe
from hf_llm.pipeline.run import Run
from hf_llm.reporting.secrets import redact_secrets

VALUES = {
    "HUB_PAT": "a-personal-access",
    "MY_PASSWORD": "correct horse battery",
    "DB_URL_X": "9f8e7d6c5b4a39281706f5e4",
    "SHORT_KEY": "abc",
    "DATA": "/data/corpora",
    "SIZE": "128",
    "WORD": "tokenizer",
}


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setattr(secrets, "_secrets", {})
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "is_hidden"),
    [
        *[("HUB_PAT", True), ("MY_PASSWORD", True), ("DB_URL_X", True)],
        *[("SHORT_KEY", False), ("DATA", False), ("SIZE", False), ("WORD", False)],
    ],
)
def test_a_value_that_looks_secret_is_replaced_by_its_name_wherever_it_stands(name, is_hidden):
    expand_variables({"key": f"${{{name}}}"})
    text = {"a": [f"before {VALUES[name]} after"], VALUES[name]: 1}
    hidden = {"a": [f"before ${{{name}}} after"], f"${{{name}}}": 1}
    assert hide_secrets(text) == (hidden if is_hidden else text)


def test_the_tree_is_restored_as_it_was_written_whatever_was_filled_in():
    written = {"a": "${DATA}/x", "b": [{"c": "${SIZE}", "d": 1}], "e": 2}
    filled = {"a": "/data/corpora/x", "b": [{"c": 128, "d": 1, "default": 3}], "e": 2, "f": 5}
    assert restore_variables(filled, written) == {
        "a": "${DATA}/x",
        "b": [{"c": "${SIZE}", "d": 1, "default": 3}],
        "e": 2,
        "f": 5,
    }


def test_no_file_of_a_folder_holds_the_value_of_a_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "corpus": {"sources": [{"git": "https://ada:${HUB_PAT}@host/x", "license": "mit"}, {"hub": "${SHORT_KEY}"}]},
        "sft": {
            "data": [{"path": "${DATA}/chats", "license": "${MY_PASSWORD}"}],
            "training": {"run_name": "${DB_URL_X}"},
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    run = Run(["r.yaml"])
    assert run.tree["corpus"]["sources"][0]["git"] == "https://ada:a-personal-access@host/x"
    for folder in ("corpus", "sft"):
        with run.open_stage(folder, run.tree) as output:
            begun = (output.path / "begun.json").read_text()
            output.complete(f"from {VALUES['HUB_PAT']}", ["mit"], arguments={"run_name": VALUES["DB_URL_X"]})
        written = begun + (output.path / "manifest.json").read_text()
        assert not [name for name, value in VALUES.items() if name not in ("SIZE", "WORD") and value in written]
        assert "${" in begun
    assert read_manifest(output.path)["settings"]["sft.data"][0]["path"] == "${DATA}/chats"
    assert read_manifest(output.path)["recipe"]["sft"]["training"] == {"run_name": "${DB_URL_X}"}

    assert Run(["r.yaml"]).is_complete("sft")
    monkeypatch.setenv("MY_PASSWORD", "another one, as after a rotation")
    assert Run(["r.yaml"]).is_complete("sft")


def test_a_folder_of_an_older_version_which_wrote_the_values_is_still_up_to_date(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("sft: {data: [{path: '${DATA}/chats', license: mit}]}\n")
    with Run(["r.yaml"]).open_stage("sft") as output:
        output.complete("done", ["mit"])
    manifest = read_manifest(output.path)
    manifest["settings"]["sft.data"][0]["path"] = "/data/corpora/chats"
    write_json(output.path / "manifest.json", manifest)
    assert Run(["r.yaml"]).is_complete("sft")


def test_recipes_of_variants_and_pages_name_the_variable(tmp_path):
    tree = expand_variables({"name": "x", "corpus": {"git": "https://${HUB_PAT}@host"}})
    assert "${HUB_PAT}" in write_recipe(tmp_path, tree).read_text()
    assert redact_secrets(json.dumps(tree)).count("${HUB_PAT}") == 1
