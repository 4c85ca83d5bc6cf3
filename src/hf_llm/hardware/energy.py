"""Measure the energy of a training where the host reports it: NVML's counters for GPUs, RAPL's for CPUs."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")  # https://docs.kernel.org/power/powercap/powercap.html


class EnergyMeter:
    """Counts the joules that this process answers for since the meter was made.

    These are its GPU's, and for the first process of a host the CPUs'. What cannot be read counts as 0 (on most hosts
    RAPL is root's alone).
    """

    def __init__(self, device: torch.device, first_of_host: bool, rapl: Path = RAPL):
        self._read_gpu_counter = open_gpu_counter(device)
        self._packages = find_rapl_packages(rapl) if first_of_host else []
        self._gpu_start = self._read_gpu_joules()
        self._last_microjoules = [_read_microjoules(package) for package in self._packages]
        self._cpu_joules = 0.0

    def read_joules(self) -> float:
        """Return the joules since the meter was made.

        RAPL's counters wrap around within the hour: call this more often than that.
        """
        for index, package in enumerate(self._packages):
            now = _read_microjoules(package)
            passed = now - self._last_microjoules[index]
            if passed < 0:  # wrapped around
                passed += int((package / "max_energy_range_uj").read_text())
            self._last_microjoules[index] = now
            self._cpu_joules += passed / 1e6
        return self._cpu_joules + self._read_gpu_joules() - self._gpu_start

    def _read_gpu_joules(self) -> float:
        return self._read_gpu_counter() if self._read_gpu_counter else 0.0


def open_gpu_counter(device: torch.device) -> Callable[[], float] | None:
    """Return a function that reads a GPU's joules since its driver was loaded (NVML); None where it cannot be read."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # nvidia-ml-py, which is not required
    except ImportError:
        return None

    try:
        pynvml.nvmlInit()
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # an older GPU, or a MIG slice of one
        return None

    def read_joules() -> float:
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return millijoules / 1e3

    return read_joules


def find_rapl_packages(root: Path) -> list[Path]:
    """Find the folders of the CPU packages whose energy this user may read."""
    if not sys.platform.startswith("linux") or not root.is_dir():
        return []

    packages = []
    for package in sorted(root.glob("intel-rapl:[0-9]*")):
        is_part_of_package = package.name.count(":") != 1  # and counted in it
        if is_part_of_package:
            continue
        try:
            _read_microjoules(package)
        except OSError:
            continue
        packages.append(package)
    return packages


def _read_microjoules(package: Path) -> int:
    return int((package / "energy_uj").read_text())
