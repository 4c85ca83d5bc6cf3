"""The report: one file that loads nothing, escapes everything, and copes with what is missing."""

import json
import re
import shutil

import pytest

from hf_llm.core.manifest import write_json
from hf_llm.reporting.plan_accuracy import save_prediction
from hf_llm.reporting.run_page import render_run_page
from tests.page_structure import Structure

TOKEN = "hf_" + "Qx7" * 11


@pytest.fixture(scope="module")
def text(run):
    return render_run_page(run.root, run.tree)


def test_the_page_is_whole_and_loads_nothing(text):
    structure = Structure(text)
    assert structure.addresses == ["corpus.html"]
    assert not re.search(r"https?://|@import|url\(", text)
    assert structure.tags.count("script") == 1


def test_every_stage_is_in_the_table_and_unfinished_ones_are_marked(text):
    words = " ".join(Structure(text).text.split())
    assert "82 documents, 0.8 MB" in words
    assert "loss 3.2 on held-out answers" in words
    assert "dpo not finished" in words


def test_each_training_has_its_charts(text):
    titles = re.findall(r"<figcaption>\s*<b>([^<]*)</b>", text)
    rest = ["Learning rate", "Gradient norm", "Gradient norm by part", "Tokens per second", "Memory, GiB"]
    base = ["Loss", "Bits per byte on the validation text", *rest]
    assert titles == [*base, "Loss", "Bits per byte on held-out answers", *rest]


def test_alerts_are_shown_and_escaped(text):
    words = " ".join(Structure(text).text.split())
    assert "Alerts 1 12 loss spike: <b>9.1</b>, usual is 4.2" in words


def test_samples_and_answers_are_shown_and_escaped(text):
    words = " ".join(Structure(text).text.split())
    assert "The <b>list</b> …" in words
    assert "is & is" in words
    assert "(nothing)" in words
    assert "<script>alert('base')</script>" in words
    assert "<script>alert" not in text
    assert "A list is mutable." in words


def test_numbers_sources_licences_and_recipe_are_there(text):
    words = " ".join(Structure(text).text.split())
    for wanted in (
        "bits per byte on the test split (base; lower is better) 1.731",
        "median MFU against a measured peak",
        "tokens per second",
    ):
        assert wanted in words
    for wanted in (
        "HuggingFaceFW/fineweb-edu sample-10BT odc-by",
        "language reference 1,090 0.9 MB 82 0.8 MB",
        "train 70 (0.7 MB)",
        "tokens_per_step: 64",
        "cc-by-4.0",
    ):
        assert wanted in words


def test_a_secret_in_the_recipe_does_not_reach_the_page(run):
    tree = {**run.tree, "push": {"hub_token": "hidden-by-key"}, "note": f"use {TOKEN}"}
    text = render_run_page(run.root, tree)
    assert "hidden-by-key" not in text
    assert TOKEN not in text
    assert "note: use" in text


def test_predicted_numbers_are_shown_beside_actual_ones(run, tmp_path):
    shutil.copytree(run.root / "base", tmp_path / "base")
    assert "Predicted and actual" not in render_run_page(tmp_path, run.tree)
    save_prediction(tmp_path, run.tree, {"hours": 61.25 / 3600 / 2})
    assert "hours 0.008507 0.01701 -50%" in " ".join(Structure(render_run_page(tmp_path, run.tree)).text.split())


@pytest.mark.parametrize("kept", [[], ["corpus"], ["corpus", "tokenizer", "tokens"], ["base"], ["sft", "evaluation"]])
def test_a_page_can_be_rendered_of_any_part_of_a_run(run, tmp_path, kept):
    for folder in kept:
        shutil.copytree(run.root / folder, tmp_path / folder)
    words = " ".join(Structure(render_run_page(tmp_path, run.tree)).text.split())
    assert "tiny" in words
    assert words.count("not finished") == 7 - len(kept)


def test_a_training_without_a_log_says_so(run, tmp_path):
    shutil.copytree(run.root / "base", tmp_path / "base")
    (tmp_path / "base" / "trainer_state.json").unlink()
    assert "No training log in base." in render_run_page(tmp_path, run.tree)


def test_the_page_says_of_the_test_split_what_was_checked(run, tmp_path):
    words = " ".join(Structure(render_run_page(run.root, run.tree)).text.split())
    apart = "The pretraining of base and sft read the train split of this corpus"
    assert apart in words
    assert "No model was trained on the test split" not in words

    # Scores of a model of another run, and of one that was made from other tokens.
    root = shutil.copytree(run.root, tmp_path / "tiny")
    results = json.loads((root / "evaluation" / "results.json").read_text())
    results["models"]["base"]["path"] = "runs/other/base"
    write_json(root / "evaluation" / "results.json", results)
    words = " ".join(Structure(render_run_page(root, run.tree)).text.split())
    assert "Whether text of the test split is in the training data of base is not known." in words
    assert "The pretraining of sft read" in words


def test_the_answers_at_the_top_are_those_of_the_last_model(run, tmp_path):
    root = tmp_path / "answered"
    shutil.copytree(run.root, root)
    results = json.loads((root / "evaluation/results.json").read_text())
    for name, right in zip(results["models"], (0.25, 0.75), strict=False):
        results["models"][name] |= {"answered_right": right, "questions": 80}
    last = list(results["models"])[-1]
    assert results["models"][last]["answered_right"] == 0.75
    write_json(root / "evaluation/results.json", results)
    words = " ".join(Structure(render_run_page(root, run.tree)).text.split())
    assert f"of the questions answered right ({last}; 60 of 80 questions) 75.0%" in words
