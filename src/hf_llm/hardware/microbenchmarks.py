"""How fast this machine multiplies matrices, moves memory and sums over processes: timed here, and refused where a
figure is more than the part can do."""

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from hf_llm.hardware.cpu import cpuinfo
from hf_llm.hardware.devices import Device

SIDES = (256, 512, 1024, 2048, 4096, 8192)
# Chips run above the clock their data sheets count with: a GeForce RTX 4090 goes to 3.1 GHz against 2.52, an H100 to
# 1.98 against 1.83 (their drivers' own upper limits). A timer that does not wait is wrong by far more than this.
HEADROOM = 1.25
FASTEST_CLOCK = 6.5e9  # Hz; no processor is sold with more (Intel's i9-14900KS reaches 6.2 on one core)
PATIENCE = timedelta(seconds=120)  # for processes that do not find each other


@dataclass(frozen=True)
class Bound:
    """What a figure cannot exceed, in its own unit, and where that is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Rate:
    """A measured figure: FLOP/s or bytes/s. `refused` says why it cannot be true; such a figure is good for nothing."""

    what: str  # matmul, copy, all-reduce, training
    value: float
    dtype: str = ""
    side: int = 0  # of the square matrices
    refused: str = ""


def fastest(
    work: Callable[[], object],
    device: torch.device,
    seconds: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of the fastest call of `work` among those made in about `seconds`, waiting for the device each time.

    One call goes before, uncounted: the first sets up libraries.
    """
    work()
    synchronise(device)
    best, deadline = math.inf, clock() + seconds
    while best == math.inf or clock() < deadline:
        started = clock()
        work()
        synchronise(device)
        best = min(best, clock() - started)
    return best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given. A CPU does it at once."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def square(side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(side, side) numbers from 0 to 1 that leave torch's own random state alone. Equal numbers would flatter a GPU:
    bits that do not change take less power, and the clock goes up."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(side, side, device=device, generator=generator).to(dtype)


def product_seconds(side: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Seconds of the fastest product of two square matrices, 2 x side^3 floating-point operations."""
    left = square(side, device, dtype)
    return fastest(lambda: torch.mm(left, left), device, seconds)


def matmul_rates(device: torch.device, bounds: dict[str, Bound], seconds: float = 2.0) -> list[Rate]:
    """FLOP/s by type and size, growing until the next size would take longer than `seconds` or half the memory."""
    found = []
    for name in ("float32", "tf32", "bfloat16", "float16"):
        if name == "tf32" and device.type != "cuda":
            continue
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        with _float32_as(name):
            for side in SIDES:
                if 3 * side**2 * 4 > _free_memory(device) / 2:
                    break
                taken = product_seconds(side, device, dtype, seconds / len(SIDES))
                found.append(judged(Rate("matmul", 2 * side**3 / taken, name, side), bounds.get(name)))
                if 2 * 8 * taken > seconds:  # the next size, and its first call
                    break
    return found


@contextmanager
def _float32_as(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def copy_rate(device: torch.device, bound: Bound | None, seconds: float = 1.0) -> Rate:
    """Bytes/s of memory, read and written, of copying a buffer too large for any cache."""
    size = int(min((1 << 28) if device.type == "cpu" else (1 << 30), _free_memory(device) / 8))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    taken = fastest(lambda: target.copy_(source), device, seconds)
    return judged(Rate("copy", 2 * size / taken), bound)


def judged(rate: Rate, bound: Bound | None) -> Rate:
    """The rate, refused where it is above its bound. Without one nothing is refused."""
    if bound is None or rate.value <= bound.value:
        return rate
    unit, size = ("TFLOP/s", 1e12) if rate.what in ("matmul", "training") else ("GB/s", 1e9)
    reason = (
        f"{rate.value / size:,.6g} {unit} is more than {bound.value / size:,.6g}, {bound.source}: "
        "the timer did not wait for the device, or it is no such device"
    )
    return replace(rate, refused=reason)


def matmul_bounds(device: Device) -> dict[str, Bound]:
    """By type, what no matrix product on `device` can exceed: its data sheet, or what a CPU's cores can issue.

    A type without an entry has no bound that is known.
    """
    if device.key == "cpu":
        return cpu_bounds(cpuinfo(), platform.machine(), torch.get_num_threads(), _clock())
    if not device.flops:
        return {}
    source = f"the data sheet of {device.name} with {HEADROOM - 1:.0%} for clocks above it"
    most = max(device.flops.values())
    names = ("float32", "tf32", "bfloat16", "float16") if "float16" in device.flops else device.flops
    return {name: Bound(HEADROOM * device.flops.get(name, most), source) for name in names}


def bandwidth_bound(device: Device) -> Bound | None:
    """What no copy in the memory of `device` can exceed, in bytes/s; None where its maker does not say."""
    if device.bandwidth is None:
        return None
    return Bound(HEADROOM * device.bandwidth, f"the data sheet of {device.name} with {HEADROOM - 1:.0%} for clocks")


def cpu_bounds(info: dict[str, str], machine: str, cores: int, clock: float) -> dict[str, Bound]:
    """cores x clock x floating-point operations a cycle, of the widest units that /proc/cpuinfo names.

    x86: two fused multiply-adds of 512 or 256 bits a cycle (two of 128 without AVX), bfloat16 and float16 twice as many
    where there are instructions for them, 1,024 operations with AMX tiles. ARM: four of 128 bits or two of 256 (SVE).
    Empty where there is no /proc/cpuinfo: a Mac's matrix unit, for one, is not documented.
    """
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if not flags:
        return {}
    if machine in ("x86_64", "AMD64", "i686"):
        single = 64 if "avx512f" in flags else 32 if "avx" in flags else 16
        brain = 1024 if "amx_bf16" in flags else 2 * single if {"avx512_bf16", "avx_ne_convert"} & flags else single
        half = 1024 if "amx_fp16" in flags else 2 * single if "avx512_fp16" in flags else single
    elif machine in ("aarch64", "arm64"):
        single = 64 if "sve" in flags else 32
        brain = 4 * single if "bf16" in flags else single
        half = 2 * single if "asimdhp" in flags else single
    else:
        return {}
    source = f"{cores} cores at {clock / 1e9:.3g} GHz with {{}} operations a cycle"
    per_cycle = {"float32": single, "bfloat16": brain, "float16": half}
    return {name: Bound(cores * clock * each, source.format(each)) for name, each in per_cycle.items()}


def _clock() -> float:
    """The highest clock of any core, in Hz; that of the fastest processor sold where the system does not say."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    return max((int(file.read_text(encoding="utf-8")) * 1e3 for file in files), default=FASTEST_CLOCK)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def all_reduce_rate(processes: int, device_type: str, megabytes: int = 64, seconds: float = 1.0) -> Rate:
    """Bytes/s that each process sends in a ring all-reduce, 2 (n - 1) / n of the buffer by its time (NCCL's "bus
    bandwidth"), between `processes` started for it: NCCL on CUDA devices, else gloo.

    Raises RuntimeError with what a process said, or TimeoutError where they do not find each other.
    """
    from torch import multiprocessing

    backend = "nccl" if device_type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        started = multiprocessing.spawn(
            _sum_over_processes, (processes, backend, folder, megabytes << 20, seconds), nprocs=processes, join=False
        )
        deadline = time.monotonic() + 1.5 * PATIENCE.total_seconds()
        try:
            while not started.join(timeout=1):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{processes} processes over {backend} did not sum a buffer in {PATIENCE}")
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
        taken = json.loads((Path(folder) / "seconds.json").read_text(encoding="utf-8"))
    return Rate("all-reduce", 2 * (processes - 1) / processes * (megabytes << 20) / taken, backend)


def _sum_over_processes(rank: int, processes: int, backend: str, folder: str, size: int, seconds: float) -> None:
    """One of the processes: sums a buffer as often as fits, the first writes the fastest time."""
    from torch import distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend, init_method=f"{Path(folder).as_uri()}/meet", rank=rank, world_size=processes, timeout=PATIENCE
    )
    buffer = torch.zeros(size // 4, device=device)

    def all_reduce() -> None:
        distributed.all_reduce(buffer)

    once = torch.tensor(fastest(all_reduce, device, 0), device=device)
    distributed.all_reduce(once, distributed.ReduceOp.MAX)  # all make the same number of calls
    calls = max(1, min(100, int(seconds / once.item())))
    best = min(fastest(all_reduce, device, 0) for _ in range(calls))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(best), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()
