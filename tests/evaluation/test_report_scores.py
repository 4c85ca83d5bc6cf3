"""The scores of an evaluation in TensorBoard and Weights & Biases, both for real."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_llm.evaluation.benchmark import score_shares
from hf_llm.evaluation.report_scores import flatten_scores, report_scores

SCORE = score_shares("acc", [1.0, 0.0] * 8, choices=[2] * 16, is_primary=True)
MODELS = {
    "dpo": {
        "path": "runs/x/dpo",
        "perplexity": 4.0,
        "domains": {"books": {"bits_per_byte": 1.5}},
        "benchmarks": {"mmlu_anatomy": {"scores": [SCORE.to_json()], "settings": {}, "group": "mmlu"}},
        "aggregate": {"name": "centred mean of 1 task", "value": 0.25},
    }
}
NAMES = {
    "dpo/perplexity",
    "dpo/domains/books/bits_per_byte",
    "dpo/mmlu_anatomy/acc",
    "dpo/mmlu_anatomy/acc_low",
    "dpo/mmlu_anatomy/acc_high",
    "dpo/mmlu/acc",
    "dpo/mmlu/acc_low",
    "dpo/mmlu/acc_high",
    "dpo/centred mean of 1 task",
}


def test_every_score_has_one_name():
    flat = flatten_scores(MODELS)
    assert set(flat) == NAMES
    assert flat["dpo/mmlu/acc"] == flat["dpo/mmlu_anatomy/acc"] == 0.5


def test_tensorboard_has_every_score(tmp_path):
    report_scores(["tensorboard"], "x", tmp_path, MODELS)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    written = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert written == pytest.approx(flatten_scores(MODELS))


def test_wandb_has_every_score(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "logs").mkdir()
    report_scores(["wandb"], "x", tmp_path, MODELS)
    (file,) = tmp_path.glob("logs/wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert all(name.encode() in content for name in NAMES)


def test_a_tracker_that_fails_costs_nothing_else(tmp_path, capsys):
    (tmp_path / "logs").write_text("not a folder")
    report_scores(["tensorboard"], "x", tmp_path, MODELS)
    assert "tensorboard has not taken the scores" in capsys.readouterr().out
