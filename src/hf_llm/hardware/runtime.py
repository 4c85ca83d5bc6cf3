"""Choose what a training uses of this host: device, precision, threads, and how the C library keeps memory on a CPU."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

# malloc.h's names of mallopt's parameters.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
GLIBC_DEFAULT_THRESHOLD_BYTES = 128 << 10

# Values of ONEDNN_MAX_CPU_ISA (DNNL_MAX_CPU_ISA in older versions) below the first instructions for bf16.
ONEDNN_LIMITS_WITHOUT_BF16 = frozenset(["SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"])


def device_type() -> str:
    """Return the device that Trainer picks on this host: `cuda`, `mps` or `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether there are units for matrix products in bf16; without them a CPU is faster in float32.

    On a CPU these products are oneDNN's, which uses no units that its environment variable rules out.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        units = torch.cpu.get_capabilities()
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
        has_units = bool(units.get("avx512_bf16") or units.get("amx_bf16"))
        return has_units and limit.upper() not in ONEDNN_LIMITS_WITHOUT_BF16
    return False


def choose_precision(settings: Mapping[str, Any], units: bool) -> dict[str, bool]:
    """Choose the precision keys of TrainingArguments, `bf16` and `fp16`.

    A key in the `training` settings of a recipe wins. Otherwise bf16 is chosen where the device has `units` for it;
    fp16 never, since it needs loss scaling. In a launch with `--mixed_precision=fp8` neither is chosen: Trainer would
    prefer it to the launch's precision.
    """
    from_recipe = {key: bool(settings[key]) for key in ("bf16", "fp16") if settings.get(key) is not None}
    bf16 = units and not is_launched_in_fp8() and not from_recipe.get("fp16")
    return {"bf16": bf16, "fp16": False, **from_recipe}


def autocast_type(settings: Mapping[str, Any], units: bool) -> torch.dtype | None:
    """Return the type of a training's matrix products; None where it is the type of the weights."""
    chosen = choose_precision(settings, units)
    if chosen["bf16"]:
        return torch.bfloat16
    if chosen["fp16"]:
        return torch.float16
    return None


def is_launched_in_fp8() -> bool:
    """Whether `accelerate launch` asks for matrix products in 8 bits (accelerate_configs/fp8.yaml)."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8"


def use_all_cores() -> None:
    """Let torch use every core this process may use on a CPU, shared among the processes of this host.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless its config says `use_cpu`, which would leave the other cores idle.
    In any other launch an OMP_NUM_THREADS is the user's choice and stays.
    """
    is_launched_by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if "OMP_NUM_THREADS" in os.environ and not is_launched_by_accelerate:
        return

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // processes))


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them: each step frees and asks for the same tensors.

    Otherwise the page faults cost CPU time (benchmarks/pretraining.py). Does nothing where there is no glibc.
    """
    _set_malloc_thresholds(mmap_bytes=1 << 30, trim_bytes=(1 << 31) - 1)


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Do as `keep_freed_memory` within the block. At its end free memory is returned, and glibc's defaults hold."""
    keep_freed_memory()
    try:
        yield
    finally:
        libc = _set_malloc_thresholds(GLIBC_DEFAULT_THRESHOLD_BYTES, GLIBC_DEFAULT_THRESHOLD_BYTES)
        if libc:
            libc.malloc_trim(0)


def _set_malloc_thresholds(mmap_bytes: int, trim_bytes: int) -> ctypes.CDLL | None:
    """Set how large a block must be for glibc to map it by itself, and how many free bytes glibc keeps.

    Returns the C library, None where it is not glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return None
    libc.mallopt(M_MMAP_THRESHOLD, mmap_bytes)
    libc.mallopt(M_TRIM_THRESHOLD, trim_bytes)
    return libc
