import json
import math
from functools import partial

import pytest
import torch

from hf_llm.training.fault_tolerance.checkpoints import complete_checkpoints
from tests.training.fault_tolerance.faults import infinite_gradient, kill_in_step, nan_loss, run


def logged(folder):
    """The whole log of a run, from its newest checkpoint."""
    return json.loads((complete_checkpoints(folder)[-1] / "trainer_state.json").read_text())["log_history"]


def all_finite(log):
    return all(math.isfinite(value) for entry in log for value in entry.values())


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_a_dropped_update_leaves_the_weights_as_they_were(tmp_path, optimizer):
    same = {"optim": optimizer, "weight_decay": 0.1, "lr_scheduler_type": "constant"}
    before = run(tmp_path / "before", max_steps=3, **same)
    after = run(tmp_path / "after", partial(nan_loss, steps=[4, 5]), max_steps=5, **same)
    assert after.outcome["weights"] == before.outcome["weights"]


def test_one_nan_loss_is_dropped_counted_and_never_part_of_a_mean(tmp_path):
    whole, ended = tmp_path / "whole", tmp_path / "base"
    run(whole, logging_steps=1)
    done = run(ended, partial(nan_loss, steps=[7]), logging_steps=1)
    assert done.code == 0
    assert "step 7: loss or gradient not finite, update dropped (1 so far)" in done.output
    log, expected = logged(ended), logged(whole)
    assert all_finite(log)
    assert [entry["step"] for entry in log if "skipped_steps" in entry] == [7]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert log[:6] == expected[:6]
    # the schedule goes on, the weights differ by one update
    assert log[7]["learning_rate"] == expected[7]["learning_rate"]
    assert log[7]["loss"] == pytest.approx(expected[7]["loss"], rel=0.02)


def test_a_mean_over_several_steps_is_over_those_that_were_made(tmp_path):
    run(tmp_path / "single", partial(nan_loss, steps=[3]), logging_steps=1, max_steps=4)
    run(tmp_path / "mean", partial(nan_loss, steps=[3]), logging_steps=4, max_steps=4)
    single = [entry["loss"] for entry in logged(tmp_path / "single") if "loss" in entry]
    (mean,) = [entry["loss"] for entry in logged(tmp_path / "mean") if "loss" in entry]
    assert len(single) == 3
    assert mean == pytest.approx(sum(single) / 3, rel=1e-6)


def test_a_log_entry_due_at_a_dropped_step_is_made_at_the_next(tmp_path):
    run(tmp_path / "base", partial(nan_loss, steps=[4]))
    log = logged(tmp_path / "base")
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 5, 6, 8, 10, 12]
    assert all_finite(log)


def test_an_infinite_gradient_with_a_finite_loss_is_dropped_too(tmp_path):
    ended = run(tmp_path / "base", partial(infinite_gradient, step=5), max_steps=8)
    assert ended.code == 0
    assert "step 5: loss or gradient not finite" in ended.output
    assert all_finite(logged(tmp_path / "base"))


def test_nan_without_end_stops_the_run_with_the_last_good_checkpoint_named(tmp_path):
    folder = tmp_path / "base"
    ended = run(folder, partial(nan_loss, steps=list(range(6, 13))))
    assert ended.code == 2
    assert "not finite in 5 steps in a row, up to step 10" in ended.output
    assert f"The last good checkpoint is {folder}/checkpoint-8" in ended.output
    assert json.loads((folder / "run_status.json").read_text())["status"] == "failed"
    assert all_finite(logged(folder))


def test_the_count_of_dropped_steps_survives_a_resume(tmp_path):
    folder = tmp_path / "base"
    run(folder, partial(nan_loss, steps=[3]), partial(kill_in_step, step=6))
    again = run(folder, partial(nan_loss, steps=[9]))
    assert "step 9: loss or gradient not finite, update dropped (2 so far)" in again.output
    assert [entry["skipped_steps"] for entry in logged(folder) if "skipped_steps" in entry] == [1, 2]


def test_a_nan_on_one_of_two_ranks_is_dropped_by_both(tmp_path):
    ended = run(tmp_path / "base", partial(nan_loss, steps=[7], rank=1), processes=2)
    assert ended.codes == [0, 0]
    assert ended.output.count("update dropped (1 so far)") == 1
    assert all_finite(logged(tmp_path / "base"))


def scale_losses(trainer):
    """Train with the loss scaler of fp16, on a CPU."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)


def infinite_gradients(trainer, first, last):
    """Put an infinity into a gradient of every step from `first` to `last`."""
    for step in range(first, last + 1):
        infinite_gradient(trainer, step)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "sgd"])
def test_a_scaler_that_finds_no_finite_scale_stops_the_run(tmp_path, optimizer):
    settings = {"max_steps": 40, "save_steps": 4, "optim": optimizer}
    done = run(tmp_path / "base", scale_losses, partial(infinite_gradients, first=5, last=40), **settings)
    assert done.code == 2
    assert "the gradients were not finite in 30 updates in a row, up to step 34, however small the scale" in done.output
    assert "none of them changed the weights" in done.output
    assert "train in bf16" in done.output


def test_a_scaler_may_overflow_now_and_then(tmp_path):
    done = run(tmp_path / "base", scale_losses, partial(infinite_gradients, first=2, last=20), max_steps=24)
    assert done.code == 0, done.output
