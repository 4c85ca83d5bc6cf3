"""The energy a training takes, where the machine lets it be read: NVML's counters of GPUs, RAPL's of CPUs."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")  # https://docs.kernel.org/power/powercap/powercap.html


class EnergyMeter:
    """Joules that this process answers for since it was made: its GPU's, and of the first process of a machine the
    CPUs'. `joules()` is 0 where nothing can be read (RAPL is root's alone on most machines)."""

    def __init__(self, device: torch.device, first_of_machine: bool, rapl: Path = RAPL):
        self._gpu = gpu_counter(device)
        self._packages = rapl_packages(rapl) if first_of_machine else []
        self._gpu_start = self._gpu_joules()
        self._last = [_microjoules(package) for package in self._packages]
        self._cpu_joules = 0.0

    def joules(self) -> float:
        """Since the meter was made. RAPL's counters wrap around within the hour: to be asked oftener than that."""
        for number, package in enumerate(self._packages):
            now = _microjoules(package)
            passed = now - self._last[number]
            if passed < 0:
                passed += int((package / "max_energy_range_uj").read_text())
            self._last[number] = now
            self._cpu_joules += passed / 1e6
        return self._cpu_joules + self._gpu_joules() - self._gpu_start

    def _gpu_joules(self) -> float:
        return self._gpu() if self._gpu else 0.0


def gpu_counter(device: torch.device) -> Callable[[], float] | None:
    """A function that gives a GPU's joules since its driver was loaded (NVML); None where that cannot be read."""
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
    except pynvml.NVMLError:  # an older GPU, or a slice of one
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # from mJ


def rapl_packages(root: Path) -> list[Path]:
    """The folders of the CPU packages whose energy this user may read."""
    if not sys.platform.startswith("linux") or not root.is_dir():
        return []
    found = []
    for package in sorted(root.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") != 1:  # a part of a package, counted in it
            continue
        try:
            _microjoules(package)
        except OSError:
            continue
        found.append(package)
    return found


def _microjoules(package: Path) -> int:
    return int((package / "energy_uj").read_text())
