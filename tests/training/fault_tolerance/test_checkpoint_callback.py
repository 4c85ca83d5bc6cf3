import json
import os
import shutil
import subprocess
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from hf_llm.training.fault_tolerance.checkpoint_callback import one_norm
from hf_llm.training.fault_tolerance.checkpoints import complete_checkpoints, verify_checkpoint
from tests.training.fault_tolerance.faults import (
    fill_disk,
    fill_disk_in_save,
    kill_in_rotation,
    kill_in_save,
    largest_file,
    poisoned_weight,
    run,
)

WRITES = [
    ("config.json", "after"),
    ("model.safetensors", "amid"),
    ("model.safetensors", "after"),
    ("training_args.bin", "amid"),
    ("optimizer.pt", "amid"),
    ("scheduler.pt", "amid"),
    ("rng_state.pth", "amid"),
    ("trainer_state.json", "before"),
    ("trainer_state.json", "amid"),
    ("trainer_state.json", "after"),
    ("manifest.json.tmp", "amid"),
    ("manifest.json", "before"),
    ("manifest.json", "after"),
]


@pytest.mark.parametrize(("file", "when"), WRITES)
def test_kill_9_at_every_write_of_a_save_loses_that_save_alone(undisturbed, tmp_path, file, when):
    folder = tmp_path / "base"
    assert run(folder, partial(kill_in_save, step=8, file=file, when=when)).code == -9
    again = run(folder)
    finished = (file, when) == ("manifest.json", "after")
    assert f"resuming at step {8 if finished else 4} from" in again.output
    assert ("checkpoint-8 is quarantined as checkpoint-8.incomplete: it was cut off" in again.output) != finished
    assert again.outcome["weights"] == undisturbed.ended.outcome["weights"]
    assert again.outcome["history"] == undisturbed.ended.outcome["history"]


def test_kill_9_in_the_first_save_of_all_means_a_start_and_says_so(undisturbed, tmp_path):
    folder = tmp_path / "base"
    assert run(folder, partial(kill_in_save, step=4, file="optimizer.pt")).code == -9
    again = run(folder)
    assert "checkpoint-4 is quarantined" in again.output
    assert "starting" in again.output
    assert again.outcome == undisturbed.ended.outcome


@pytest.mark.parametrize("files", [1, 4])
def test_kill_9_while_deleting_the_oldest_leaves_two_whole_ones(undisturbed, tmp_path, files):
    folder = tmp_path / "base"
    assert run(folder, partial(kill_in_rotation, files=files)).code == -9
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-8", "checkpoint-12"]
    assert all(verify_checkpoint(path) is None for path in complete_checkpoints(folder))
    assert run(folder).outcome["weights"] == undisturbed.ended.outcome["weights"]


def test_two_checkpoints_stay_however_few_are_asked_for(tmp_path):
    ended = run(tmp_path / "base", save_total_limit=1)
    assert ended.code == 0
    assert [path.name for path in complete_checkpoints(tmp_path / "base")] == ["checkpoint-8", "checkpoint-12"]


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
    ended = run(
        tmp_path / "base",
        partial(largest_eval_loss_after, step=2),
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    assert ended.code == 0, ended.output
    kept = [path.name for path in complete_checkpoints(tmp_path / "base")]
    assert kept == ["checkpoint-2", "checkpoint-10", "checkpoint-12"]


def largest_eval_loss_after(trainer, step):
    evaluate = trainer._evaluate

    def worse(*args, **kwargs):
        return {**evaluate(*args, **kwargs), "eval_loss": float(trainer.state.global_step > step)}

    trainer._evaluate = worse


@pytest.mark.parametrize("size", [8_000, 30_000])  # below model.safetensors; between it and optimizer.pt
def test_a_file_that_cannot_be_written_stops_the_run_and_leaves_no_half_checkpoint(undisturbed, tmp_path, size):
    folder = tmp_path / "base"
    ended = run(folder, partial(largest_file, step=6, size=size))
    assert ended.code == 2
    assert "checkpoint-8 could not be written" in ended.output
    assert "the same command resumes from step 4" in ended.output
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert json.loads((folder / "run_status.json").read_text())["status"] == "failed"
    assert run(folder).outcome["weights"] == undisturbed.ended.outcome["weights"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("leave", [0, 20_000, 50_000])  # OSError, safetensors' error, torch's zip writer's
def test_a_disk_that_fills_up_while_saving_is_an_error_in_bytes_and_resumes_after(undisturbed, small_disk, leave):
    folder = small_disk / "base"
    ended = run(folder, partial(fill_disk_in_save, step=8, leave=leave))
    assert ended.code == 2, ended.output
    assert "no space left for" in ended.output
    assert "it takes about" in ended.output
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert verify_checkpoint(folder / "checkpoint-4") is None
    (folder / "filler").unlink()
    assert run(folder).outcome["weights"] == undisturbed.ended.outcome["weights"]


def test_a_save_that_would_not_fit_is_not_begun(small_disk):
    folder = small_disk / "base"
    folder.mkdir()
    fill_disk(folder, leave=50_000)
    ended = run(folder)
    assert ended.code == 2
    assert "no space left for" in ended.output
    assert "there is no checkpoint yet" in ended.output
    assert list(folder.glob("checkpoint-*")) == []


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    folder = tmp_path / "base"
    ended = run(folder, partial(poisoned_weight, step=8))
    assert ended.code == 2
    assert "weights or optimizer states are not finite at step 8" in ended.output
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]


def finite(checkpoint):
    tensors = list(load_file(checkpoint / "model.safetensors").values())
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
    return all(torch.isfinite(tensor).all() for tensor in [*tensors, *(t for state in states for t in state.values())])


def test_what_an_undisturbed_run_saves_is_finite(undisturbed):
    assert all(finite(checkpoint) for checkpoint in complete_checkpoints(undisturbed.folder))
    assert shutil.disk_usage(undisturbed.folder).free > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_whose_sum_no_half_can_hold_are_finite(dtype):
    weights = torch.ones(1_000_000, dtype=dtype)  # their sum is 15 times the largest float16
    assert torch.isfinite(one_norm(weights))
    for bad in (float("inf"), float("-inf"), float("nan")):
        weights[-1] = bad
        assert not torch.isfinite(one_norm(weights))


def half_weight(trainer, value=1.0):
    """Let the model have a large parameter in float16, as DeepSpeed's fp16 leaves it."""
    weight = torch.full((100_000,), value, dtype=torch.float16)
    trainer.model.register_parameter("large", torch.nn.Parameter(weight, requires_grad=False))


def test_a_large_model_in_float16_is_saved(tmp_path):
    done = run(tmp_path / "good", half_weight, max_steps=4)
    assert done.code == 0, done.output
    assert complete_checkpoints(tmp_path / "good")
    done = run(tmp_path / "bad", partial(half_weight, value=float("inf")), max_steps=4)
    assert done.code == 2 and "are not finite at step 4" in done.output


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_a_checkpoint_has_the_permissions_of_new_files(tmp_path, umask):
    done = run(tmp_path / "base", partial(set_umask, umask=umask), max_steps=4)
    assert done.code == 0, done.output
    files = [path for path in (tmp_path / "base/checkpoint-4").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def set_umask(trainer, umask):
    os.umask(umask)
