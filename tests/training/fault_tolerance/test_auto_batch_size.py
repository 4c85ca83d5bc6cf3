"""Trainings whose micro-batch does not fit the memory."""

import json
import os
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_llm.core.errors import UserError
from hf_llm.training.fault_tolerance.auto_batch_size import check_auto_batch_size
from tests.training.fault_tolerance.faults import STEPS, kill_in_step, run

ALL = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 8}
FITTING = {**ALL, "auto_find_batch_size": True}


def too_small(trainer, rows: int, since: int = 0) -> None:
    """From step `since` + 1 on, let more than `rows` rows ask for more memory than any address space has."""
    compute = trainer.compute_loss

    def computed(model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > rows and trainer.state.global_step >= since:
            torch.empty(1 << 60, dtype=torch.uint8)
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = computed


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The outcome of a run with micro-batches of two rows from the start."""
    two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    return run(tmp_path_factory.mktemp("two") / "base", **two).outcome


def test_what_does_not_fit_is_halved_and_the_training_is_the_one_of_the_smaller_micro_batch(tmp_path, by_two):
    done = run(tmp_path / "base", partial(too_small, rows=2), **FITTING)
    assert "out of memory in step 1 with a micro-batch of 8: trying again with 4, accumulated 2 times" in done.output
    assert "out of memory in step 1 with a micro-batch of 4: trying again with 2, accumulated 4 times" in done.output
    assert done.code == 0 and done.outcome["weights"] == by_two["weights"]
    assert done.outcome["history"] == by_two["history"]


@pytest.mark.parametrize("since", [1, 3])
def test_memory_that_ends_later_is_met_from_the_beginning_anew(tmp_path, by_two, since):
    done = run(tmp_path / "base", partial(too_small, rows=2, since=since), **FITTING)
    assert f"out of memory in step {since + 1} with a micro-batch of 8" in done.output
    assert done.outcome["weights"] == by_two["weights"] and done.outcome["history"] == by_two["history"]


def test_or_from_the_newest_checkpoint(tmp_path):
    small = partial(too_small, rows=2, since=6)
    done = run(tmp_path / "base", small, **FITTING)
    assert done.code == 0 and "out of memory in step 7" in done.output
    state = json.loads((tmp_path / "base" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [2, 4, 6, 8, 10, 12]
    assert state["train_batch_size"] == 2
    killed = run(tmp_path / "killed", partial(kill_in_step, step=10), small, **FITTING)
    assert killed.code == -9
    again = run(tmp_path / "killed", small, **FITTING)
    assert "resuming at step 8" in again.output and "out of memory" not in again.output
    assert again.outcome["weights"] == done.outcome["weights"] and again.outcome["history"] == done.outcome["history"]


def test_an_evaluation_that_does_not_fit_is_halved_too(tmp_path):
    done = run(tmp_path / "base", partial(too_small, rows=4, since=2), **FITTING, eval_strategy="steps", eval_steps=2)
    assert done.code == 0 and "again with 4, accumulated 2 times" in done.output


def test_not_one_row_fits(tmp_path):
    done = run(tmp_path / "base", partial(too_small, rows=0), **FITTING)
    assert done.code == 2
    assert "out of memory in step 1 with a micro-batch of one example; shorten the context" in done.output


def test_without_the_setting_the_error_is_torchs_own(tmp_path):
    done = run(tmp_path / "base", partial(too_small, rows=2), **ALL)
    assert done.code == 1 and "can't allocate memory" in done.output


def limited_memory(trainer, megabytes: int) -> None:
    """Let the process have so many megabytes more than it has when the first step begins; each row takes 100."""
    compute = trainer.compute_loss

    class Limit(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    def computed(model, inputs, *args, **kwargs):
        kept = [torch.empty(100 << 20, dtype=torch.uint8) for _ in inputs["input_ids"]]
        loss = compute(model, inputs, *args, **kwargs)
        return loss + 0 * len(kept)

    trainer.add_callback(Limit())
    trainer.compute_loss = computed


def test_a_limit_of_the_operating_system_is_met(tmp_path, by_two):
    done = run(tmp_path / "base", partial(limited_memory, megabytes=350), **FITTING)
    assert done.code == 0, done.output
    assert "again with 2, accumulated 4 times" in done.output and "again with 1" not in done.output
    assert done.outcome["weights"] == by_two["weights"]


def test_what_cannot_have_it_is_refused(monkeypatch):
    check_auto_batch_size({}, "ppo")
    check_auto_batch_size({"auto_find_batch_size": True}, "sft")
    with pytest.raises(UserError, match=r"grpo\.training.auto_find_batch_size: this stage samples"):
        check_auto_batch_size({"auto_find_batch_size": True}, "grpo")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"sft\.training.auto_find_batch_size: with several processes"):
        check_auto_batch_size({"auto_find_batch_size": True}, "sft")
