"""Scaling laws by the real command: refused where they can predict nothing, fitted and checked where they can."""

import json
from pathlib import Path

import pytest

from hf_llm import scaling
from hf_llm.experiments.scaling_law import NoLaw, Prediction, ScalingLaw
from hf_llm.scaling import describe_prediction, predict_largest, summarize_prediction
from tests.page_structure import Structure
from tests.tiny_recipe import run_module

# Sizing derives shape, batch and learning rate; the steps are the same, which keeps this short.
SIZED = ("tiny.yaml", "--model=null", "--pretrain.samples.prompts=[]", "--pretrain.training.learning_rate=null")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--depth=1,2", "--predict=3"], "2 points are too few"),
        (["--depth=1,2,3", "--predict=8"], "times those of the largest training"),
        (["--depth=1,2,3", "--predict=2"], "not larger than 3"),
        (["--params=0.1M,0.2M,oops", "--predict=1M"], "'oops' does not fit"),
        (["--depth=1,2,3", "--predict=4", "--model={hidden_size: 64, num_hidden_layers: 2}"], "model.hidden_size"),
        (["--depth=1,2,3", "--predict=4", "--pretrain.training={num_train_epochs: 1}"], "num_train_epochs"),
    ],
)
def test_sizes_that_allow_no_prediction_are_refused_before_anything_is_made(
    tiny_inputs, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tiny_inputs)
    with pytest.raises(SystemExit) as end:
        scaling.main([*SIZED, *options])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_largest_is_predicted_from_the_smaller_ones_too():
    points = [(10.0**power, 0.6 + 1.2 * 10 ** (-0.15 * (power - 12)), f"1e{power}") for power in (11, 12, 13, 14)]
    [prediction] = predict_largest(points)
    assert prediction["name"] == "1e14, from the smaller ones"
    assert prediction["loss"] == pytest.approx(prediction["measured"], rel=0.03)
    assert prediction["note"] == "within the interval"
    assert predict_largest(points[1:]) == []


def test_a_prediction_that_missed_is_described_as_such():
    prediction = describe_prediction("8M", Prediction(1e14, 1.5, 1.4, 1.6), 1.8)
    assert prediction["note"] == "outside the interval"
    sentence = "8M: predicted 1.5000 bits per byte (1.4000 to 1.6000); measured 1.8000, an error of -16.67%."
    assert summarize_prediction(prediction) == sentence


@pytest.mark.slow
def test_the_larger_size_is_trained_only_where_the_small_ones_allow_a_prediction(tiny_inputs):
    options = ["--depth=1,2,3", "--predict=4", "--check", "--pretrain.training.max_steps=12"]
    done = run_module("hf_llm.scaling", *SIZED, *options, folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the law is not that of compute-optimal models" in done.stdout
    folder = tiny_inputs / "runs/tiny/scaling"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = Structure((folder / "index.html").read_text(encoding="utf-8"))
    law = results["law"]
    scores = {variant["name"]: variant["mean"] for variant in results["variants"]}
    assert [loss for _, loss in law["points"]] == [scores["1"], scores["2"], scores["3"]]
    assert law["summary"] in page.text and page.tags.count("svg") == 3
    try:
        fitted = ScalingLaw([tuple(point) for point in law["points"]])
    except NoLaw as reason:
        assert law["why"] == str(reason) and str(reason) in done.stdout
        assert "4" not in scores and not (folder / "4").exists()
        return
    [predicted] = law["predictions"]
    assert predicted["loss"] == pytest.approx(fitted.predict(predicted["flops"]).loss)
    assert predicted["measured"] == scores["4"]
