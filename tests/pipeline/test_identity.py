"""What makes a folder out of date: the whole graph of stages, with every change of something upstream."""

import os
import shutil

import pytest
import yaml

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import MANIFEST_FILE, current_digest, read_manifest, write_json
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stage_inputs import list_inputs, list_local_files
from hf_llm.pipeline.stages import STAGES

RECIPE = {
    "name": "all",
    "corpus": {"sources": [{"path": "texts", "license": "mit"}], "rules": {"perplexity": {"good": "good.txt"}}},
    "tokenizer": {"vocab_size": 64, "chat_template": "template.jinja"},
    "pretrain": {"tokens_per_step": 8, "training": {"max_steps": 2}},
    **{name: {"data": [{"path": f"{name}.jsonl", "license": "mit"}]} for name in ("sft", "reward", "dpo", "kto")},
    "grpo": {"data": [{"path": "grpo.jsonl", "license": "mit"}], "reward_functions": ["my_rewards:score"]},
    "rloo": {"data": [{"path": "rloo.jsonl", "license": "mit"}]},
    "ppo": {"data": [{"path": "ppo.jsonl", "license": "mit"}]},
    "evaluate": {"tokens": 8},
}

# What each folder of this recipe is made from, itself included, directly or not.
CHAT_MODELS = ("reward", "dpo", "kto", "grpo", "rloo", "ppo")
DOWNSTREAM = {
    "evaluation": {"evaluation", "report"},
    "ppo": {"ppo", "evaluation", "report"},
    "rloo": {"rloo", "evaluation", "report"},
    "grpo": {"grpo", "evaluation", "report"},
    "kto": {"kto", "evaluation", "report"},
    "dpo": {"dpo", "evaluation", "report"},
    "reward": {"reward", "rloo", "ppo", "evaluation", "report"},
    "sft": {"sft", *CHAT_MODELS, "evaluation", "report"},
    "base": {"base", "sft", *CHAT_MODELS, "evaluation", "report"},
    "tokens": {"tokens", "base", "sft", *CHAT_MODELS, "evaluation", "report"},
    "tokenizer": {"tokenizer", "tokens", "base", "sft", *CHAT_MODELS, "evaluation", "report"},
}
MADE = {*DOWNSTREAM, "corpus", "report"}  # all folders of this recipe
DOWNSTREAM["corpus"] = MADE


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with a run of all stages, each made of one small file."""
    folder = tmp_path_factory.mktemp("all")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("a text")
    for name in ("good.txt", "template.jinja", "my_rewards.py", *(f"{stage}.jsonl" for stage in STAGES)):
        (folder / name).write_text("x\n")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        write_recipe(RECIPE)
        make_all(Run(["all.yaml"]))
    return folder


@pytest.fixture
def made(template, tmp_path, monkeypatch):
    """A copy of the run of all stages, which a test may change."""
    shutil.copytree(template, tmp_path / "all")
    enter(tmp_path / "all", monkeypatch)
    return tmp_path / "all"


def enter(folder, patch):
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))


def write_recipe(tree):
    with open("all.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump(tree, file)


def make_all(run):
    for folder in STAGES:
        if run.is_requested(folder) and not run.is_complete(folder):
            make(run, folder)


def make(run, folder, text="x"):
    with run.open_stage(folder, inputs=list_inputs(folder, run.tree)) as output:
        (output.path / "data.txt").write_text(f"{folder} {text}")
        output.complete("1 file", licenses=["mit"])


def out_of_date(*changes):
    """The folders that are not up to date."""
    run = Run(["all.yaml", *changes])
    return {folder for folder in MADE if run.find_problem(folder) is not None}


def age(path):
    """Let a file be older than everything that is made next."""
    os.utime(path, (1, 1))


def test_a_run_is_up_to_date_as_soon_as_it_is_made_and_is_not_made_again(made):
    assert out_of_date() == set()
    before = {path: path.stat().st_mtime_ns for path in (made / "runs").rglob("*")}
    make_all(Run(["all.yaml"]))
    assert before == {path: path.stat().st_mtime_ns for path in (made / "runs").rglob("*")}


@pytest.mark.parametrize("folder", DOWNSTREAM)
def test_one_byte_changed_in_a_folder_makes_exactly_what_follows_it_stale(made, folder):
    (made / "runs/all" / folder / "data.txt").write_text(f"{folder} y")
    assert out_of_date() == DOWNSTREAM[folder] - {folder}


@pytest.mark.parametrize("folder", ["corpus", "tokenizer", "base", "sft", "reward"])
def test_a_file_added_or_removed_makes_what_follows_stale_and_its_return_repairs_it(made, folder):
    path = made / "runs/all" / folder
    (path / "added.txt").write_text("x")
    assert out_of_date() == DOWNSTREAM[folder] - {folder}
    (path / "added.txt").unlink()
    assert out_of_date() == set()
    (path / "data.txt").rename(made / "elsewhere")
    assert out_of_date() == DOWNSTREAM[folder] - {folder}
    (made / "elsewhere").rename(path / "data.txt")
    assert out_of_date() == set()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("texts/a.txt", "corpus"),
        ("good.txt", "corpus"),
        ("template.jinja", "tokenizer"),
        ("sft.jsonl", "sft"),
        ("reward.jsonl", "reward"),
        ("dpo.jsonl", "dpo"),
        ("my_rewards.py", "grpo"),
        ("ppo.jsonl", "ppo"),
    ],
)
def test_one_byte_changed_in_a_file_that_the_recipe_names_makes_its_folder_and_what_follows_stale(made, name, folder):
    old = (made / name).read_text()
    (made / name).write_text(old.replace("x", "y").replace("a text", "a test"))
    assert out_of_date() == DOWNSTREAM[folder]
    (made / name).write_text(old)  # other time stamp, same bytes
    assert out_of_date() == set()


def test_a_file_more_in_a_folder_of_texts_counts_and_one_that_is_hidden_does_not(made):
    (made / "texts" / ".cache").write_text("x")
    assert out_of_date() == set()
    (made / "texts" / "b.txt").write_text("b")
    assert out_of_date() == MADE


def test_data_that_is_no_longer_there_does_not_refuse_what_was_made_of_it(made, capsys):
    shutil.rmtree(made / "texts")
    assert out_of_date() == set()
    assert "corpus.sources[0].path: no longer on this disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "folder"),
    [
        ("--corpus.min_chars=5", "corpus"),
        ("--tokenizer.vocab_size=128", "tokenizer"),
        ("--corpus.max_epochs=2", "tokens"),
        ("--model.hidden_size=32", "base"),
        ("--sft.evaluation_share=0.2", "sft"),
        ("--ppo.training.kl_coef=0.2", "ppo"),
        ("--evaluate.tokens=16", "evaluation"),
    ],
)
def test_a_changed_setting_makes_its_folder_and_what_follows_stale(made, change, folder):
    assert out_of_date(change) == DOWNSTREAM[folder] | {"report"}


@pytest.mark.parametrize(
    ("section", "stale"),
    [
        ("sft", {*CHAT_MODELS, "evaluation", "report"}),
        ("reward", {"rloo", "ppo", "evaluation", "report"}),
        ("dpo", {"evaluation", "report"}),
    ],
)
def test_a_stage_taken_out_and_put_in_again_makes_exactly_what_follows_stale(made, section, stale):
    write_recipe({key: value for key, value in RECIPE.items() if key != section})
    assert out_of_date() - {section} == stale
    shutil.rmtree(made / "runs/all")
    make_all(Run(["all.yaml"]))
    assert out_of_date() == set()
    write_recipe(RECIPE)
    assert out_of_date() == stale


def test_a_stage_added_to_a_finished_run_makes_its_summaries_again_and_keeps_the_old_ones(made, capsys):
    shutil.rmtree(made / "runs/all")
    write_recipe({key: value for key, value in RECIPE.items() if key != "kto"})
    make_all(Run(["all.yaml"]))
    write_recipe(RECIPE)
    run = Run(["all.yaml"])
    assert not run.is_complete("evaluation") and not run.is_complete("report")
    make_all(run)
    assert "kto" in read_manifest(made / "runs/all/evaluation")["inputs"]
    assert read_manifest(made / "runs/all/report")["inputs"].keys() == MADE - {"report"}
    assert "kto" not in read_manifest(made / "runs/all/evaluation.1")["inputs"]
    assert "the old one is kept as evaluation.1" in capsys.readouterr().out
    assert out_of_date() == set()


def test_a_folder_of_data_or_a_model_that_is_stale_is_refused_with_what_changed_and_the_remedy(made):
    (made / "sft.jsonl").write_text("y\n")
    with pytest.raises(UserError, match=r"(?s)inputs changed: sft\.data\[0\]\.path.*--fresh=sft"):
        Run(["all.yaml"]).is_complete("dpo")


@pytest.mark.parametrize("folder", ["corpus", "sft", "dpo", "reward"])
def test_fresh_sets_aside_the_folder_and_what_follows_it_and_nothing_else(made, folder):
    run = Run(["all.yaml"])
    assert MADE.intersection(run.list_dependents(folder)) == DOWNSTREAM[folder]
    run.archive_from(folder)
    gone = {name for name in MADE if not (made / "runs/all" / name).exists()}
    assert gone == DOWNSTREAM[folder]
    make_all(run)
    assert out_of_date() == set()


def test_a_model_of_another_run_counts_by_its_own_digest_and_not_by_the_own_folder_of_that_name(made):
    run = Run(["all.yaml", "--name=other"])
    make_all(run)
    tree = {**RECIPE, "dpo": {**RECIPE["dpo"], "model": "runs/other/sft"}}
    write_recipe(tree)
    Run(["all.yaml"]).archive_from("dpo")
    make_all(Run(["all.yaml"]))
    (made / "runs/all/sft/data.txt").write_text("sft y")
    assert "dpo" not in {folder for folder in out_of_date() if folder not in ("evaluation", "report")}
    (made / "runs/all/sft/data.txt").write_text("sft x")
    (made / "runs/other/sft/data.txt").write_text("sft y")
    assert out_of_date() == {"dpo", "evaluation", "report"}


def test_a_copy_of_a_run_is_up_to_date_whatever_its_time_stamps(made):
    folder = made / "runs/all/base"
    age(folder / MANIFEST_FILE)
    assert current_digest(folder) == read_manifest(folder)["digest"]
    assert (folder / MANIFEST_FILE).stat().st_mtime > 1  # so that the files need not be read the next time
    assert out_of_date() == set()


def test_manifests_of_older_versions_open_and_an_old_report_is_as_old_as_it_is(made):
    for folder in MADE:
        path = made / "runs/all" / folder / MANIFEST_FILE
        manifest = read_manifest(path.parent)
        del manifest["local files"]
        if folder == "report":
            manifest |= {"inputs": {}, "settings": {}}
        manifest["settings"] |= {f"{folder}.training.gradient_checkpointing": True, "pretrain.evaluation_tokens": 5}
        write_json(path, manifest if folder != "report" else {**manifest, "settings": {}})
    assert out_of_date() == set()
    report = read_manifest(made / "runs/all/report")
    write_json(made / "runs/all/report/manifest.json", {**report, "created": "2020-01-01T00:00:00Z"})
    assert out_of_date() == {"report"}


def test_every_field_that_names_a_file_or_a_folder_is_followed():
    """Each path in a recipe of all kinds of files is listed, and nothing that is no path."""
    for key in ("path", "git", "good", "bad", "documents", "chat_template"):
        files = list_local_files({"corpus.sources": [{key: __file__, "license": __file__}]})
        assert list(files) == [f"corpus.sources[0].{key}"]
    assert list(list_local_files({"tokenizer.data": [__file__], "tokenizer.use": os.path.dirname(__file__)})) == [
        "tokenizer.data[0]",
        "tokenizer.use",
    ]
    assert list_local_files({"sft.data": [{"path": "no/such/file", "hub": __file__}]}) == {}


def test_a_finished_training_that_is_to_be_longer_is_not_complete_and_what_was_made_of_it_is_refused(made):
    longer = "--pretrain.training.max_steps=4"
    with pytest.raises(UserError, match="max_steps: was 2, is 4"):  # no checkpoint is left to go on from
        Run(["all.yaml", longer]).is_complete("base")

    (made / "runs/all/base/checkpoint-2").mkdir()
    run = Run(["all.yaml", longer])
    assert not run.is_complete("base")
    with pytest.raises(
        UserError, match=r"(?s)sft was made from runs/all/base, which is to be trained for longer.*--fresh=sft"
    ):
        run.is_complete("sft")
    with pytest.raises(UserError, match="max_steps: was 2, is 1"):
        Run(["all.yaml", "--pretrain.training.max_steps=1"]).is_complete("base")

    with run.open_stage("base", inputs=list_inputs("base", run.tree)) as output:
        assert not output.is_complete
        assert (output.path / MANIFEST_FILE).exists()  # until nothing speaks against it
        output.accept_changes()
        assert read_manifest(made / "runs/all/base.1")["settings"]["pretrain.training.max_steps"] == 2
        assert [path.name for path in sorted(output.path.iterdir())] == [
            "begun.json",
            "checkpoint-2",
            "clock.json",
            "lock.json",
        ]
        (output.path / "data.txt").write_text("base longer")
        output.complete("longer", ["mit"])
    run.archive_from("sft")
    make_all(run)
    assert out_of_date(longer) == set()
