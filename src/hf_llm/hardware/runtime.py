"""What the machine offers: device, precision, threads, and the C library's memory habits on a CPU."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def device_type() -> str:
    """`cuda`, `mps` or `cpu`: the device Trainer will pick here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether there are units for matrix products in bf16; without them a CPU is faster in float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities() if device == "cpu" else {}
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


def precision(settings: Mapping[str, Any], units: bool) -> dict[str, bool]:
    """TrainingArguments' precision keys: what the `training` settings of a recipe say, else bf16 where the device has
    `units` for it.

    fp16 needs loss scaling and is left to those who ask for it. In a launch with `--mixed_precision=fp8` neither:
    Trainer would take it for the launch's.
    """
    asked = {key: bool(settings[key]) for key in ("bf16", "fp16") if settings.get(key) is not None}
    return {"bf16": units and not launched_in_fp8() and not asked.get("fp16"), "fp16": False, **asked}


def autocast_type(settings: Mapping[str, Any], units: bool) -> torch.dtype | None:
    """The type in which a training's matrix products are made, None for that of the weights."""
    chosen = precision(settings, units)
    return torch.bfloat16 if chosen["bf16"] else torch.float16 if chosen["fp16"] else None


def launched_in_fp8() -> bool:
    """Whether `accelerate launch` asks for matrix products in 8 bits (accelerate_configs/fp8.yaml)."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8"


def use_all_cores() -> None:
    """Let torch use every core this process may use on a CPU, shared among the processes of this machine.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless its config says `use_cpu`, which would leave the other cores idle.
    Without it, OMP_NUM_THREADS is the user's word and stays.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if "OMP_NUM_THREADS" in os.environ and not launched:
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // processes))


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them: each step frees and asks for the same tensors.

    The page faults cost CPU time otherwise (benchmarks/pretraining.py). Does nothing where there is no glibc.
    """
    _set_thresholds(1 << 30, (1 << 31) - 1)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """`keep_freed_memory` for a while; at the end what is free goes back, and glibc's own thresholds hold again."""
    keep_freed_memory()
    try:
        yield
    finally:
        if libc := _set_thresholds(128 << 10, 128 << 10):
            libc.malloc_trim(0)


def _set_thresholds(mmap: int, trim: int) -> ctypes.CDLL | None:
    """From how many bytes on glibc maps a block by itself, and how many free ones it keeps; None where it is not."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return None
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    libc.mallopt(mmap_threshold, mmap)
    libc.mallopt(trim_threshold, trim)
    return libc
