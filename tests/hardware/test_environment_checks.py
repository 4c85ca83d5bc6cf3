"""What doctor finds, and which of it stops training."""

from importlib import metadata

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from hf_llm.hardware import environment_checks
from hf_llm.hardware.cpu import usable_cores, usable_memory
from hf_llm.hardware.environment_checks import (
    compiler_finding,
    disk,
    driver_against_build,
    findings,
    gpu_finding,
    has_kernels,
    hub,
    package,
    platform_notes,
)

GIB = 2**30


def test_this_machine_is_described_and_nothing_stops_training(tmp_path):
    found = {finding.what: finding for finding in findings(tmp_path / "runs")}
    assert {"Python", "processor", "memory", "PyTorch", "driver", "disk for runs", "libraries"} <= set(found)
    assert torch.__version__ in found["PyTorch"].value
    assert f"transformers {metadata.version('transformers')}" in found["libraries"].value
    assert not [finding for finding in found.values() if finding.level == "problem"]
    assert str(tmp_path) in found["disk for runs"].value


@pytest.mark.parametrize(
    ("driver", "build", "available", "level", "words"),
    [
        (None, None, False, "ok", "no NVIDIA driver"),
        (None, "13.0", False, "note", "uses the CPU"),
        ((12, 8), None, False, "problem", "stays idle"),
        ((12, 8), "13.0", False, "problem", "needs 13.0"),
        ((13, 0), "13.0", False, "problem", "finds no GPU"),
        ((12, 4), "12.8", True, "note", "PyTorch has 12.8"),
        ((13, 0), "12.8", True, "ok", "up to 13.0"),
    ],
)
def test_the_driver_is_held_against_pytorchs_build(driver, build, available, level, words):
    finding = driver_against_build(driver, build, available)
    assert (finding.level, words in finding.value) == (level, True)
    assert bool(finding.remedy) == (level != "ok")


def test_a_gpu_needs_kernels_of_its_own_major_version_or_code_to_compile():
    built = ["sm_75", "sm_80", "sm_90"]
    assert has_kernels((8, 0), built)
    assert has_kernels((8, 9), built)
    assert not has_kernels((7, 0), built)
    assert not has_kernels((12, 0), built)
    assert has_kernels((12, 0), [*built, "compute_90"])
    assert has_kernels((9, 0), ["sm_90a"])
    assert has_kernels((9, 4), ["gfx942"])  # ROCm names its own
    assert gpu_finding(0, "a GPU", (12, 0), built, 10, 10).level == "problem"
    assert gpu_finding(0, "a GPU", (8, 0), built, 10, 10).level == "ok"
    assert "nvidia-smi" in gpu_finding(0, "a GPU", (8, 0), built, 4, 10).remedy


def test_a_library_outside_what_hf_llm_asks_for_is_a_problem_with_the_command_that_mends_it():
    requirement = Requirement("transformers>=5.17,<6")
    assert package(requirement, "5.23.0", optional=False) is None
    old = package(requirement, "4.57.0", optional=False)
    assert (old.level, old.remedy) == ("problem", "pip install 'transformers<6,>=5.17'")
    assert package(requirement, None, optional=False).level == "problem"
    assert package(Requirement("ray>=2.50"), None, optional=True) is None
    assert package(Requirement("ray>=2.50"), "2.0", optional=True).level == "note"


def test_disks_that_are_full_or_closed_are_problems():
    assert disk("disk for runs", "/runs", 100 * GIB, True).level == "ok"
    assert disk("disk for runs", "/runs", 5 * GIB, True).level == "note"
    assert disk("disk for runs", "/runs", GIB // 2, True).level == "problem"
    closed = disk("disk for the Hub's cache", "/cache", 100 * GIB, False)
    assert (closed.level, "HF_HOME" in closed.remedy) == ("problem", True)


def test_a_compiler_is_needed_where_pretraining_compiles():
    assert compiler_finding("/usr/bin/g++", cuda=True).level == "ok"
    assert compiler_finding(None, cuda=True).level == "problem"
    assert compiler_finding(None, cuda=False).level == "note"


def test_a_login_is_named_and_its_token_is_not(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_seen")
    found = list(hub({"HF_HUB_OFFLINE": "1"}))
    assert [finding.what for finding in found] == ["Hugging Face login", "offline"]
    assert found[0].value == "present"
    assert "never_to_be_seen" not in str(found)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (("Linux", "6.1.0", "", {}), []),
        (("Windows", "11", "", {}), ["Windows"]),
        (("Linux", "5.15.167.4-microsoft-standard-WSL2", "", {}), ["WSL"]),
        (("Linux", "6.1.0", "", {"COLAB_RELEASE_TAG": "release"}), ["Colab"]),
        (("Linux", "6.1.0", "", {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}), ["Kaggle"]),
        (("Darwin", "23.0", "14.2", {}), ["macOS"]),
    ],
)
def test_a_note_is_given_only_where_it_applies(place, names):
    notes = list(platform_notes(*place))
    assert [note.what for note in notes] == names
    assert all(note.level == "note" and note.remedy for note in notes)


def test_an_old_macos_is_told_to_update():
    (note,) = platform_notes("Darwin", "22.0", "13.6", {})
    assert "macOS 14" in note.remedy


def test_a_containers_limits_count_as_the_machine(tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    (two / "memory.max").write_text("1073741824\n")
    (two / "cpu.max").write_text("50000 100000\n")
    assert usable_memory(two) == 2**30
    assert usable_cores(two) == 1
    one = tmp_path / "one"
    (one / "memory").mkdir(parents=True)
    (one / "cpu").mkdir()
    (one / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    (one / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (one / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_memory(one) == 2**30
    assert usable_cores(one) == usable_cores()


def test_without_limits_the_machine_is_the_machine(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_memory(tmp_path) == psutil.virtual_memory().total
    assert usable_cores(tmp_path) >= 1


def test_a_missing_package_is_found_through_the_projects_own_metadata(monkeypatch):
    monkeypatch.setattr(environment_checks, "_version", lambda name: None if name == "trl" else metadata.version(name))
    trl = next(finding for finding in environment_checks.packages() if finding.what == "trl")
    assert (trl.level, "pip install" in trl.remedy) == ("problem", True)
