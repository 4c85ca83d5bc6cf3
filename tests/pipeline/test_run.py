"""The life of a run: what is finished, what is out of date, what is refused."""

import json
import shlex
from dataclasses import dataclass

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.run import Run, read_run


@dataclass
class Named:
    """A stage that reads the name alone."""

    name: str


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


def test_fresh_on_a_stage_renames_its_folder_and_the_later_ones(recipe):
    run = Run([recipe])
    make(run, "corpus")
    make(run, "base")
    for words, others in ((["--fresh=base"], []), (["--fresh", "base", "--name=small"], ["--name=small"])):
        opened, _ = read_run(Named, [recipe, *words])
        assert opened.argv == [recipe, *others]
        assert (run.root / "base.1").is_dir() and (run.root / "corpus").is_dir()
        assert not (run.root / "base").exists()
    with pytest.raises(UserError, match="'bass' is not a folder of a run"):
        read_run(Named, [recipe, "--fresh=bass"])
    with pytest.raises(UserError, match="--fresh has no folder"):
        read_run(Named, [recipe, "--fresh"])


@pytest.mark.parametrize("variable", [("WORLD_SIZE", "2"), ("HF_LLM_USER_ERROR_FILE", "/tmp/x")])
def test_fresh_is_refused_where_a_launch_would_repeat_it(recipe, monkeypatch, variable):
    run = Run([recipe])
    make(run, "base")
    monkeypatch.setenv(*variable)
    with pytest.raises(UserError, match=r"python -m hf_llm\.run .*small\.yaml --fresh=base"):
        read_run(Named, [recipe, "--fresh=base"])
    assert (run.root / "base").is_dir()


def test_the_seconds_of_interrupted_sessions_count(recipe):
    run = Run([recipe])
    with pytest.raises(KeyboardInterrupt), run.open_stage("corpus") as output:
        output.clock._started -= 50
        raise KeyboardInterrupt
    with run.open_stage("corpus") as output:
        output.complete("done", licenses=[])
    manifest = read_manifest(run.root / "corpus")
    assert 50 <= manifest["seconds"] < 60 and "clock.json" not in manifest["files"]
    assert sorted(path.name for path in (run.root / "corpus").iterdir()) == ["manifest.json"]


def test_an_error_of_the_user_begins_anew(recipe):
    run = Run([recipe])
    with pytest.raises(UserError), run.open_stage("corpus"):
        raise UserError("wrong")
    assert not list((run.root / "corpus").iterdir())


def test_tokens_of_another_run_bring_their_tokenizer(recipe, tmp_path):
    theirs = tmp_path / "runs/theirs"
    for folder in ("tokens", "tokenizer"):
        (theirs / folder).mkdir(parents=True)
    (theirs / "tokens/index.json").write_text("{}")
    run = Run([recipe, "--pretrain.tokens=runs/theirs/tokens"])
    with pytest.raises(UserError, match=r"name its folder in pretrain\.tokenizer"):
        run.ensure_stage("tokenizer")
    (theirs / "tokenizer/tokenizer.json").write_text("{}")
    assert str(run.ensure_stage("tokens")) == "runs/theirs/tokens"
    assert str(run.ensure_stage("tokenizer")) == "runs/theirs/tokenizer"
    named = Run([recipe, "--pretrain.tokens=runs/theirs/tokens", "--pretrain.tokenizer=owner/name"])
    assert named.ensure_stage("tokenizer") == "owner/name"
    assert not any(run.is_requested(folder) for folder in ("corpus", "tokenizer", "tokens"))
    assert Run([recipe, "--pretrain.tokenizer=owner/name"]).is_requested("corpus")
