"""The plan: no corpus, no tokenizer, no weights; and afterwards, predicted beside actual."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_llm import plan
from hf_llm.core.manifest import write_json, write_manifest
from hf_llm.hardware.devices import parse_device
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.pipeline.run import Run
from hf_llm.planning import speed
from hf_llm.planning.memory import TRAINING, WEIGHTS, Footprint
from hf_llm.planning.memory_estimate import EngineEstimate, TrainingJob
from hf_llm.pretrain import Recipe
from hf_llm.reporting.plan_accuracy import PLAN_FILE, compare_with_plan, save_prediction
from tests.tiny_models import tiny_config
from tests.tiny_recipe import run_module, write_inputs


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_inputs(tmp_path, documents=1).relative_to(tmp_path))


def test_other_hardware_is_planned_without_writing_anything(recipe, capsys):
    plan.main([recipe, "--gpus", "4xrtx4090", "--price", "0.4/gpu-hour", "--electricity=0.3"])
    printed = capsys.readouterr().out
    for engine in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-2, offload", "ZeRO-3", "FSDP2", "FSDP2, checkpointing"):
        assert f"\n  {engine}  " in printed
    for words in ("FLOPs to train on a token", "compute-optimal", "It fits as it is", "tokens per second", "rent"):
        assert words in printed
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == ["base", "sft", "dpo"]
    assert not Path("runs").exists()


def test_this_host_is_planned_by_measuring_and_the_plan_is_kept(recipe, tmp_path):
    wide = ("--model.hidden_size=192", "--model.max_position_embeddings=256", "--pretrain.tokens_per_step=4096")
    both = [f"--{section}.training.per_device_train_batch_size=16" for section in ("pretrain", "sft")]
    tuned = ("--sft.training.max_length=256", "--sft.lora=null", "--dpo=null")
    done = run_module("hf_llm.plan", recipe, *wide, *both, *tuned, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "measured here on 2 of 2 layers" in printed
    stage_rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["base"], ["sft"])]
    base_memory, sft_memory = (float(row[1]) for row in stage_rows)
    assert base_memory == pytest.approx(sft_memory, rel=0.1)  # the C library is not as even as that
    assert "one process" in printed
    assert "program" in printed
    (kept,) = json.loads(Path("runs/tiny", PLAN_FILE).read_text(encoding="utf-8")).values()
    assert set(kept) == {"memory, GiB", "tokens per second", "hours"}
    assert all(value > 0 for value in kept.values())


def estimate(engine: str, max_micro_batch: int, checkpointing: bool = False) -> EngineEstimate:
    footprint = Footprint({TRAINING: {WEIGHTS: 2**30}})
    return EngineEstimate(engine, checkpointing, footprint, max_micro_batch, accumulation=1)


def test_what_does_not_fit_says_what_to_change_the_cheapest_first():
    hardware = plan.TargetHardware(4, parse_device("rtx4090"), is_this_host=False)
    job = TrainingJob(tiny_config(), 128, windows=512, settings={"per_device_train_batch_size": 8}, bf16=True)
    estimates = [estimate("DDP", 2), estimate("ZeRO-2", 4), estimate("DDP", 64, True), estimate("ZeRO-2", 64, True)]
    chosen = plan.find_first_fitting(estimates, job, hardware)
    assert chosen is estimates[2]
    advice = plan.advise(estimates, chosen, hardware, 8)
    remedies = ("DDP has no room", "batch_size=2", "activation_checkpointing", "ZeRO-2")
    positions = [advice.index(words) for words in remedies]
    assert positions == sorted(positions)


def test_only_what_fits_by_the_table_is_advised():
    hardware = plan.TargetHardware(4, parse_device("rtx4090"), is_this_host=False)
    estimates = [estimate("DDP", 0), estimate("ZeRO-3", 0), estimate("DDP", 0, True), estimate("ZeRO-3", 2, True)]
    advice = plan.advise(estimates, estimates[3], hardware, 8)
    assert advice == (
        "DDP has no room for that. In order of cost: ZeRO-3 (docs/launching.md; more traffic between the devices) with "
        "--pretrain.training.activation_checkpointing=true (a third more arithmetic) with "
        "--pretrain.training.per_device_train_batch_size=2."
    )


def test_what_fits_nowhere_says_so():
    hardware = plan.TargetHardware(1, parse_device("t4"), is_this_host=False)
    job = TrainingJob(tiny_config(), 128, windows=512, settings={}, bf16=False)
    estimates = [estimate("one device", 0), estimate("one device", 0, True)]
    assert plan.find_first_fitting(estimates, job, hardware) is None
    assert "take more or larger devices" in plan.advise(estimates, None, hardware, 8)


def test_where_it_fits_nothing_is_advised():
    estimates = [estimate("one device", 64), estimate("one device", 64, True)]
    hardware = plan.TargetHardware(1, parse_device("t4"), is_this_host=False)
    assert plan.advise(estimates, estimates[0], hardware, 8) == "It fits as it is."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus=4xrtx4900"], "did you mean"),
        (["--price=cheap"], "is not a price"),
        (["--pretrain.tokens_per_step=1000"], "is not a multiple of 128"),
        (["--model.hidden_sise=3"], "did you mean"),
        (["--tokenizer.use=openai-community/gpt2"], "--model.vocab_size="),
        (["--score"], "nothing to compare"),
    ],
)
def test_a_recipe_that_cannot_be_planned_is_an_error(recipe, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        plan.main([recipe, *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def write_finished_run(root, tree, predicted):
    root.mkdir(parents=True)
    save_prediction(root, tree, predicted)
    (root / "base").mkdir()
    log = [{"step": step, "loss": 1.0, "memory_gib": 2.0, "tokens_per_second": 1000.0 * step} for step in (1, 2, 3)]
    write_json(root / "base" / "trainer_state.json", {"log_history": log})
    write_manifest(root / "base", folder="base", headline="", seconds=1800, inputs={}, licenses=[], settings={})


def test_predicted_stands_beside_actual(tmp_path, recipe, capsys):
    tree = plan.Run([recipe]).tree
    predicted = {"memory, GiB": 1.9, "tokens per second": 2200.0, "hours": 0.5}
    write_finished_run(tmp_path / "runs" / "tiny", tree, predicted)
    plan.main([recipe, "--score"])
    lines = {line.split("  ")[1]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["memory, GiB"][-3:] == ["1.9", "2", "-5%"]
    assert lines["tokens per second"][-3:] == ["2,200", "2,000", "+10%"]
    assert lines["hours"][-3:] == ["0.5", "0.5", "+0%"]


def test_plans_of_different_recipes_are_kept_side_by_side(tmp_path, recipe):
    root = tmp_path / "runs" / "tiny"
    tree = plan.Run([recipe]).tree
    write_finished_run(root, tree, {"hours": 0.5})
    assert [(entry.what, entry.predicted) for entry in compare_with_plan(root, tree)] == [("hours", 0.5)]
    other = plan.Run([recipe, "--model.hidden_size=64"]).tree
    assert compare_with_plan(root, other) == []
    save_prediction(root, other, {"hours": 0.7})
    assert [compare_with_plan(root, either)[0].predicted for either in (tree, other)] == [0.5, 0.7]


def test_the_hours_of_all_sessions_count(tmp_path, recipe):
    root = tmp_path / "runs" / "tiny"
    tree = plan.Run([recipe]).tree
    write_finished_run(root, tree, {"hours": 10.0})
    log = [{"step": 1, "loss": 1.0, "device_hours": 9.0}, {"step": 2, "loss": 1.0, "device_hours": 20.0}]
    write_json(root / "base" / "trainer_state.json", {"log_history": log})
    write_manifest(root / "base", seconds=3600, facts={"processes": 2})
    assert [entry.actual for entry in compare_with_plan(root, tree)] == [10.0]


def test_where_nothing_fits_on_this_host_nothing_is_timed(recipe, monkeypatch, capsys):
    count, device = plan.detect_hardware()
    monkeypatch.setattr(plan, "detect_hardware", lambda: (count, replace(device, memory=2**20)))
    plan.main([recipe])
    assert capsys.readouterr().out.splitlines()[-1].startswith("Nothing here fits")
    assert not Path("runs").exists()


def test_the_data_sheet_serves_where_timing_runs_out_of_memory(monkeypatch):
    def run_out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(speed, "measure_job_speed", run_out_of_memory)
    hardware = plan.TargetHardware(8, parse_device("h100"), is_this_host=True)
    job = TrainingJob(HfLlmConfig(), 2048, windows=512, settings={"bf16": True}, bf16=True)
    assert "data sheet's 989 TFLOP/s in bfloat16" in plan.find_speed(job, hardware, estimate("ZeRO-3", 8)).source


def test_a_given_tokenizer_and_an_unpruned_model_decide_the_sizes(tiny_life, monkeypatch):
    monkeypatch.chdir(tiny_life)
    hardware = plan.TargetHardware(1, parse_device("h100"), is_this_host=False)

    def plan_config(*arguments):
        recipe = Run(["tiny.yaml", *arguments]).read(Recipe)
        return plan.build_pretraining_job(plan.Run(["tiny.yaml", *arguments]), recipe, hardware).config

    given = ("--name=other", "--pretrain.tokenizer=runs/tiny/tokenizer")
    assert plan_config(*given, "--tokenizer.vocab_size=1000").vocab_size == 320
    pruned = ("--model={hidden_act: gelu}", "--pretrain.start_from=runs/tiny/base", "--pretrain.keep_layers=[1]")
    config = plan_config(*pruned)
    assert (config.num_hidden_layers, config.hidden_size, config.hidden_act) == (1, 32, "gelu")
