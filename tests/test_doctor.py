"""doctor: what it prints and writes, and that what it writes works."""

import importlib
import json
import shlex
import subprocess
import sys

import pytest

from hf_llm import doctor
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import parse_yaml
from hf_llm.hardware import environment_checks, microbenchmarks
from hf_llm.hardware.devices import Device, detect_hardware, parse_device
from hf_llm.hardware.environment_checks import Finding
from hf_llm.hardware.microbenchmarks import Bound, Rate
from hf_llm.hardware.runtime import device_type
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import STAGES
from hf_llm.planning import speed
from tests.tiny_recipe import run_module, write_inputs


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_doctor_reports_no_problem_on_this_host(capsys):
    doctor.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok       Python ") for line in lines)
    assert not any(line.startswith("problem") for line in lines)


def test_a_problem_is_exit_code_1_and_printed_with_its_remedy(capsys, monkeypatch):
    monkeypatch.setattr(
        environment_checks, "check_environment", lambda: [Finding("driver", "too old", "problem", "update it")]
    )
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--quick"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "problem  driver  too old" in printed
    assert "-> update it" in printed


def test_json_is_all_of_standard_output(capsys):
    doctor.main(["--quick", "--json", "--accelerate-config", "this_machine.yaml"])
    report = json.loads(capsys.readouterr().out)
    assert {finding["what"] for finding in report["findings"]} >= {"Python", "PyTorch", "libraries"}
    assert report["rates"] == []


def test_figures_are_a_table_and_refused_ones_are_not_shown():
    rates = [Rate("matmul", 2e11, "float32", 256), Rate("matmul", 2e17, "float32", 512, refused="too fast"),
             Rate("matmul", 5e14, "bfloat16", 512), Rate("copy", 1.5e10), Rate("all-reduce", 1e9, "gloo")]  # fmt: skip
    lines = doctor.format_rates(rates)
    assert lines[1].split()[-2:] == ["256", "512"]
    assert lines[2].split() == ["float32", "200", "refused"]
    assert lines[3].split() == ["bfloat16", "500,000"]
    assert lines[4].split()[-1] == "15"
    assert lines[5].split() == ["all-reduce", "(gloo),", "GB/s", "1"]


def test_the_machine_value_is_a_name_or_the_rate_of_training():
    rates = [Rate("matmul", 4e11, "float32", 256), Rate("training", 2e11, "float32")]
    assert doctor.choose_machine_value(4, parse_device("rtx4090"), rates) == "4xrtx4090"
    assert doctor.choose_machine_value(1, Device("cpu", "a CPU", 1), rates) == 2e11
    refused_rates = [Rate("training", 2e17, "float32", refused="too fast")]
    assert doctor.choose_machine_value(1, Device("cpu", "a CPU", 1), refused_rates) is None
    assert doctor.choose_machine_value(1, Device("cpu", "a CPU", 1), []) is None


def test_rates_measured_on_this_host_are_not_refused(monkeypatch):
    measure_matmul_rates = microbenchmarks.measure_matmul_rates
    monkeypatch.setattr(
        microbenchmarks,
        "measure_matmul_rates",
        lambda device, bounds, seconds: measure_matmul_rates(device, bounds, seconds=0.2),
    )
    monkeypatch.setattr(
        microbenchmarks, "measure_all_reduce_rate", lambda processes, kind: Rate("all-reduce", 1e9, "gloo")
    )
    rates, problems = doctor.measure_rates(*detect_hardware())
    assert not problems
    by_name = doctor.training_dtype(detect_hardware()[1]) is not None
    assert {rate.what for rate in rates} == {"matmul", "copy", "all-reduce"} | (set() if by_name else {"training"})
    best = max(rate.value for rate in rates if rate.what == "matmul")
    assert all(0 < rate.value < best for rate in rates if rate.what == "training")


def test_a_training_faster_than_the_part_is_refused(monkeypatch):
    monkeypatch.setattr(doctor, "training_dtype", lambda device: None)
    monkeypatch.setattr(microbenchmarks, "measure_matmul_rates", lambda device, bounds, seconds: [])
    monkeypatch.setattr(
        microbenchmarks, "measure_all_reduce_rate", lambda processes, kind: Rate("all-reduce", 1e9, "gloo")
    )
    monkeypatch.setattr(microbenchmarks, "matmul_bounds", lambda device: {"float32": Bound(2e11, "its cores")})
    monkeypatch.setattr(speed, "measure_training_rate", lambda: Rate("training", 2e17, "float32"))
    rates, (problem,) = doctor.measure_rates(1, detect_hardware()[1])
    assert problem.what == "training float32"
    assert "200,000 TFLOP/s is more than 0.2, its cores" in problem.value
    assert doctor.choose_machine_value(1, Device("cpu", "a CPU", 1), rates) is None


def test_a_failed_all_reduce_is_a_note_where_one_process_trains(monkeypatch):
    def fails(processes, kind):
        raise RuntimeError("Connection refused")

    monkeypatch.setattr(microbenchmarks, "measure_matmul_rates", lambda device, bounds, seconds: [])
    monkeypatch.setattr(microbenchmarks, "measure_all_reduce_rate", fails)
    _, (problem,) = doctor.measure_rates(1, detect_hardware()[1])
    assert (problem.level, problem.value) == ("note", "Connection refused")


def test_accelerate_reads_the_launch_config_of_this_host(tmp_path):
    doctor.main(["--quick", "--accelerate-config", "configs/this_machine.yaml"])
    (tmp_path / "says.py").write_text("from accelerate import PartialState\nprint(PartialState().device.type)\n")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file=configs/this_machine.yaml", "says.py"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == device_type()


@pytest.mark.slow
def test_hf_llm_trains_when_launched_with_the_config_of_this_host(tmp_path):
    write_inputs(tmp_path)
    doctor.main(["--quick", "--accelerate-config", "this_machine.yaml"])
    assert run_module("hf_llm.tokenize_corpus", "tiny.yaml", folder=tmp_path).returncode == 0
    launch = ["accelerate.commands.launch", "--config_file=this_machine.yaml", "-m", "hf_llm.pretrain", "tiny.yaml"]
    done = run_module(*launch, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "runs" / "tiny" / "base")


def test_several_gpus_are_one_process_each(tmp_path):
    doctor.write_launch_config(tmp_path / "four.yaml", 4, parse_device("h100"))
    config = parse_yaml((tmp_path / "four.yaml").read_text())
    assert (config["num_processes"], config["distributed_type"], "use_cpu" in config) == (4, "MULTI_GPU", False)


def test_nothing_is_overwritten(tmp_path, capsys):
    for option in ("--accelerate-config=there.yaml", "--recipe=there.yaml"):
        (tmp_path / "there.yaml").write_text("mine")
        with pytest.raises(SystemExit) as ended:
            doctor.main(["--quick", option, *(["--depth=4"] if "recipe" in option else [])])
        assert ended.value.code == 2
        assert "never overwritten" in capsys.readouterr().err
        assert (tmp_path / "there.yaml").read_text() == "mine"


GOALS = {
    "a small chat model": ["--params=5M"],
    "a base model in a day": ["--hours=24", "--machine=4xrtx4090", "--use=base"],
    "a size and hours": ["--params=125M", "--hours=24", "--machine=8xh100", "--use=chat"],
    "too large for the hours": ["--params=1B", "--hours=1", "--machine=1xl4"],
    "a depth": ["--depth=12"],
    "arithmetic": ["--flops=1e19"],
    "own texts": ["--depth=2", "--corpus=texts"],
}


@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS)
def test_a_goal_becomes_a_whole_recipe_that_every_stage_reads(goal, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words " * 1000)
    doctor.main(["--quick", "--recipe=recipes/mine.yaml", *goal])
    text = (tmp_path / "recipes" / "mine.yaml").read_text()
    command = shlex.split(text.splitlines()[0].removeprefix("# "))
    assert command == ["python", "-m", "hf_llm.run", "recipes/mine.yaml"]
    assert text.splitlines()[0].removeprefix("# ") in capsys.readouterr().err
    run = Run(command[3:])
    assert run.is_requested("sft") == ("--use=base" not in goal)
    assert not {"params", "depth", "flops", "hours", "machine"} & set(run.tree)  # written out, nothing left to derive
    for folder, stage in STAGES.items():
        if run.is_requested(folder):
            Run(command[3:]).read(importlib.import_module(stage.module).Recipe)
    assert text.count("# ") > 15
    assert ("would be better" in text) == (goal == GOALS["too large for the hours"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--params=125M"], "needs --recipe"),
        (["--recipe=x.yaml"], "needs a goal"),
        (["--recipe=x.yaml", "--params=125M", "--depth=3"], "each fix the model's size"),
        (["--recipe=x.yaml", "--flops=1e18", "--hours=3", "--machine=1xl4"], "leave one out"),
        (["--recipe=x.yaml", "--hours=3", "--machine=4xrtx409"], "did you mean rtx4090"),
        (["--recipe=x.yaml", "--depth=3", "--corpus=nowhere"], "no such file or folder"),
    ],
)
def test_a_goal_that_cannot_be_met_says_why(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--quick", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.skipif(
    doctor.training_dtype(detect_hardware()[1]) is not None, reason="the data sheet of this host is known"
)
def test_hours_on_an_unmeasured_host_are_refused():
    with pytest.raises(UserError, match="leave out --quick"):
        doctor.write_goal_recipe(doctor.build_parser().parse_args(["--hours=1", "--recipe=x.yaml"]), None)


@pytest.mark.slow
def test_a_written_recipe_runs_to_the_end(tmp_path):
    goal = ["--depth=2", "--hours=0.004", "--machine=1e11", "--use=chat", "--recipe=mine.yaml"]
    assert run_module("hf_llm.doctor", "--quick", *goal, folder=tmp_path).returncode == 0
    sources = "--corpus.sources=[{installed: [language_reference], license: psf-2.0}]"
    done = run_module(
        "hf_llm.run", "mine.yaml", sources, "--sft.training.max_steps=2", "--evaluate.tokens=4096", folder=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = read_manifest(tmp_path / "runs" / "mine" / "base")["settings"]["pretrain.training.max_steps"]
    state = json.loads((tmp_path / "runs" / "mine" / "base" / "trainer_state.json").read_text())
    assert state["global_step"] == steps
    assert (tmp_path / "runs" / "mine" / "report" / "index.html").exists()
