"""The life of a run: what is finished, what is out of date, what is refused."""

import json
import shlex

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.run import Run


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text("corpus: {min_chars: 1}\ntokenizer: {vocab_size: 64}\npretrain: {training: {max_steps: 2}}\n")
    return str(path)


def make(run, folder, text="x", **inputs):
    making = run.open_stage(folder, inputs=inputs)
    (making.path / "data.txt").write_text(text)
    making.complete("1 file", licenses=["mit"])


def test_a_finished_folder_is_found_finished(recipe, capsys):
    run = Run([recipe])
    assert not run.is_complete("corpus")
    make(run, "corpus")
    assert run.is_complete("corpus")
    assert Run([recipe]).open_stage("corpus").is_complete
    assert "runs/small/corpus is complete (1 file)" in capsys.readouterr().out
    manifest = read_manifest(run.root / "corpus")
    assert manifest["files"].keys() == {"data.txt"}
    assert manifest["licenses"] == ["mit"]
    assert manifest["versions"]["torch"]


def test_changed_settings_are_refused_with_old_and_new_value(recipe):
    make(Run([recipe]), "corpus")
    with pytest.raises(UserError, match=r"(?s)corpus\.min_chars: was 1, is 5.*--fresh=corpus"):
        Run([recipe, "--corpus.min_chars=5"]).open_stage("corpus")


def test_settings_that_change_no_result_may_change(recipe):
    run = Run([recipe])
    make(run, "corpus")
    make(run, "tokenizer", corpus=run.root / "corpus")
    make(run, "base")
    assert Run([recipe, "--pretrain.training.logging_steps=1"]).is_complete("base")
    with pytest.raises(UserError, match="max_steps"):
        Run([recipe, "--pretrain.training.max_steps=9"]).is_complete("base")


def test_a_folder_made_from_another_input_is_refused(recipe):
    run = Run([recipe])
    make(run, "corpus")
    make(run, "tokenizer", corpus=run.root / "corpus")
    run.archive_from("corpus")
    assert (run.root / "tokenizer.1").exists()
    make(run, "corpus", "y")
    (run.root / "tokenizer.1").rename(run.root / "tokenizer")
    with pytest.raises(UserError, match="inputs changed: corpus"):
        run.is_complete("tokenizer")


def test_a_folder_begun_with_other_settings_is_refused(recipe):
    Run([recipe]).open_stage("corpus")
    with pytest.raises(UserError, match="was made with other settings"):
        Run([recipe, "--corpus.min_chars=5"]).open_stage("corpus")


def test_with_several_processes_a_missing_input_is_an_error_that_names_the_command(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"python -m hf_llm\.prepare_data .*small\.yaml"):
        Run([recipe]).ensure_stage("corpus")


def test_a_command_that_is_shown_can_be_pasted(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as error:
        Run([recipe, "--corpus.shares={one: 3, two: 1}"]).ensure_stage("corpus")
    assert shlex.split(str(error.value).splitlines()[-1])[-1] == "--corpus.shares={one: 3, two: 1}"


@pytest.mark.parametrize("name", ["../evil", "/etc", "", "a//b", "a/../b", "a/", ".hidden"])
def test_a_name_that_leaves_the_folder_is_refused(recipe, name):
    with pytest.raises(UserError, match="cannot name a folder"):
        Run([recipe, f"--name={json.dumps(name)}"])


def test_setting_aside_keeps_everything(recipe):
    run = Run([recipe])
    make(run, "corpus")
    run.archive_from("corpus")
    make(run, "corpus", "second")
    run.archive_from("corpus")
    assert (run.root / "corpus.1" / "data.txt").read_text() == "x"
    assert (run.root / "corpus.2" / "data.txt").read_text() == "second"
    with pytest.raises(UserError, match="not a folder of a run"):
        run.archive_from("corpora")
