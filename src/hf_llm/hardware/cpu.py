"""What this process may use of its computer: processor, cores and memory, limits of containers included."""

import math
import os
import platform
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def processor_name() -> str:
    """The processor as the system names it."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpuinfo() -> dict[str, str]:
    """Linux's description of the first core; empty on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Cores that this process may keep busy: those of the machine, its affinity mask and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(text) for text in _limits("cpu.max", cgroups)]
    quotas += [
        int(quota) / int(period)
        for quota, period in zip(
            _limits("cpu/cpu.cfs_quota_us", cgroups), _limits("cpu/cpu.cfs_period_us", cgroups), strict=False
        )
        if int(quota) > 0
    ]
    return max(1, math.ceil(min([cores, *quotas])))


def _quota(text: str) -> float:
    quota, period = text.split()
    return math.inf if quota == "max" else int(quota) / int(period)


def usable_memory(cgroups: Path = CGROUPS) -> int:
    """Bytes of memory that this process may hold: the machine's, or its container's limit where that is less."""
    limits = [int(text) for text in _limits("memory.max", cgroups) if text != "max"]
    limits += [int(text) for text in _limits("memory/memory.limit_in_bytes", cgroups)]
    return min([psutil.virtual_memory().total, *limits])


def _limits(file: str, cgroups: Path) -> list[str]:
    """What `file` says in this process's control group and all above it (cgroup v2), or in the whole tree (v1)."""
    own = Path("/proc/self/cgroup")
    path = own.read_text(encoding="utf-8").rpartition("::")[2].strip().lstrip("/") if own.exists() else ""
    folders = [cgroups / path, *(cgroups / path).parents] if path else [cgroups]
    files = [folder / file for folder in folders if folder.is_relative_to(cgroups)]
    return [file.read_text(encoding="utf-8").strip() for file in files if file.is_file()]
