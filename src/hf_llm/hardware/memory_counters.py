"""Measure the memory that a training holds: that of the GPU where there is one, otherwise that of the process."""

import sys

import torch


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Read the memory of this process in GiB: `memory_gib`, its peak so far, and `memory_now_gib`.

    On a GPU that is what tensors take, and `memory_reserved_gib` is the peak of what torch has taken from the GPU for
    them; else it is what is resident. The counters are kept anyway: nothing is synchronised.
    """
    if device.type == "cuda":
        counters = {
            "memory_gib": torch.cuda.max_memory_allocated(device),
            "memory_now_gib": torch.cuda.memory_allocated(device),
            "memory_reserved_gib": torch.cuda.max_memory_reserved(device),
        }
    else:
        # The kernel counts the two apart and updates the peak later: a peak is never below what is in use.
        now = resident_bytes()
        counters = {"memory_gib": max(peak_resident_bytes(), now), "memory_now_gib": now}
    return {name: round(value / 2**30, 3) for name, value in counters.items()}


def resident_bytes() -> int:
    """Return the bytes that this process has in main memory."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int:
    """Return the largest number of bytes that this process has had in main memory."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # getrusage(2): bytes on macOS, KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
