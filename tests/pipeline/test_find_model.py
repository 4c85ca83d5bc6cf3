"""The model that a run, a recipe or a folder means."""

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import write_manifest
from hf_llm.pipeline.find_model import check_is_model, default_output, find_model


def make_stage(folder, is_model=True, is_finished=True):
    folder.mkdir(parents=True)
    if is_model:
        (folder / "config.json").write_text("{}")
    if is_finished:
        write_manifest(folder, folder=folder.name)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """runs/mine with a base and an SFT model; DPO has begun."""
    monkeypatch.chdir(tmp_path)
    for name, is_model in (("corpus", False), ("tokens", False), ("base", True), ("sft", True)):
        make_stage(tmp_path / "runs/mine" / name, is_model)
    (tmp_path / "runs/mine/tokens/tokenizer").mkdir()
    make_stage(tmp_path / "runs/mine/dpo", is_model=False, is_finished=False)
    (tmp_path / "mine.yaml").write_text("corpus: {}\n")
    (tmp_path / "other.yaml").write_text("name: mine\n")
    return tmp_path / "runs/mine"


@pytest.mark.parametrize("name", ["runs/mine", "mine.yaml", "other.yaml"])
def test_a_run_or_its_recipe_means_its_last_finished_model(run, name, capsys):
    assert str(find_model(name)) == "runs/mine/sft"
    assert "runs/mine: its last model is runs/mine/sft (also: runs/mine/base)" in capsys.readouterr().err


def test_a_reward_model_is_not_a_language_model(run):
    make_stage(run / "reward")
    assert str(find_model("runs/mine")) == "runs/mine/sft"


@pytest.mark.parametrize("name", ["runs/mine/base", "owner/name", "gpt2"])
def test_a_model_or_a_hub_id_is_itself(run, name, capsys):
    assert find_model(name) == name
    assert not capsys.readouterr().err


def test_an_unfinished_stage_names_its_last_checkpoint(run):
    for step in (5, 10, 9):
        make_stage(run / f"dpo/checkpoint-{step}", is_finished=False)
    with pytest.raises(UserError, match=r"dpo is not finished, .* its last checkpoint is one: .*checkpoint-10"):
        find_model(run / "dpo")
    for stage in ("base", "sft"):
        (run / stage / "manifest.json").unlink()
    with pytest.raises(UserError, match="checkpoint-10"):
        find_model(run)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs/mine/corpus", "holds no model; the models of this run are runs/mine/base, runs/mine/sft"),
        ("runs/mine/tokens", "holds no model; the models of this run are runs/mine/base, runs/mine/sft"),
        ("runs/mine/dpo", "holds a model that is not finished"),
    ],
)
def test_a_folder_without_a_model_names_those_there_are(run, name, words):
    with pytest.raises(UserError, match=words):
        find_model(name)


def test_what_has_not_been_run_says_so(run, tmp_path):
    (tmp_path / "new.yaml").write_text("corpus: {}\n")
    with pytest.raises(UserError, match=r"new\.yaml has not been run: there is no runs/new"):
        find_model("new.yaml")
    (tmp_path / "runs/new/corpus").mkdir(parents=True)
    with pytest.raises(UserError, match="runs/new has no finished model"):
        find_model("new.yaml")


def test_a_run_where_one_model_is_needed_lists_its_models(run):
    with pytest.raises(UserError, match=r"is a run and not a model; name one of its models: .*base, .*sft"):
        check_is_model(run)


def test_results_go_beside_the_model(run):
    assert str(default_output("runs/mine/sft", "export")) == "runs/mine/sft-export"
    assert str(default_output("owner/name", "export")) == "name-export"
