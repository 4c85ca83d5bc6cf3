"""How much memory a training holds: of the GPU where there is one, else of the process."""

import sys

import torch


def memory_in_use(device: torch.device) -> dict[str, float]:
    """GiB of this process: `memory_gib`, the most it has held so far, and `memory_now_gib`.

    On a GPU what tensors take, and `memory_reserved_gib`, the most that torch has taken from the GPU for them; else
    what is resident. Asks counters that are kept anyway: nothing is synchronised.
    """
    if device.type == "cuda":
        found = {
            "memory_gib": torch.cuda.max_memory_allocated(device),
            "memory_now_gib": torch.cuda.memory_allocated(device),
            "memory_reserved_gib": torch.cuda.max_memory_reserved(device),
        }
    else:
        found = {"memory_gib": most_resident(), "memory_now_gib": resident()}
    return {name: round(value / 2**30, 3) for name, value in found.items()}


def resident() -> int:
    """Bytes of this process in main memory."""
    import psutil

    return psutil.Process().memory_info().rss


def most_resident() -> int:
    """Bytes: the most this process has had in main memory."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, KiB here (getrusage(2))
