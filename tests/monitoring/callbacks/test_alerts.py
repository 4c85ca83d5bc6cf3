"""Alerts: what is one, and that a healthy training has none."""

import math
import random

import pytest
import torch
from torch.utils.data import Dataset

from hf_llm.core.jsonl import alerts_file, read_rows
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks.alerts import AlertRules
from tests.monitoring.tiny_training import Rows


def check_entries(entries):
    rules = AlertRules()
    return [(alert.kind, alert.step) for entry in entries for alert in rules.check_entry(entry)]


def healthy_entries(steps=400, seed=0, noise=0.03):
    rng = random.Random(seed)
    for step in range(1, steps + 1):
        loss = 3 + 7 * math.exp(-step / 60) + rng.gauss(0, noise)
        norm = (0.5 + 4 * math.exp(-step / 30)) * math.exp(rng.gauss(0, 0.25))
        yield {"step": step, "loss": loss, "grad_norm": norm, "tokens_per_second": 1000 * (1 + rng.gauss(0, 0.05))}


def healthy_entries_with(at, **values):
    return [entry | values if entry["step"] in at else entry for entry in healthy_entries()]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03, 0.3])
def test_a_healthy_training_has_no_alerts(noise):
    assert [alert for seed in range(10) for alert in check_entries(healthy_entries(seed=seed, noise=noise))] == []


def test_each_loss_spike_is_one_alert():
    assert check_entries(healthy_entries_with((200, 201, 202, 300), loss=4.5)) == [
        ("loss_spike", 200),
        ("loss_spike", 300),
    ]


def test_a_jump_of_the_gradient_norm_is_an_alert():
    assert check_entries(healthy_entries_with((250,), grad_norm=20.0)) == [("gradient_jump", 250)]


def test_a_loss_that_is_not_finite_is_an_alert():
    assert check_entries(healthy_entries_with((100, 101), loss=float("nan"))) == [("not_finite", 100)]


def test_two_slow_entries_are_an_alert_and_one_is_not():
    assert check_entries(healthy_entries_with((100,), tokens_per_second=300.0)) == []
    assert check_entries(healthy_entries_with((100, 101, 102), tokens_per_second=300.0)) == [("slow", 101)]


def test_skipped_updates_are_alerts():
    entries = [*healthy_entries(20), {"step": 21, "skipped_steps": 1}, {"step": 22, "skipped_steps": 2}]
    assert check_entries(entries) == [("skipped_update", 21), ("skipped_update", 22)]


def test_overfitting_is_one_alert():
    entries = []
    for step in range(1, 401):
        entries.append({"step": step, "loss": 3 - step / 400})
        if step % 20 == 0:
            entries.append({"step": step, "eval_loss": 3.1 - step / 400 if step <= 200 else 2.6 + (step - 200) / 300})
    assert check_entries(entries) == [("overfitting", 260)]


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting():
    entries = []
    for step in range(1, 401):
        loss = 3 - step / 400 if step <= 200 else 2.5 + (step - 200) / 200
        entries.append({"step": step, "loss": loss})
        if step % 20 == 0:
            entries.append({"step": step, "eval_loss": loss + 0.1})
    assert "overfitting" not in dict(check_entries(entries))


class BadBatch(Dataset):
    """Rows that are quickly fitted, and some that contradict them."""

    def __init__(self, rows: int, bad: range):
        self.rows, self.bad = rows, bad

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        ids = torch.full((8,), 7 if index not in self.bad else 50)
        return {"input_ids": ids, "labels": ids.clone()}


def train_with_bad_batch(make_trainer, steps, resume=None, **settings):
    settings = {"max_steps": steps, "save_strategy": "steps", "save_steps": 45, "learning_rate": 3e-3, **settings}
    settings |= {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"}
    trainer = make_trainer(BadBatch(200, range(80, 82)), **settings)
    attach_callbacks(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_an_alert_is_printed_and_recorded_and_not_repeated_after_a_resume(make_trainer, tmp_path, capsys):
    train_with_bad_batch(make_trainer, 60)
    path = alerts_file(tmp_path / "out")
    before = read_rows(path)
    assert ("loss_spike", 41) in [(row["kind"], row["step"]) for row in before]
    assert before[0]["time"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("!! step 41: loss spike: ")]) == 1
    train_with_bad_batch(make_trainer, 60, resume=str(tmp_path / "out" / "checkpoint-45"))
    assert [row for row in read_rows(path) if row["step"] <= 45] == [row for row in before if row["step"] <= 45]
    assert "!! step 41" not in capsys.readouterr().out


def test_a_training_without_alerts_has_no_file(make_trainer, tmp_path):
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=3)
    attach_callbacks(trainer)
    trainer.train()
    assert not alerts_file(tmp_path / "out").exists()
