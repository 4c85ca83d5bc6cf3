"""Tokens per second, MFU, perplexity: against counts made by hand."""

import json
import math
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_llm.hardware.peak_flops import PeakFlops
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks import throughput
from hf_llm.training.batch_rampup import ContextRampup, Rampup
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.fork_server import environment, python
from tests.monitoring.tiny_training import Clock, Rows

LENGTHS = [5, 6, 7, 8, 1, 2, 3, 4]  # 36 tokens that are no padding, of 8 x 8


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def logged_values(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_tokens_are_counted_without_padding_under_accumulation(make_trainer, clock):
    trainer = make_trainer(
        Rows(LENGTHS, 8),
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        logging_steps=2,
        lr_scheduler_type="constant",
    )
    trainer.add_callback(clock)
    attach_callbacks(trainer)
    trainer.train()
    # 8 rows = 2 steps of 2 x 2 rows: every log covers the whole data set in 4 seconds
    assert logged_values(trainer, "tokens_per_second") == [36 / 4] * 3


def test_evaluation_and_saving_do_not_count_as_training_time(make_trainer, clock):
    trainer = make_trainer(
        Rows([8] * 8, 8),
        Rows([8] * 2, 8),
        max_steps=9,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=4,
    )
    trainer.add_callback(clock)
    attach_callbacks(trainer)
    trainer.train()
    assert logged_values(trainer, "tokens_per_second") == [3 * 16 / 6] * 3
    assert clock.now > 1000 + 9 * 2 + 5 * 100  # it did evaluate and save


def test_evaluation_at_the_start_does_not_count(make_trainer, clock):
    rows = Rows([8] * 4, 8)
    trainer = make_trainer(rows, rows, max_steps=2, eval_on_start=True, eval_strategy="epoch")
    trainer.add_callback(clock)
    attach_callbacks(trainer)
    trainer.train()
    assert logged_values(trainer, "tokens_per_second") == [16 / 2] * 2


def test_perplexity_and_bits_per_byte_follow_from_the_losses(make_trainer):
    rows = Rows([8] * 4, 8)
    trainer = make_trainer(rows, rows, max_steps=2, eval_strategy="steps", eval_steps=1)
    attach_callbacks(trainer, bytes_per_token=3.5)
    trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            assert entry["perplexity"] == pytest.approx(math.exp(entry["loss"]))
            assert entry["memory_gib"] > 0.05
        if "eval_loss" in entry:
            assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"]))
            assert entry["eval_bits_per_byte"] == pytest.approx(entry["eval_loss"] / math.log(2) / 3.5)
    assert len(logged_values(trainer, "perplexity")) == len(logged_values(trainer, "eval_bits_per_byte")) == 2
    assert trainer.evaluate()["eval_bits_per_byte"] > 0


def test_a_loss_that_is_not_a_likelihood_has_no_perplexity(make_trainer):
    rows = Rows([8] * 4, 8)
    trainer = make_trainer(rows, rows, max_steps=1, eval_strategy="steps", eval_steps=1)
    attach_callbacks(trainer, likelihood=False, bytes_per_token=3.5)
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert "tokens_per_second" in names
    assert not names & {"perplexity", "eval_perplexity", "eval_bits_per_byte"}


def test_a_loss_that_is_not_finite_has_no_perplexity(make_trainer):
    trainer = make_trainer(Rows([8] * 2, 8))
    attach_callbacks(trainer)
    for loss in (float("nan"), float("inf"), 1e4):
        trainer.log({"loss": loss})
        assert "perplexity" not in trainer.state.log_history[-1]


@pytest.mark.parametrize(("measured", "name"), [(False, "mfu"), (True, "mfu_of_measured_peak")])
def test_the_key_of_mfu_names_the_peak_it_is_relative_to(make_trainer, clock, monkeypatch, capsys, measured, name):
    monkeypatch.setattr(throughput, "find_peak_flops", lambda device, dtype: PeakFlops(1e6, "float32", measured))
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=2)
    trainer.add_callback(clock)
    attach_callbacks(trainer, flops_per_token=50_000)
    trainer.train()
    assert logged_values(trainer, name) == [8 * 50_000 / 1e6] * 2
    assert ("measured here" if measured else "data sheet") in capsys.readouterr().out


def test_a_peak_measured_too_low_is_measured_again(make_trainer, clock, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "find_peak_flops", lambda device, dtype: PeakFlops(1e3, "float32", True))
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=2)
    trainer.add_callback(clock)
    attach_callbacks(trainer, flops_per_token=50_000)
    trainer.train()
    assert all(0 <= mfu < 0.1 for mfu in logged_values(trainer, "mfu_of_measured_peak"))
    said = capsys.readouterr().out
    assert said.count("MFU is now measured against") == 1
    assert "the training does more operations" not in said


def test_mfu_above_one_is_said_once(make_trainer, clock, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "find_peak_flops", lambda device, dtype: PeakFlops(1e3, "float32", False))
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=2)
    trainer.add_callback(clock)
    attach_callbacks(trainer, flops_per_token=50_000)
    trainer.train()
    assert logged_values(trainer, "mfu") == [400, 400]
    assert capsys.readouterr().out.count("MFU of 400.00: the training does more operations a second than the data") == 1


def test_mfu_counts_the_flops_of_each_sequence_length(make_trainer, clock, monkeypatch):
    monkeypatch.setattr(throughput, "find_peak_flops", lambda device, dtype: PeakFlops(1e6, "float32", False))
    plain = make_trainer(Rows([8] * 6, 8), max_steps=3, logging_steps=3)
    trainer = PretrainingTrainer(plain.model, plain.args, train_dataset=plain.train_dataset)
    trainer.add_callback(clock)
    trainer.context_rampup = ContextRampup(trainer, Rampup(2, 2), 8)  # lengths 2, 4, 8
    attach_callbacks(trainer, flops_per_token={2: 20_000, 4: 30_000, 8: 40_000})
    trainer.train()
    assert logged_values(trainer, "mfu") == [8 * 30_000 / 1e6]


def test_without_flops_per_token_there_is_no_mfu(make_trainer):
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=1)
    attach_callbacks(trainer)
    trainer.train()
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith("mfu")]


def test_numbers_reach_history_tensorboard_and_console(make_trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=3, report_to=["tensorboard"])
    attach_callbacks(trainer)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "out" / "logs")).Reload()
    shown = [scalar.value for scalar in events.Scalars("train/tokens_per_second")]
    assert shown == pytest.approx(logged_values(trainer, "tokens_per_second"))
    assert len(shown) == 3
    assert capsys.readouterr().out.count("tok/s") == 3
    trainer.save_state()
    saved = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["tokens_per_second"] for entry in saved if "loss" in entry] == logged_values(
        trainer, "tokens_per_second"
    )


def test_without_a_count_of_tokens_none_are_logged(make_trainer):
    trainer = make_trainer(Rows([8] * 4, 8), max_steps=2, remove_unused_columns=False)
    embed = trainer.model.get_input_embeddings()

    def collate(rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"inputs_embeds": embed(ids).detach(), "labels": ids}

    trainer.data_collator = collate
    attach_callbacks(trainer)
    trainer.train()
    assert logged_values(trainer, "tokens_per_second") == logged_values(trainer, "tokens_seen") == []
    assert len(logged_values(trainer, "memory_gib")) == len(logged_values(trainer, "eta_seconds")) == 2


def test_the_stage_of_a_curriculum_is_logged(make_trainer):
    trainer = make_trainer(Rows([8] * 8, 8), max_steps=4)
    attach_callbacks(trainer, stage_at=lambda step: 1 if step < 3 else 2)
    trainer.train()
    assert logged_values(trainer, "curriculum_stage") == [1, 1, 2, 2]


def test_count_tokens_counts_all_positions_of_packed_rows():
    assert throughput.count_tokens({"input_ids": torch.ones(1, 30), "position_ids": torch.ones(1, 30)}) == 30
    assert throughput.count_tokens({"input_ids": torch.ones(1, 4), "attention_mask": torch.ones(1, 1, 4, 4)}) == 4
    assert throughput.count_tokens({"pixel_values": torch.ones(2, 2)}) == 0


TWO_PROCESSES = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from tests.monitoring.tiny_training import Clock, Rows, tiny_model
from transformers import Trainer, TrainingArguments
from types import SimpleNamespace
from hf_llm.monitoring.callbacks import throughput
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.training.batch_rampup import ContextRampup, Rampup

clock = Clock()
throughput.time = SimpleNamespace(perf_counter=lambda: clock.now)
args = TrainingArguments(
    sys.argv[1], use_cpu=True, ddp_backend="gloo", report_to=[], disable_tqdm=True, logging_steps=1,
    save_strategy="no", per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2,
)
assert args.world_size == 2
trainer = Trainer(model=tiny_model(), args=args, train_dataset=Rows([5, 6, 7, 8, 1, 2, 3, 4], 8))
trainer.add_callback(clock)
attach_callbacks(trainer)
trainer.train()
entries = [entry for entry in trainer.state.log_history if "loss" in entry]
norms = [[entry["grad_norm"], *(value for key, value in entry.items() if "grad_norm/" in key)] for entry in entries]
print(json.dumps([[entry["tokens_per_second"] for entry in entries], norms]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_count_each_others_tokens(tmp_path):
    root = str(Path(__file__).parents[3])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "two_processes.py").write_text(TWO_PROCESSES)
    ranks = []
    for rank in ("0", "1"):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [python(), "-m", "two_processes", str(tmp_path), root]
        ranks.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment(**variables), stdout=-1, stderr=-1, text=True)
        )
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    # one step of 2 processes x 2 micro-batches x 2 rows is the whole data set: 36 tokens in 2 seconds
    results = [json.loads(out.strip().splitlines()[-1]) for out, _ in outputs]
    assert [speeds for speeds, _ in results] == [[18.0, 18.0], [18.0, 18.0]]
    assert results[0][1] == results[1][1]
    for total, *parts in results[0][1]:
        assert len(parts) == 5
        assert math.hypot(*parts) == pytest.approx(total, rel=1e-4)
