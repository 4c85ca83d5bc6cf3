import math
import random
from functools import partial

import pytest

from hf_llm.training.fault_tolerance.loss_spikes import RecentSteps, SpikeSection
from tests.training.fault_tolerance.faults import kill_in_step, run, scaled_loss
from tests.training.fault_tolerance.test_step_guard import all_finite, logged

SOON = SpikeSection(sigma=6, window=8)  # judges from the fifth step on
COARSE = SpikeSection(sigma=50, window=8)  # for trainings of twelve steps, which differ a lot


def steps(recent, losses, norm=1.0):
    return [recent.find_outlier(loss, norm) for loss in losses]


def usual(count, seed=0, mean=3.0):
    draw = random.Random(seed)
    return [draw.gauss(mean, 0.1) for _ in range(count)]


def test_usual_steps_pass_and_one_far_above_them_does_not():
    recent = RecentSteps(SpikeSection())
    assert not any(steps(recent, usual(1000)))
    assert recent.find_outlier(4.5, 1.0).startswith("loss 4.5 is above 3.")
    assert recent.find_outlier(3.0, 20.0).startswith("gradient norm 20 is above")
    assert not any(steps(recent, [0.5, *usual(10)]))  # what falls is no spike


def test_nothing_is_judged_before_half_a_window_is_known():
    recent = RecentSteps(SpikeSection(window=128))
    assert not any(steps(recent, [*usual(63), 1e6]))
    recent = RecentSteps(SpikeSection(window=128))
    assert steps(recent, [*usual(64), 1e6])[-1]


def test_one_spike_hides_none_of_those_that_follow():
    recent = RecentSteps(SpikeSection())
    steps(recent, usual(128))
    assert all(steps(recent, [1e6, 50.0, 6.0]))


def test_a_new_level_of_the_loss_is_taken_for_usual_after_a_few_steps():
    recent = RecentSteps(SpikeSection())
    steps(recent, usual(128))
    outliers = steps(recent, usual(60, seed=1, mean=5.0))  # 20 deviations higher
    assert outliers[0] and 5 < sum(map(bool, outliers)) < 20
    assert not any(outliers[20:])


def test_what_is_not_finite_is_never_remembered():
    recent = RecentSteps(SOON)
    steps(recent, usual(8))
    before = recent.state_dict()
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)):
        assert recent.find_outlier(loss, norm) == ""
    assert recent.state_dict() == before


def test_a_loss_that_hardly_moves_makes_no_spike_of_a_small_change():
    recent = RecentSteps(SOON)
    assert not any(steps(recent, [2.0] * 20 + [2.1]))
    assert recent.find_outlier(2.5, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_quiet_run_keeps_its_healthy_updates_and_loses_its_spikes(seed):
    draw = random.Random(seed)
    recent = RecentSteps(SpikeSection())
    for step in range(600):
        loss = 2.4 - 1e-4 * step + draw.gauss(0, 0.002)
        norm = abs(0.944 + draw.gauss(0, 0.009))
        assert recent.find_outlier(loss, norm) == "", step
        if step % 100 == 99:  # a batch that is a little unlike the others
            assert recent.find_outlier(loss + 0.1, 1.151) == ""

    assert recent.find_outlier(2.34, 3.0).startswith("gradient norm 3 is above 2.")
    assert recent.find_outlier(3.0, 0.944).startswith("loss 3 is above 2.6")
    assert recent.find_outlier(2.34, 0.95) == ""


def test_a_loss_near_zero_may_move_a_little():
    recent = RecentSteps(SpikeSection())
    assert not any(steps(recent, [0.01] * 100 + [0.02, 0.1]))
    assert recent.find_outlier(1.0, 1.0)


def test_its_memory_survives_being_written_down():
    recent, other = RecentSteps(SOON), RecentSteps(SOON)
    steps(recent, usual(20))
    other.load_state_dict(recent.state_dict())
    assert steps(other, usual(20, seed=3)) == steps(recent, usual(20, seed=3))


@pytest.mark.parametrize("values", [{"window": 1}, {"sigma": 0}, {"sigma": -1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValueError, match="window must be at least 2 steps"):
        SpikeSection(**values)


def test_an_update_with_a_loss_a_million_times_the_usual_is_skipped_and_told(tmp_path):
    folder = tmp_path / "base"
    done = run(folder, partial(scaled_loss, step=7, by=1e6), spikes=COARSE, logging_steps=1)
    assert done.code == 0
    assert "step 7: loss 4" in done.output and "mean + 50 deviations, update dropped (1 so far)" in done.output
    log = logged(folder)
    assert [entry["step"] for entry in log if "skipped_steps" in entry] == [7]
    assert all_finite(log) and max(entry["loss"] for entry in log if "loss" in entry) < 10


def test_a_skipped_update_leaves_the_weights_as_they_were(tmp_path):
    constant = {"lr_scheduler_type": "constant", "weight_decay": 0.1, "spikes": COARSE}
    before = run(tmp_path / "before", max_steps=6, **constant)
    after = run(tmp_path / "after", partial(scaled_loss, step=7, by=1e6), max_steps=7, **constant)
    assert after.outcome["weights"] == before.outcome["weights"]


def test_no_update_is_skipped_unless_it_is_asked_for(tmp_path):
    done = run(tmp_path / "base", partial(scaled_loss, step=7, by=1e6))
    assert done.code == 0 and "dropped" not in done.output


def test_a_spike_on_one_of_two_ranks_is_skipped_by_both_and_so_it_is_after_a_resume(tmp_path):
    spike = partial(scaled_loss, step=10, by=1e6, rank=1)
    whole = run(tmp_path / "whole", spike, spikes=COARSE, processes=2)
    assert whole.codes == [0, 0]
    assert whole.output.count("step 10: loss") == 1
    run(tmp_path / "base", partial(kill_in_step, step=9, rank=0), spikes=COARSE, processes=2)
    again = run(tmp_path / "base", spike, spikes=COARSE, processes=2)
    assert "resuming at step 8" in again.output and again.output.count("step 10: loss") == 1
    assert [again.outcome[key] for key in ("weights", "history")] == [
        whole.outcome[key] for key in ("weights", "history")
    ]
