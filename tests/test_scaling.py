"""Scaling laws by the real command: refused where they can say nothing, fitted and checked where they can."""

import json
from pathlib import Path

import pytest

from hf_llm import scaling
from hf_llm.experiments.scaling_law import Law, NoLaw, Prediction
from hf_llm.scaling import again, row, summary
from tests.page_structure import Structure
from tests.tiny_recipe import run_module

# The dial decides shape, batch and learning rate; the steps are the same, which keeps this short.
DIAL = ("tiny.yaml", "--model=null", "--pretrain.samples.prompts=[]", "--pretrain.training.learning_rate=null")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--depth=1,2", "--predict=3"], "2 points are too few"),
        (["--depth=1,2,3", "--predict=8"], "times those of the largest training"),
        (["--depth=1,2,3", "--predict=2"], "no larger than 3"),
        (["--params=0.1M,0.2M,oops", "--predict=1M"], "'oops' does not fit"),
        (["--depth=1,2,3", "--predict=4", "--model={hidden_size: 64, num_hidden_layers: 2}"], "model.hidden_size"),
        (["--depth=1,2,3", "--predict=4", "--pretrain.training={num_train_epochs: 1}"], "num_train_epochs"),
    ],
)
def test_what_can_allow_no_prediction_is_refused_before_anything_is_made(
    tiny_inputs, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tiny_inputs)
    with pytest.raises(SystemExit) as end:
        scaling.main([*DIAL, *options])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_largest_is_predicted_from_the_smaller_ones_too():
    points = [(10.0**power, 0.6 + 1.2 * 10 ** (-0.15 * (power - 12)), f"1e{power}") for power in (11, 12, 13, 14)]
    [found] = again(points)
    assert found["name"] == "1e14, from the smaller ones"
    assert found["loss"] == pytest.approx(found["measured"], rel=0.03)
    assert found["note"] == "within the interval"
    assert again(points[1:]) == []


def test_a_prediction_that_missed_says_so():
    found = row("8M", Prediction(1e14, 1.5, 1.4, 1.6), 1.8)
    assert found["note"] == "outside the interval"
    predicted = "8M: 1.5000 bits per byte are predicted (1.4000 to 1.6000)"
    assert summary(found) == f"{predicted}; measured 1.8000, off by -16.67%."


@pytest.mark.slow
def test_small_ones_are_trained_and_the_larger_only_where_they_allow_a_prediction(tiny_inputs):
    options = ["--depth=1,2,3", "--predict=4", "--check", "--pretrain.training.max_steps=12"]
    done = run_module("hf_llm.scaling", *DIAL, *options, folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this law is not that of the best models" in done.stdout
    folder = tiny_inputs / "runs/tiny/scaling"
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = Structure((folder / "index.html").read_text(encoding="utf-8"))
    law, scores = found["law"], {variant["name"]: variant["mean"] for variant in found["variants"]}
    assert [loss for _, loss in law["points"]] == [scores["1"], scores["2"], scores["3"]]
    assert law["summary"] in page.text and page.tags.count("svg") == 3
    try:
        fitted = Law([tuple(point) for point in law["points"]])
    except NoLaw as reason:
        assert law["why"] == str(reason) and str(reason) in done.stdout
        assert "4" not in scores and not (folder / "4").exists()
        return
    [predicted] = law["predictions"]
    assert predicted["loss"] == pytest.approx(fitted.predict(predicted["flops"]).loss)
    assert predicted["measured"] == scores["4"]
