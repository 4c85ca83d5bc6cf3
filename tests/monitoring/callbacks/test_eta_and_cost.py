"""What a training costs, how much energy it takes, and how long it goes on."""

from types import SimpleNamespace

import pytest
import torch

from hf_llm.core.jsonl import append_row, metrics_file
from hf_llm.hardware.energy import EnergyMeter, find_rapl_packages
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks import eta_and_cost
from tests.monitoring.tiny_training import Clock, Rows


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(eta_and_cost, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def logged_values(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_cost_is_hours_times_the_price_and_the_time_left_follows_the_pace(make_trainer, clock):
    rows = Rows([8] * 8, 8)
    trainer = make_trainer(rows, rows, max_steps=6, eval_strategy="steps", eval_steps=2)
    trainer.add_callback(clock)  # 2 s a step, 100 s an evaluation
    attach_callbacks(trainer, price_per_hour=36.0)
    trainer.train()
    # an evaluation has one batch in a process, and comes after the log entry of its step
    assert logged_values(trainer, "device_hours") == pytest.approx(
        [s / 3600 for s in (2, 4, 106, 108, 210, 212)], abs=1e-5
    )
    assert logged_values(trainer, "cost") == pytest.approx([s / 100 for s in (2, 4, 106, 108, 210, 212)], abs=1e-3)
    assert logged_values(trainer, "eta_seconds") == pytest.approx([10, 8, 52 * 3, 106 / 3 * 2, 52, 0], abs=0.1)


def test_without_a_price_there_is_no_cost(make_trainer):
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=2)
    attach_callbacks(trainer)
    trainer.train()
    assert logged_values(trainer, "cost") == []
    assert len(logged_values(trainer, "eta_seconds")) == 2


def test_cost_and_energy_include_steps_that_a_fault_undid(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    attach_callbacks(first := make_trainer(Rows([8] * 8, 8), **settings), price_per_hour=1.0)
    first.train()
    append_row(metrics_file(tmp_path / "out"), {"step": 4, "loss": 1.0, "device_hours": 5.0, "energy_kwh": 2.0})
    attach_callbacks(second := make_trainer(Rows([8] * 8, 8), **settings), price_per_hour=1.0)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert second.state.log_history[-2]["cost"] > 5.0
    assert second.state.log_history[-2]["energy_kwh"] >= 2.0


def test_hours_are_counted_once_when_a_process_trains_twice(make_trainer, tmp_path, clock):
    trainer = make_trainer(Rows([8] * 8, 8), max_steps=4, save_strategy="steps", save_steps=2)
    trainer.add_callback(clock)
    attach_callbacks(trainer)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert 12 / 3600 <= logged_values(trainer, "device_hours")[-1] <= clock.now / 3600 + 1e-5


def package(root, name, energy, limit=262_143_328_850):
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_the_energy_of_all_packages_is_counted_over_a_wrap_and_parts_are_not_counted_twice(tmp_path):
    first, second = (
        package(tmp_path, "intel-rapl:0", 5_000_000),
        package(tmp_path, "intel-rapl:1", 9_000_000, 10_000_000),
    )
    package(tmp_path, "intel-rapl:0:0", 1_000_000)
    assert find_rapl_packages(tmp_path) == [first, second]
    meter = EnergyMeter(torch.device("cpu"), True, rapl=tmp_path)
    assert meter.read_joules() == 0
    (first / "energy_uj").write_text("7500000\n")
    (second / "energy_uj").write_text("500000\n")
    assert meter.read_joules() == pytest.approx(2.5 + 1.5)
    assert EnergyMeter(torch.device("cpu"), False, rapl=tmp_path).read_joules() == 0


def test_without_an_energy_counter_no_energy_is_logged(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        eta_and_cost, "EnergyMeter", lambda device, first: EnergyMeter(device, first, rapl=tmp_path / "none")
    )
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=1)
    attach_callbacks(trainer)
    trainer.train()
    assert logged_values(trainer, "energy_kwh") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_energy_of_a_gpu_is_read():
    pytest.importorskip("pynvml")
    energy = EnergyMeter(torch.device("cuda:0"), False)
    matrix = torch.ones(8192, 8192, device="cuda")
    for _ in range(50):
        matrix = matrix @ matrix / 8192
    torch.cuda.synchronize()
    assert energy.read_joules() > 1
