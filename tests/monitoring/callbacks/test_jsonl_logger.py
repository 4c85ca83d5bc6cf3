"""`logs/metrics.jsonl`: every number while it trains, each step once whatever happens."""

import json

import pytest
from transformers import TrainerCallback

from hf_llm.core.jsonl import append_row, metrics_file, read_rows, truncate_after_step
from hf_llm.monitoring.attach import attach_callbacks
from tests.monitoring.tiny_training import Rows


class InterruptAt(TrainerCallback):
    """Interrupts the training at a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_attached_trainer(make_trainer, **settings):
    rows = Rows([8] * 8, 8)
    shared = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4, "max_steps": 10}
    trainer = make_trainer(rows, rows, **{**shared, **settings})
    attach_callbacks(trainer, bytes_per_token=3.0, price_per_hour=2.0)
    return trainer


def test_the_file_holds_every_log_entry_while_it_trains(make_trainer, tmp_path):
    seen = []

    class ReadFile(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            rows = read_rows(metrics_file(args.output_dir))
            seen.append((state.global_step, rows[-1].get("step", 0), len(rows)))

    trainer = make_attached_trainer(make_trainer)
    trainer.add_callback(ReadFile())
    trainer.train()
    assert [step for step, last, _ in seen if step != last] == []
    facts, *rows = read_rows(metrics_file(tmp_path / "out"))
    assert facts["training"]["max_steps"] == 10
    assert facts["training"]["processes"] == 1
    without_time = [{key: value for key, value in row.items() if key != "time"} for row in rows]
    assert without_time == trainer.state.log_history
    assert all(row["time"] > facts["training"]["started"] - 1 for row in rows)
    entry = next(row for row in rows if "loss" in row)
    wanted = {"loss", "grad_norm", "learning_rate", "perplexity", "tokens_per_second", "tokens_seen", "memory_gib"}
    wanted |= {"memory_now_gib", "epoch", "eta_seconds", "device_hours", "cost", "grad_norm/attention"}
    assert wanted <= set(entry)


def test_a_resumed_training_has_each_step_once(make_trainer, tmp_path):
    path = metrics_file(tmp_path / "out")
    trainer = make_attached_trainer(make_trainer)
    trainer.add_callback(InterruptAt(7))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    before = {(row["step"], "loss" in row): row for row in read_rows(path)[1:]}
    assert max(step for step, _ in before) == 7
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    trainer = make_attached_trainer(make_trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    rows = read_rows(path)[1:]
    losses = [row["step"] for row in rows if "loss" in row]
    assert losses == list(range(1, 11))
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 6, 8, 10]
    assert all(row == before[row["step"], "loss" in row] for row in rows if row["step"] <= 4)  # with their times
    assert [row["tokens_seen"] for row in rows if "loss" in row] == [16 * step for step in losses]
    assert next(row for row in rows if row["step"] == 5)["device_hours"] >= before[7, True]["device_hours"]


def test_a_new_training_in_the_same_folder_replaces_the_file(make_trainer, tmp_path):
    for _ in range(2):
        make_attached_trainer(make_trainer, max_steps=2).train()
    assert [row["step"] for row in read_rows(metrics_file(tmp_path / "out")) if "loss" in row] == [1, 2]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    append_row(tmp_path / "logs" / "x.jsonl", {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 1e-3})
    text = (tmp_path / "logs" / "x.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None, "lr": 1e-3}


def test_keep_until_drops_rows_after_the_resumed_step(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps({"step": step, "prompt": "p", "text": "t"}) + "\n" for step in (2, 4, 6)]
    path.write_text("".join(lines) + '{"step": 8, "pro')  # killed while writing
    truncate_after_step(path, 4)
    assert path.read_text() == "".join(lines[:2])
