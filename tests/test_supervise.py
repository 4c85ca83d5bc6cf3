"""The supervisor as a user starts it. What it does in each case is in training/fault_tolerance/test_supervisor.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest
from hf_llm.supervise import find_launch_port, find_stage_folder
from tests.tiny_recipe import ROOT, run_module, write_inputs

DATA = os.environ.get("HF_LLM_DATA")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("python -m hf_llm.pretrain tiny.yaml", "runs/tiny/base"),
        ("accelerate launch --config_file c.yaml -m hf_llm.sft tiny.yaml --name=other", "runs/other/sft"),
        (
            "torchrun --nproc_per_node 2 --module hf_llm.reward tiny.yaml --reward.training.max_steps=3",
            "runs/tiny/reward",
        ),
    ],
)
def test_find_stage_folder_reads_the_command(tmp_path, monkeypatch, words, folder):
    write_inputs(tmp_path, documents=1)
    monkeypatch.chdir(tmp_path)
    assert str(find_stage_folder(words.split())) == folder


@pytest.mark.parametrize(
    "words", ["python train.py", "python -m hf_llm.prepare_data tiny.yaml", "hf_llm.pretrain x.yaml"]
)
def test_a_command_that_starts_no_training_stage_is_refused(words):
    with pytest.raises(UserError, match="starts no training stage"):
        find_stage_folder(words.split())


@pytest.mark.parametrize(
    ("words", "port"),
    [
        ("accelerate launch --main_process_port 29501 -m x", 29501),
        ("accelerate launch --main-process-port=29502 -m x", 29502),
        ("torchrun --master_port=29503 -m x", 29503),
        ("accelerate launch -m x", None),
        ("accelerate launch --main_process_port=0 -m x", 0),
    ],
)
def test_find_launch_port_reads_the_command(words, port):
    assert find_launch_port(words.split()) == port


def test_a_missing_recipe_is_an_error_without_importing_heavy_libraries(tmp_path):
    code = "import sys, hf_llm.supervise; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2
    done = run_module("hf_llm.supervise", "--", sys.executable, "-m", "hf_llm.pretrain", "no.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "no recipe at no.yaml" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_program_is_an_error(tmp_path):
    write_inputs(tmp_path, documents=1)
    done = run_module("hf_llm.supervise", "--", "acelerate", "-m", "hf_llm.pretrain", "tiny.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "acelerate: cannot be started: No such file" in done.stderr


@pytest.fixture
def prepared(tiny_life, tmp_path):
    """A folder with the tiny recipe and its corpus, tokenizer and tokens, and the launchers' settings."""
    for item in ("texts", "tiny.yaml"):
        (tmp_path / item).symlink_to(tiny_life / item)
    for item in ("accelerate_configs", "ds_configs"):
        (tmp_path / item).symlink_to(ROOT / item)
    for item in ("corpus", "tokenizer", "tokens"):
        shutil.copytree(tiny_life / "runs/tiny" / item, tmp_path / "runs/tiny" / item)
    return tmp_path


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port=0"]
DDP = [*LAUNCH, "--config_file=accelerate_configs/ddp.yaml", "-m", "hf_llm.pretrain", "tiny.yaml"]
LONG = ("--pretrain.training.max_steps=200", "--pretrain.training.save_steps=40", "--pretrain.training.eval_steps=200")


def start_supervisor(folder, *words, options=()):
    return subprocess.Popen(
        [sys.executable, "-m", "hf_llm.supervise", *options, "--", *words],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate(timeout=60)[0]
        assert time.monotonic() < end
        time.sleep(0.01)


def find_ranks(supervisor):
    """Find the training processes below a supervisor: those whose command begins with the stage."""
    below = psutil.Process(supervisor.pid).children(recursive=True)
    return sorted(p.pid for p in below if "-m hf_llm.pretrain" in " ".join(p.cmdline()[:4]))


@pytest.mark.slow
def test_a_run_of_two_processes_with_one_killed_is_launched_again_and_ends_the_same(prepared):
    base = prepared / "runs/tiny/base"
    uninterrupted = subprocess.run([*DDP, *LONG], cwd=prepared, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert uninterrupted.returncode == 0
    expected = file_digest(base / "model.safetensors")
    base.rename(prepared / "uninterrupted")
    supervisor = start_supervisor(prepared, *DDP, *LONG)
    wait_until(lambda: (base / "checkpoint-80").exists(), supervisor)
    os.kill(find_ranks(supervisor)[1], signal.SIGKILL)
    output = supervisor.communicate(timeout=240)[0]
    assert supervisor.returncode == 0, output
    assert "supervisor: the launch ended with exit code 1" in output
    assert file_digest(base / "model.safetensors") == expected
    attempts = json.loads((base / "logs/supervisor.json").read_text())["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["failed", "finished"]
    assert attempts[1]["from_step"] >= 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("launcher", ["two processes", "one process"])
def test_a_signal_to_the_supervisor_saves_through_accelerate_and_comes_back_as_exit_code(prepared, launcher, number):
    base = prepared / "runs/tiny/base"
    command = DDP if launcher == "two processes" else [*LAUNCH[:3], "--cpu", *DDP[6:]]
    supervisor = start_supervisor(prepared, *command, *LONG)
    wait_until(lambda: (base / "checkpoint-40").exists(), supervisor)
    supervisor.send_signal(number)
    output = supervisor.communicate(timeout=240)[0]
    assert supervisor.returncode == 128 + number, output
    status = json.loads((base / "run_status.json").read_text())
    assert status["status"] == "preempted"
    assert (base / f"checkpoint-{status['step']}" / "manifest.json").exists()
    assert json.loads((base / "logs/supervisor.json").read_text())["status"] == "preempted"


@pytest.mark.slow
def test_ddp_timeout_ends_a_job_in_which_a_rank_hangs(prepared):
    """SIGSTOP: a rank that neither runs nor dies."""
    base = prepared / "runs/tiny/base"
    supervisor = start_supervisor(prepared, *DDP, *LONG, "--pretrain.training.ddp_timeout=8")
    wait_until(lambda: (base / "checkpoint-40").exists(), supervisor)
    began = time.monotonic()
    os.kill(find_ranks(supervisor)[1], signal.SIGSTOP)
    wait_until(lambda: len(json.loads((base / "logs/supervisor.json").read_text())["attempts"]) == 2, supervisor)
    print(f"the job ended {time.monotonic() - began:.0f} s after a rank hung")
    output = supervisor.communicate(timeout=240)[0]
    assert supervisor.returncode == 0, output
    assert "more than ddp_timeout = 8 s behind" in output


@pytest.mark.slow
def test_a_user_error_below_accelerate_is_printed_once_and_not_launched_again(prepared):
    supervisor = start_supervisor(prepared, *DDP, "--pretrain.training.learning_rate=fast")
    output = supervisor.communicate(timeout=240)[0]
    assert supervisor.returncode == 2, output
    assert output.count("error: ") and "learning_rate: 'fast' does not fit" in output
    record = json.loads((prepared / "runs/tiny/base/logs/supervisor.json").read_text())
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["refused"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_killed_at_random_moments_ends_as_the_uninterrupted_one(processes):
    sizes = ["--minutes", "1", "--kills", "2", "--hidden-size", "64", "--layers", "2"]
    command = [sys.executable, ROOT / "benchmarks/killed_run.py", "--processes", processes, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "promise kept" in done.stdout
