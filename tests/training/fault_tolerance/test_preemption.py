import json
import os
import signal
import time
from functools import partial

import pytest

from hf_llm.training.fault_tolerance.checkpoints import complete_checkpoints
from hf_llm.training.fault_tolerance.preemption import ECHO_SECONDS
from tests.training.fault_tolerance.faults import kill_in_save, own_group, run, signal_in_step, slow_steps, start


def status(folder):
    return json.loads((folder / "run_status.json").read_text())


def same(ended, outcome):
    return [ended.outcome[key] for key in ("weights", "history")] == [outcome[key] for key in ("weights", "history")]


def test_sigterm_saves_at_the_steps_end_and_stops_and_the_resume_is_exact(undisturbed, tmp_path):
    folder = tmp_path / "base"
    started = start(folder, partial(slow_steps, seconds=0.2))
    started.wait_for("begun 3")
    os.kill(started.processes[0].pid, signal.SIGTERM)
    ended = started.end()
    assert (ended.code, ended.outcome) == (143, None)
    assert status(folder)["status"] == "preempted"
    assert status(folder)["step"] in (3, 4)
    assert complete_checkpoints(folder)[-1].name == f"checkpoint-{status(folder)['step']}"
    again = run(folder)
    assert again.code == 0
    assert same(again, undisturbed.ended.outcome)
    assert status(folder) == {"status": "finished", "step": 12, "time": status(folder)["time"]}


@pytest.mark.parametrize("step", [5, 7, 12])  # between two log entries, in one; the last
def test_stopped_in_any_step_the_whole_history_is_that_of_the_undisturbed_run(undisturbed, tmp_path, step):
    folder = tmp_path / "base"
    ended = run(folder, partial(signal_in_step, step=step))
    assert (ended.code, status(folder)["step"]) == (143, step)
    assert same(run(folder), undisturbed.ended.outcome)


@pytest.mark.parametrize("step", [6, 8])  # amid an epoch; its last step
def test_saving_and_evaluating_by_the_epoch_a_stop_amid_one_does_not_end_it(tmp_path, step):
    by_epoch = {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_steps": 1, "max_steps": 16}
    whole, folder = tmp_path / "whole", tmp_path / "base"
    run(whole, **by_epoch)
    assert run(folder, partial(signal_in_step, step=step), **by_epoch).code == 143
    run(folder, **by_epoch)
    assert log(folder) == log(whole)
    assert len([entry for entry in log(whole) if entry["eval_loss"] is not None]) == 2


def log(folder):
    """The whole log of a run but for times and rates, which differ."""
    state = json.loads((complete_checkpoints(folder)[-1] / "trainer_state.json").read_text())
    return [{key: entry.get(key) for key in ("step", "loss", "eval_loss", "epoch")} for entry in state["log_history"]]


def test_ctrl_c_saves_and_stops_with_its_own_exit_code(undisturbed, tmp_path):
    ended = run(tmp_path / "base", partial(signal_in_step, step=5, number=signal.SIGINT))
    assert ended.code == 130
    assert same(run(tmp_path / "base"), undisturbed.ended.outcome)


def test_the_launchers_echo_of_a_signal_changes_nothing(tmp_path):
    ended = run(tmp_path / "base", partial(signal_in_step, step=5), partial(signal_in_step, step=5))
    assert ended.code == 143


def test_a_second_sigterm_stops_at_once_and_the_last_checkpoint_serves(undisturbed, tmp_path):
    folder = tmp_path / "base"
    twice = [partial(signal_in_step, step=6, after=after) for after in (0.1, 0.3 + ECHO_SECONDS)]
    began = time.monotonic()
    ended = run(folder, *twice, partial(slow_from_6, seconds=20))
    assert ended.code == -signal.SIGTERM
    assert time.monotonic() - began < 15
    assert status(folder)["status"] == "running"
    assert same(run(folder), undisturbed.ended.outcome)


def slow_from_6(trainer, seconds):
    from tests.training.fault_tolerance.faults import At

    trainer.add_callback(At(6, partial(time.sleep, seconds)))


def test_kill_9_during_the_save_of_a_preemption_falls_back(undisturbed, tmp_path):
    folder = tmp_path / "base"
    stopped = partial(signal_in_step, step=6)
    assert run(folder, stopped, partial(kill_in_save, step=6, file="optimizer.pt")).code == -9
    again = run(folder)
    assert "checkpoint-6 is quarantined as checkpoint-6.incomplete" in again.output
    assert same(again, undisturbed.ended.outcome)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGKILL])
def test_a_second_signal_amid_the_save_of_a_preemption_falls_back(undisturbed, tmp_path, second):
    folder = tmp_path / "base"
    started = start(folder, partial(signal_in_step, step=6), partial(slow_save, step=6))
    started.wait_for("saving optimizer")
    time.sleep(ECHO_SECONDS)
    os.kill(started.processes[0].pid, second)
    assert started.end().code == -second
    again = run(folder)
    assert "checkpoint-6 is quarantined as checkpoint-6.incomplete" in again.output
    assert same(again, undisturbed.ended.outcome)


def slow_save(trainer, step):
    save = trainer._save_optimizer_and_scheduler

    def slow(*args):
        if trainer.state.global_step == step:
            print("saving optimizer", flush=True)
            time.sleep(60)
        save(*args)

    trainer._save_optimizer_and_scheduler = slow


@pytest.mark.parametrize("milliseconds", [0, 50, 200])
def test_kill_9_shortly_after_sigterm_costs_no_exactness(undisturbed, tmp_path, milliseconds):
    folder = tmp_path / "base"
    started = start(folder, partial(slow_steps, seconds=0.2))
    started.wait_for("begun 7")
    os.kill(started.processes[0].pid, signal.SIGTERM)
    time.sleep(milliseconds / 1000)
    started.processes[0].kill()
    started.end()
    assert same(run(folder), undisturbed.ended.outcome)


def test_a_signal_to_all_processes_of_the_job_spares_the_step_though_data_workers_die(undisturbed, tmp_path):
    folder = tmp_path / "base"
    workers = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}
    started = start(folder, own_group, partial(slow_steps, seconds=0.2), **workers)
    started.wait_for("begun 6")
    os.killpg(started.processes[0].pid, signal.SIGTERM)  # not from within: torch's workers ask who sent it
    assert started.end().code == 143
    assert (status(folder)["status"], status(folder)["step"]) == ("preempted", 6)
    assert same(run(folder, **workers), undisturbed.ended.outcome)


@pytest.mark.parametrize("skew", [None, 0.8])  # one rank alone is told; both, one later
def test_two_ranks_told_at_different_times_save_the_same_step(undisturbed_by_two, tmp_path, skew):
    folder = tmp_path / "base"
    told = [partial(signal_in_step, step=5, rank=1)]
    if skew:
        told.append(partial(signal_in_step, step=5, rank=0, after=skew))
    ended = run(folder, *told, partial(slow_steps, seconds=0.1), processes=2)
    assert ended.codes == [143, 143]
    assert (status(folder)["status"], status(folder)["step"]) == ("preempted", 5)
    assert same(run(folder, processes=2), undisturbed_by_two)


def fails(trainer):
    from tests.training.fault_tolerance.faults import At

    def act():
        raise ZeroDivisionError("of the test")

    trainer.add_callback(At(3, act))


def test_an_exception_is_in_the_status_file(tmp_path):
    ended = run(tmp_path / "base", fails)
    assert ended.code == 1
    assert (status(tmp_path / "base")["status"], status(tmp_path / "base")["error"]) == ("failed", "of the test")
