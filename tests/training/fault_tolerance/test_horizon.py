"""Training for longer than planned, and two trainings in one folder."""

import json
from functools import partial

import pytest
from transformers import TrainingArguments

from hf_llm.core.manifest import read_manifest, write_json
from hf_llm.pipeline.folder_lock import LOCK_FILE
from hf_llm.training.fault_tolerance.checkpoints import digest_of
from hf_llm.training.fault_tolerance.horizon import decay_start, first_difference, read_schedule
from hf_llm.training.fault_tolerance.resume import ResumeTerms
from tests.training.fault_tolerance.faults import Started, kill_in_step, run, signal_in_step, slow_steps

CONSTANT = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.25}
STABLE = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 4}, "warmup_steps": 2}
COSINE = {"lr_scheduler_type": "cosine"}


def schedule(tmp_path, steps, **settings):
    return read_schedule(TrainingArguments(str(tmp_path), learning_rate=1.0, use_cpu=True, **settings), steps)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"lr_scheduler_type": "constant"}, None),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10}, None),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}, 2),  # after a step of rate 0
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 10}, None),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 9}, None),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 10},
            82,
        ),  # the first step of the decay is as before
        ({"lr_scheduler_type": "linear"}, 2),
        ({"lr_scheduler_type": "cosine"}, 2),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, 2),
        ({"lr_scheduler_type": "polynomial"}, 2),
        ({"lr_scheduler_type": "cosine_with_restarts"}, 2),
    ],
)
def test_schedules_of_two_lengths_are_the_same_up_to_where_they_differ(tmp_path, settings, difference):
    old, new = schedule(tmp_path, 100, **settings), schedule(tmp_path, 200, **settings)
    assert first_difference(old, new, 100) == difference


def test_the_decay_begins_where_the_rate_first_falls(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, lr_scheduler_type="warmup_stable_decay")
    assert decay_start(arguments, 100) == 80
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, lr_scheduler_type="cosine")
    assert decay_start(arguments, 100) is None


def test_a_finished_training_at_a_constant_rate_goes_on_as_if_it_had_been_planned_so(tmp_path):
    # The warm-up, a share of the steps, stays what it was: 2 steps of 8, and 2 of 12.
    whole = run(tmp_path / "whole", **{**CONSTANT, "warmup_steps": 2})
    assert run(tmp_path / "base", max_steps=8, **CONSTANT).code == 0
    longer = run(tmp_path / "base", **CONSTANT)
    assert longer.code == 0, longer.output
    assert "12 steps instead of 8, 8 of them made; constant_with_warmup learning rate as before, 0.01" in longer.output
    assert longer.outcome["weights"] == whole.outcome["weights"]


def test_a_finished_one_with_a_decay_goes_on_from_the_checkpoint_before_it(tmp_path):
    whole = run(tmp_path / "whole", max_steps=16, **STABLE)
    assert run(tmp_path / "base", save_steps=1, **STABLE).code == 0
    kept = sorted(path.name for path in (tmp_path / "base").glob("checkpoint-*"))
    assert kept == ["checkpoint-11", "checkpoint-12", "checkpoint-8"]  # the one before the decay stays
    longer = run(tmp_path / "base", max_steps=16, **STABLE)
    assert longer.code == 0, longer.output
    assert "checkpoint-8 is the last one whose learning rate is that of 16 steps" in longer.output
    assert (tmp_path / "base" / "checkpoint-12.undone").exists()
    assert longer.outcome["weights"] == whole.outcome["weights"]


def test_another_schedule_is_refused_unless_the_recipe_says_that_it_shall_be_followed(tmp_path):
    assert run(tmp_path / "base", max_steps=8, **COSINE).code == 0
    refused = run(tmp_path / "base", **COSINE)
    assert refused.code == 2
    assert "12 steps instead of 8, 8 of them made: a cosine schedule for 12 steps has another" in refused.output
    assert "--pretrain.extend=true" in refused.output
    assert (tmp_path / "base" / "checkpoint-8" / "manifest.json").exists()

    longer = run(tmp_path / "base", terms=ResumeTerms(extend=True), **COSINE)
    assert longer.code == 0, longer.output
    assert "as pretrain.extend asks" in longer.output
    state = json.loads((tmp_path / "base" / "checkpoint-12" / "trainer_state.json").read_text())
    rates = {entry["step"]: entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry}
    assert rates[10] > rates[8]  # it has jumped up to the longer schedule


def test_one_that_is_under_way_may_get_another_length_too_but_not_less_than_it_has(tmp_path):
    assert run(tmp_path / "base", partial(signal_in_step, step=7), **CONSTANT).code == 143
    shorter = run(tmp_path / "base", max_steps=5, **CONSTANT)
    assert shorter.code == 2 and "has made 7 already" in shorter.output
    longer = run(tmp_path / "base", max_steps=16, **CONSTANT)
    assert longer.code == 0 and "16 steps instead of 12, 7 of them made" in longer.output


def test_one_that_is_resumed_saves_logs_and_evaluates_as_often_as_the_recipe_says_now(tmp_path):
    often = {"save_steps": 2, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    seldom = {**often, "save_steps": 5, "logging_steps": 3, "eval_steps": 4}
    assert run(tmp_path / "base", partial(signal_in_step, step=7), **CONSTANT, **often).code == 143
    resumed = run(tmp_path / "base", **CONSTANT, **seldom)
    assert resumed.code == 0, resumed.output
    log = json.loads((tmp_path / "base" / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 9, 12]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2, 4, 6, 8, 12]
    steps = {path.name for path in (tmp_path / "base").glob("checkpoint-*")}
    assert "checkpoint-10" in steps and "checkpoint-8" not in steps


def test_a_checkpoint_of_an_older_version_resumes_by_the_digest_of_its_settings(tmp_path):
    settings = {"pretrain.z_loss": 0.1, "pretrain.evaluation_tokens": 5}
    assert run(tmp_path / "base", max_steps=8, fingerprint={"settings": digest_of(settings)}, **CONSTANT).code == 0
    for checkpoint in (tmp_path / "base").glob("checkpoint-*"):
        manifest = read_manifest(checkpoint)
        del manifest["schedule"], manifest["digest"]
        write_json(checkpoint / "manifest.json", {**manifest, "digest": digest_of(manifest)})

    present = {"settings": {"pretrain.z_loss": 0.1}}
    assert run(tmp_path / "base", fingerprint=present, **CONSTANT).code == 2
    terms = ResumeTerms(former_settings=[digest_of(settings)])
    again = run(tmp_path / "base", fingerprint=present, terms=terms, **CONSTANT)
    assert again.code == 0, again.output
    changed = run(tmp_path / "base", fingerprint={"settings": {"pretrain.z_loss": 0.2}}, **CONSTANT)
    assert changed.code == 2 and "pretrain.z_loss: was 0.1, is 0.2" in changed.output


@pytest.mark.parametrize("processes", [1, 2])
def test_of_two_equal_trainings_at_once_exactly_one_trains(tmp_path, processes):
    slow = partial(slow_steps, seconds=0.4)
    trainings = [Started(tmp_path / "base", (slow,), processes, {}) for _ in range(2)]
    ended = [training.end() for training in trainings]
    assert sorted(end.codes for end in ended) == [[0] * processes, [2] * processes], ended[0].output
    assert "is in use by process" in ended[0].output
    state = json.loads((tmp_path / "base" / "checkpoint-12" / "trainer_state.json").read_text())
    steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert not (tmp_path / "base" / LOCK_FILE).exists()


def test_a_killed_training_leaves_its_lock_and_the_next_one_takes_it_over_with_a_word(tmp_path):
    assert run(tmp_path / "base", partial(kill_in_step, step=7)).code == -9
    assert (tmp_path / "base" / LOCK_FILE).exists()
    again = run(tmp_path / "base")
    assert again.code == 0 and "is taken over, since that process is gone" in again.output
    assert not (tmp_path / "base" / LOCK_FILE).exists()
