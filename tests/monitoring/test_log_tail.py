"""Reading what a training writes while it writes."""

import json
import time

import pytest
from transformers import TrainerCallback

from hf_llm.core.errors import UserError
from hf_llm.core.jsonl import metrics_file, replace_rows
from hf_llm.core.manifest import write_json
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.log_tail import RunLog, Tail, TrainingLog
from hf_llm.monitoring.terminal_view import draw_curve, render_runs
from tests.monitoring.made_up_run import write_made_up_run
from tests.monitoring.tiny_training import Rows


def write(path, text, mode="a"):
    with open(path, mode) as file:
        file.write(text)


def test_tail_reads_a_line_once_it_is_complete(tmp_path):
    tail = Tail(tmp_path / "x.jsonl")
    tail.read()
    assert (tail.rows, tail.generation) == ([], 0)
    write(tail.path, '{"step": 1}\n{"step": 2, "te')
    tail.read()
    assert tail.rows == [{"step": 1}]
    write(tail.path, 'xt": "é"}\n')
    tail.read()
    tail.read()
    assert tail.rows == [{"step": 1}, {"step": 2, "text": "é"}]
    assert tail.generation == 0


def test_tail_skips_a_line_that_is_not_json(tmp_path):
    tail = Tail(tmp_path / "x.jsonl")
    write(tail.path, '{"step": 1}\n{"step": 2, "te{"step": 3}\n[1]\n{"step": 4}\n')
    tail.read()
    assert tail.rows == [{"step": 1}, {"step": 4}]


def test_tail_starts_over_when_a_resume_replaces_the_file(tmp_path):
    tail = Tail(tmp_path / "x.jsonl")
    replace_rows(tail.path, [{"step": step} for step in range(5)])
    tail.read()
    replace_rows(tail.path, [{"step": step} for step in range(3)])
    tail.read()
    assert [row["step"] for row in tail.rows] == [0, 1, 2]
    write(tail.path, '{"step": 3}\n')
    tail.read()
    assert len(tail.rows) == 4
    assert tail.generation == 1
    tail.path.unlink()
    tail.read()
    assert (tail.rows, tail.generation) == ([], 2)


def test_training_log_follows_a_training_step_by_step(make_trainer, tmp_path):
    log, steps = TrainingLog(tmp_path / "out"), []

    class Follow(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            log.read()
            steps.append((state.global_step, log.status()["step"], log.status()["state"]))

    trainer = make_trainer(Rows([8] * 8, 8), max_steps=5)
    attach_callbacks(trainer)
    trainer.add_callback(Follow())
    trainer.train()
    assert steps == [(step, step, "running") for step in range(5)]


def test_status_is_the_last_one_written_and_finished_with_a_manifest(tmp_path):
    base = write_made_up_run(tmp_path / "x") / "base"
    log = TrainingLog(base)
    log.read()
    assert log.status()["state"] == "silent"  # its last entry is of long ago
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(base / "run_status.json", {"status": "running", "step": 1234, "time": now})
    assert (log.status()["state"], log.status()["step"]) == ("running", 1234)
    assert time.time() - log.status()["seen"] < 5
    write_json(base / "run_status.json", {"status": "failed", "step": 1300, "time": now, "error": "no space left"})
    assert (log.status()["state"], log.status()["error"]) == ("failed", "no space left")
    (base / "manifest.json").write_text(json.dumps({"headline": "0.97 bits per byte"}))
    assert (log.status()["state"], log.status()["headline"]) == ("finished", "0.97 bits per byte")


def test_run_log_lists_trainings_in_running_order_and_new_ones_as_they_begin(tmp_path):
    run = RunLog(write_made_up_run(tmp_path / "x"))
    run.read()
    assert list(run.trainings) == ["base", "sft"]
    assert run.current.name == "base"
    first = run.trainings["base"]
    metrics_file(tmp_path / "x" / "dpo").parent.mkdir(parents=True)
    metrics_file(tmp_path / "x" / "dpo").write_text(json.dumps({"training": {"started": time.time()}}) + "\n")
    run.read()
    assert list(run.trainings) == ["base", "sft", "dpo"]
    assert run.trainings["base"] is first
    assert run.current.name == "dpo"


def test_run_log_accepts_the_folder_of_one_training(tmp_path):
    run = RunLog(write_made_up_run(tmp_path / "x") / "base")
    run.read()
    assert (run.name, list(run.trainings)) == ("x/base", ["base"])


def test_a_missing_folder_is_an_error_that_names_the_most_similar(tmp_path):
    (tmp_path / "gpt125m").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*gpt125m"):
        RunLog(tmp_path / "gpt12m")


def test_render_runs_shows_numbers_curves_alerts_and_samples(tmp_path):
    text = render_runs([RunLog(write_made_up_run(tmp_path / "gpt125m"))], 100)
    lines = text.splitlines()
    assert lines[0] == "gpt125m"
    assert max(map(len, lines)) <= 100
    for wanted in (
        "step 1,200/2,000  60%  ETA 17 min  loss ",
        "evaluation  val 3.069",
        "!! step 700: loss spike: 5.912, usual is 3.614 ± 0.021",
        "[step 1,200] The capital of France is ▸Paris, and its river <script>",
        "███",
        "ETA 17 min",
    ):
        assert wanted in text
    (tmp_path / "new").mkdir()
    assert "nothing has been trained yet" in render_runs([RunLog(tmp_path / "new")], 80)


def test_draw_curve_scales_to_the_range_and_limits_the_length():
    assert draw_curve([3.0, 2.0, 1.0, 0.0]) == "█▆▃▁"
    assert draw_curve([1.0, 1.0]) == "▁▁"
    assert len(draw_curve(list(map(float, range(1000))))) == 48
