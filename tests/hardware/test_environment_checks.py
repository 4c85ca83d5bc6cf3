"""What doctor reports, and which of it stops training."""

from importlib import metadata

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from hf_llm.hardware import environment_checks
from hf_llm.hardware.cpu import usable_cores, usable_memory
from hf_llm.hardware.environment_checks import (
    check_compiler,
    check_disk,
    check_driver,
    check_environment,
    check_gpu,
    check_hub,
    check_package,
    check_platform,
    has_kernels,
)

GIB = 2**30


def test_this_host_is_described_and_nothing_stops_training(tmp_path):
    findings = {finding.what: finding for finding in check_environment(tmp_path / "runs")}
    assert {"Python", "processor", "memory", "PyTorch", "driver", "disk for runs", "libraries"} <= set(findings)
    assert torch.__version__ in findings["PyTorch"].value
    assert f"transformers {metadata.version('transformers')}" in findings["libraries"].value
    assert not [finding for finding in findings.values() if finding.level == "problem"]
    assert str(tmp_path) in findings["disk for runs"].value


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
def test_the_driver_is_compared_with_pytorchs_build(driver, build, available, level, words):
    finding = check_driver(driver, build, available)
    assert (finding.level, words in finding.value) == (level, True)
    assert bool(finding.remedy) == (level != "ok")


def test_a_gpu_needs_kernels_of_its_own_major_version_or_code_to_compile():
    architectures = ["sm_75", "sm_80", "sm_90"]
    assert has_kernels((8, 0), architectures)
    assert has_kernels((8, 9), architectures)
    assert not has_kernels((7, 0), architectures)
    assert not has_kernels((12, 0), architectures)
    assert has_kernels((12, 0), [*architectures, "compute_90"])
    assert has_kernels((9, 0), ["sm_90a"])
    assert has_kernels((9, 4), ["gfx942"])  # ROCm names its own
    assert check_gpu(0, "a GPU", (12, 0), architectures, 10, 10).level == "problem"
    assert check_gpu(0, "a GPU", (8, 0), architectures, 10, 10).level == "ok"
    assert "nvidia-smi" in check_gpu(0, "a GPU", (8, 0), architectures, 4, 10).remedy


def test_a_library_outside_what_hf_llm_asks_for_is_a_problem_with_the_command_that_fixes_it():
    requirement = Requirement("transformers>=5.17,<6")
    assert check_package(requirement, "5.23.0", is_optional=False) is None
    old = check_package(requirement, "4.57.0", is_optional=False)
    assert (old.level, old.remedy) == ("problem", "pip install 'transformers<6,>=5.17'")
    assert check_package(requirement, None, is_optional=False).level == "problem"
    assert check_package(Requirement("ray>=2.50"), None, is_optional=True) is None
    assert check_package(Requirement("ray>=2.50"), "2.0", is_optional=True).level == "note"


def test_disks_that_are_full_or_closed_are_problems():
    assert check_disk("disk for runs", "/runs", 100 * GIB, True).level == "ok"
    assert check_disk("disk for runs", "/runs", 5 * GIB, True).level == "note"
    assert check_disk("disk for runs", "/runs", GIB // 2, True).level == "problem"
    assert check_disk("disk for runs", "/runs", 3 << 20, True).value == "3.0 MiB free at /runs"  # and not 0.0 GiB
    closed = check_disk("disk for the Hub's cache", "/cache", 100 * GIB, False)
    assert (closed.level, "HF_HOME" in closed.remedy) == ("problem", True)


def test_a_compiler_is_needed_where_pretraining_compiles():
    assert check_compiler("/usr/bin/g++", has_cuda=True).level == "ok"
    assert check_compiler(None, has_cuda=True).level == "problem"
    assert check_compiler(None, has_cuda=False).level == "note"


def test_check_hub_names_the_login_without_its_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_seen")
    login, offline = check_hub({"HF_HUB_OFFLINE": "1"})
    assert (login.what, login.value) == ("Hugging Face login", "present")
    assert offline.what == "offline"
    assert "never_to_be_seen" not in str([login, offline])


@pytest.mark.parametrize(
    ("system", "names"),
    [
        (("Linux", "6.1.0", "", {}), []),
        (("Windows", "11", "", {}), ["Windows"]),
        (("Linux", "5.15.167.4-microsoft-standard-WSL2", "", {}), ["WSL"]),
        (("Linux", "6.1.0", "", {"COLAB_RELEASE_TAG": "release"}), ["Colab"]),
        (("Linux", "6.1.0", "", {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}), ["Kaggle"]),
        (("Darwin", "23.0", "14.2", {}), ["macOS"]),
    ],
)
def test_a_note_is_given_only_where_it_applies(system, names):
    notes = list(check_platform(*system))
    assert [note.what for note in notes] == names
    assert all(note.level == "note" and note.remedy for note in notes)


def test_an_old_macos_is_told_to_update():
    (note,) = check_platform("Darwin", "22.0", "13.6", {})
    assert "macOS 14" in note.remedy


def test_a_containers_limits_bound_memory_and_cores(tmp_path):
    cgroup_v2 = tmp_path / "v2"
    cgroup_v2.mkdir()
    (cgroup_v2 / "memory.max").write_text("1073741824\n")
    (cgroup_v2 / "cpu.max").write_text("50000 100000\n")
    assert usable_memory(cgroup_v2) == 2**30
    assert usable_cores(cgroup_v2) == 1

    cgroup_v1 = tmp_path / "v1"
    (cgroup_v1 / "memory").mkdir(parents=True)
    (cgroup_v1 / "cpu").mkdir()
    (cgroup_v1 / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    (cgroup_v1 / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (cgroup_v1 / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_memory(cgroup_v1) == 2**30
    assert usable_cores(cgroup_v1) == usable_cores()


def test_without_limits_the_whole_host_is_usable(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_memory(tmp_path) == psutil.virtual_memory().total
    assert usable_cores(tmp_path) >= 1


def test_a_missing_package_is_found_through_the_projects_own_metadata(monkeypatch):
    def installed_version(name: str) -> str | None:
        return None if name == "trl" else metadata.version(name)

    monkeypatch.setattr(environment_checks, "_installed_version", installed_version)
    trl = next(finding for finding in environment_checks.check_packages() if finding.what == "trl")
    assert (trl.level, "pip install" in trl.remedy) == ("problem", True)
