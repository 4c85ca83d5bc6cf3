"""Find the processor, cores and memory that this process may use, within the limits of its container."""

import math
import os
import platform
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def processor_name() -> str:
    """Return the processor's name as the system reports it."""
    return read_cpuinfo().get("model name") or platform.processor() or platform.machine()


def read_cpuinfo() -> dict[str, str]:
    """Read Linux's description of the first core; empty on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}

    first_core, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
    description = {}
    for line in first_core.splitlines():
        key, _, value = line.partition(":")
        description[key.strip()] = value.strip()
    return description


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Count the cores that this process may keep busy: the least of affinity mask and its container's quotas."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1

    quotas = [_parse_quota(text) for text in _read_limits("cpu.max", cgroups)]

    # cgroup v1: -1 means no quota.
    v1_quotas = _read_limits("cpu/cpu.cfs_quota_us", cgroups)
    v1_periods = _read_limits("cpu/cpu.cfs_period_us", cgroups)
    for quota, period in zip(v1_quotas, v1_periods, strict=False):
        if int(quota) > 0:
            quotas.append(int(quota) / int(period))

    return max(1, math.ceil(min([cores, *quotas])))


def _parse_quota(text: str) -> float:
    """Parse cgroup v2's `cpu.max` (quota and period in microseconds) as a number of cores."""
    quota, period = text.split()
    if quota == "max":
        return math.inf
    return int(quota) / int(period)


def usable_memory(cgroups: Path = CGROUPS) -> int:
    """Count the bytes of memory that this process may hold: the host's, or its container's limit where that is less."""
    limits = [int(text) for text in _read_limits("memory.max", cgroups) if text != "max"]
    limits += [int(text) for text in _read_limits("memory/memory.limit_in_bytes", cgroups)]
    return min([psutil.virtual_memory().total, *limits])


def _read_limits(file_name: str, cgroups: Path) -> list[str]:
    """Read a file of this process's control group and of all above it (cgroup v2), or of the whole tree (v1)."""
    group = ""
    own_groups = Path("/proc/self/cgroup")
    if own_groups.exists():
        group = own_groups.read_text(encoding="utf-8").rpartition("::")[2].strip().lstrip("/")

    folders = [cgroups]
    if group:
        folders = [cgroups / group, *(cgroups / group).parents]

    limits = []
    for folder in folders:
        path = folder / file_name
        if folder.is_relative_to(cgroups) and path.is_file():
            limits.append(path.read_text(encoding="utf-8").strip())
    return limits
