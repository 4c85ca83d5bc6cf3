"""What a step computes in and how it is split: measured once, recorded with the run, the same step all the while."""

import json
from dataclasses import asdict

import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import STEP_FILE
from hf_llm.training import step_choice
from hf_llm.training.arguments import list_micro_batches, split_batch
from hf_llm.training.step_choice import (
    BY_RULE,
    PassTime,
    StepChoice,
    choose_step,
    describe_choice,
    digest_shapes,
    pick_fastest,
)
from tests.tiny_models import tiny_model
from tests.training.test_pretraining_trainer import trained

CONTEXT = 64
FLOAT32 = PassTime(False, 8, 0.10)


@pytest.fixture(autouse=True)
def alone_on_a_cpu_with_bf16(tmp_path, monkeypatch):
    monkeypatch.delenv(BY_RULE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "run" / "base"
    folder.mkdir(parents=True)
    return folder


def choose(folder, settings=None, model=None, others=(2, 8)) -> StepChoice:
    return choose_step(model or tiny_model(), settings or {}, folder, CONTEXT, 4, others)


def answer_from_now_on(pass_times: list[PassTime], monkeypatch) -> None:
    """Let every later measurement on this machine give these figures."""
    monkeypatch.setattr(step_choice, "read_measurement", lambda question: [asdict(time) for time in pass_times])


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([PassTime(True, 8, 0.05)], (True, 8)),
        ([PassTime(True, 8, 0.095)], (False, 8)),  # not worth the rounding
        ([PassTime(True, 8, 0.20)], (False, 8)),
        ([PassTime(False, 16, 0.15)], (False, 16)),
        ([PassTime(False, 16, 0.195)], (False, 8)),  # not worth other last bits
        ([PassTime(False, 4, 0.04)], (False, 4)),
        ([PassTime(True, 8, 0.05), PassTime(True, 4, 0.02)], (True, 4)),
        ([PassTime(True, 8, 0.20), PassTime(False, 4, 0.07)], (False, 8)),
    ],
    ids=str,
)
def test_the_faster_one_is_picked_where_it_gains_enough(others, chosen):
    choice = pick_fastest([FLOAT32, *others], 8, 8)
    assert (choice.bf16, choice.micro_batch) == chosen
    assert choice.pass_times == (FLOAT32, *others)


def test_trainings_that_are_compared_measure_nothing(base, monkeypatch):
    monkeypatch.setenv(BY_RULE, "1")
    choice = choose(base)
    assert choice.pass_times == ()
    assert choice.micro_batch == 4


def test_the_usual_micro_batch_stays_where_only_a_part_of_it_was_timed():
    choice = pick_fastest([PassTime(False, 2, 0.1), PassTime(True, 2, 0.05)], 2, 16)
    assert (choice.bf16, choice.micro_batch) == (True, 16)


def test_what_was_measured_is_printed_with_the_keys_that_decide_otherwise(base, capsys):
    choose(base)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    for text in ("in float32", "in bf16", "micro-batches of 8", "training.bf16", "per_device_train_batch_size"):
        assert text in printed


def test_only_what_was_measured_is_printed():
    text = describe_choice(StepChoice(False, 8, (FLOAT32, PassTime(True, 8, 0.2))), CONTEXT)
    assert "training.bf16 decides" in text
    assert "micro-batches" not in text


def test_a_machine_measures_once(base, monkeypatch):
    first = choose(base)
    assert {time.bf16 for time in first.pass_times} == {False, True}

    def time_again(*arguments):
        raise AssertionError("it was measured already")

    monkeypatch.setattr(step_choice, "time_passes", time_again)
    other_run = base.parent.with_name("other") / "base"
    assert choose(other_run) == first


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resume_and_later_stages_read_what_the_run_has_recorded(bf16, base, monkeypatch):
    fast = PassTime(bf16, 4, 0.01)
    slow = PassTime(not bf16, 4, 0.1)
    answer_from_now_on([slow, fast, PassTime(bf16, 8, 0.01)], monkeypatch)
    begun = choose(base)
    assert (begun.bf16, begun.micro_batch) == (bf16, 8)
    (base / "checkpoint-5").mkdir()

    answer_from_now_on([PassTime(bf16, 4, 0.1), PassTime(not bf16, 4, 0.01)], monkeypatch)
    resumed = choose(base)
    assert (resumed.bf16, resumed.micro_batch) == (bf16, 8)
    later = choose(base.with_name("sft"), others=())
    assert (later.bf16, later.micro_batch) == (bf16, 4)  # its rows are split as its recipe says
    (base / STEP_FILE).unlink()
    assert choose(base.with_name("sft"), others=()).bf16 == bf16


def test_a_model_of_another_shape_is_measured_by_itself(base, monkeypatch):
    answer_from_now_on([PassTime(False, 4, 0.1), PassTime(True, 4, 0.01)], monkeypatch)
    assert choose(base).bf16
    answer_from_now_on([PassTime(False, 4, 0.01), PassTime(True, 4, 0.1)], monkeypatch)
    assert choose(base.with_name("sft")).bf16
    assert not choose(base.with_name("dpo"), model=tiny_model(hidden_size=64)).bf16


def test_the_recipe_has_the_last_word(base, monkeypatch):
    answer_from_now_on([PassTime(False, 4, 0.01), PassTime(True, 4, 0.1), PassTime(False, 8, 0.01)], monkeypatch)
    recorded = choose(base)
    assert (recorded.bf16, recorded.micro_batch) == (False, 8)
    given = choose(base, {"bf16": True, "per_device_train_batch_size": 4})
    assert (given.bf16, given.micro_batch) == (True, 4)


@pytest.mark.parametrize("name", ["fp16", "several processes", "begun without a record", "recipe", "engine", "check"])
def test_nothing_is_measured(name, base, monkeypatch, capsys):
    settings = {"fp16": True} if name == "fp16" else {}
    if name == "several processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    if name == "begun without a record":
        (base / "checkpoint-5").mkdir()
    if name == "engine":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    if name == "check":
        base = base.with_name("output")
    if name == "recipe":
        settings = {"bf16": True, "per_device_train_batch_size": 4}
    choice = choose(base, settings)
    assert choice == StepChoice(name != "fp16", 4)  # by rule: bf16 where there are units
    assert not (base / STEP_FILE).exists()
    assert capsys.readouterr().out == ""


def test_a_processor_without_bf16_units_times_no_bf16(base, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    choice = choose(base)
    assert not choice.bf16
    assert {time.bf16 for time in choice.pass_times} == {False}
    assert not choose(base.with_name("sft"), others=()).bf16


def test_use_cpu_on_a_host_with_a_gpu_goes_by_the_cpus_units(base, monkeypatch):
    monkeypatch.setattr(step_choice, "device_type", lambda: "cuda")
    assert choose(base, {"use_cpu": True}) == StepChoice(True, 4)


def test_the_model_and_the_random_state_stay_as_they_are(base):
    model = tiny_model()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    choose(base, model=model)
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None


def test_the_record_names_the_machine_and_is_no_part_of_the_result(base):
    choose(base)
    record = json.loads((base / STEP_FILE).read_text(encoding="utf-8"))
    assert record["shapes"] == digest_shapes(tiny_model())
    assert record["machine"]["threads"] == torch.get_num_threads()
    from hf_llm.core.manifest import file_digests

    assert file_digests(base) == {}


def test_a_damaged_record_is_refused_with_a_remedy(base):
    (base / STEP_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"step\.json.*delete the file"):
        choose(base)


@pytest.mark.parametrize(
    ("windows", "settings", "updates", "expected"),
    [
        (32, {}, 1, [4, 16, 32]),
        (8, {}, 1, [4]),
        (8, {"per_device_train_batch_size": 8}, 1, []),
        (32, {}, 8, [2]),
        (1, {}, 1, []),
    ],
)
def test_only_splits_of_the_same_step_are_listed(windows, settings, updates, expected):
    context = 256
    split = split_batch(windows * context, context, settings, "pretrain", updates)
    sizes = list_micro_batches(split, settings, updates)
    assert sizes == expected
    for size in sizes:
        other = split_batch(windows * context, context, settings, "pretrain", updates, size)
        assert other["per_device_train_batch_size"] * other["gradient_accumulation_steps"] == windows


def test_the_micro_batch_leaves_the_loss_curve_as_it_is(tmp_path):
    curves = []
    for accumulation in (1, 4):
        trainer = trained(tmp_path / str(accumulation), "hf_llm", accumulation, max_steps=50)
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(curves[0]) == 50
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)
