"""How fast this host multiplies matrices, copies memory and sums over processes: timed, and refused where a figure is
more than the hardware can do."""

import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from hf_llm.hardware.cpu import read_cpuinfo
from hf_llm.hardware.devices import Device

MATRIX_SIDES = (256, 512, 1024, 2048, 4096, 8192)
MATMUL_TYPES = ("float32", "tf32", "bfloat16", "float16")

# Chips run above the clock of their data sheets: a GeForce RTX 4090 at up to 3.1 GHz instead of 2.52, an H100 at up to
# 1.98 instead of 1.83 (their drivers' own upper limits). A timer that does not wait is wrong by far more than this.
CLOCK_HEADROOM = 1.25
FASTEST_CLOCK_HZ = 6.5e9  # no processor is sold with more (Intel's i9-14900KS reaches 6.2 on one core)

RENDEZVOUS_TIMEOUT = timedelta(seconds=120)  # how long processes may take to find each other


@dataclass(frozen=True)
class Bound:
    """The upper bound of a measured figure, in its unit."""

    value: float
    source: str
    """Where the bound is from, as a phrase for messages."""


@dataclass(frozen=True)
class Rate:
    """A measured figure."""

    what: str
    """matmul, copy, all-reduce or training."""
    value: float
    """FLOP/s or bytes/s."""
    dtype: str = ""
    side: int = 0
    """Rows and columns of the square matrices."""
    refused: str = ""
    """Why the figure cannot be true. A refused figure must not be used."""


def time_fastest_call(
    work: Callable[[], object],
    device: torch.device,
    seconds: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds of the fastest call of `work` among those made in about `seconds`.

    Each call waits for the device. One call before them is not timed: the first sets up libraries.
    """
    work()
    synchronize_device(device)

    fastest = math.inf
    deadline = clock() + seconds
    while fastest == math.inf or clock() < deadline:
        started = clock()
        work()
        synchronize_device(device)
        fastest = min(fastest, clock() - started)
    return fastest


def synchronize_device(device: torch.device) -> None:
    """Wait until the device has done its queued work. A CPU works at once."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def random_square_matrix(side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Make (side, side) numbers from 0 to 1, leaving torch's own random state alone.

    Equal numbers would flatter a GPU: bits that do not change take less power, and the clock goes up.
    """
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(side, side, device=device, generator=generator).to(dtype)


def time_matrix_product(side: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Return the seconds of the fastest product of two square matrices, 2 x side^3 floating-point operations."""
    matrix = random_square_matrix(side, device, dtype)
    return time_fastest_call(lambda: torch.mm(matrix, matrix), device, seconds)


def measure_matmul_rates(device: torch.device, bounds: dict[str, Bound], seconds: float = 2.0) -> list[Rate]:
    """Measure FLOP/s by type and size.

    Sizes grow until the next would take longer than `seconds` or half the memory. Figures above the type's bound are
    refused.
    """
    rates = []
    for name in MATMUL_TYPES:
        if name == "tf32" and device.type != "cuda":
            continue
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)

        with _set_float32_precision(name):
            for side in MATRIX_SIDES:
                three_matrices = 3 * side**2 * 4  # bytes in float32
                if three_matrices > _free_memory(device) / 2:
                    break

                product_seconds = time_matrix_product(side, device, dtype, seconds / len(MATRIX_SIDES))
                rate = Rate("matmul", 2 * side**3 / product_seconds, name, side)
                rates.append(refuse_above_bound(rate, bounds.get(name)))

                # The next size takes eight times as long, and is called twice.
                if 2 * 8 * product_seconds > seconds:
                    break
    return rates


@contextmanager
def _set_float32_precision(name: str) -> Iterator[None]:
    """Let float32 products be made in tf32 where `name` says so, and in full precision elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure_copy_rate(device: torch.device, bound: Bound | None, seconds: float = 1.0) -> Rate:
    """Measure the bytes/s of memory, read and written, of copying a buffer too large for any cache."""
    buffer_bytes = (1 << 28) if device.type == "cpu" else (1 << 30)
    size = int(min(buffer_bytes, _free_memory(device) / 8))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)

    copy_seconds = time_fastest_call(lambda: target.copy_(source), device, seconds)
    return refuse_above_bound(Rate("copy", 2 * size / copy_seconds), bound)


def refuse_above_bound(rate: Rate, bound: Bound | None) -> Rate:
    """Return the rate, marked as refused where it is above its bound. Without a bound nothing is refused."""
    if bound is None or rate.value <= bound.value:
        return rate

    if rate.what in ("matmul", "training"):
        unit = "TFLOP/s"
        unit_size = 1e12
    else:
        unit = "GB/s"
        unit_size = 1e9
    reason = (
        f"{rate.value / unit_size:,.6g} {unit} is more than {bound.value / unit_size:,.6g}, {bound.source}: "
        "the timer did not wait for the device, or this is another device"
    )
    return replace(rate, refused=reason)


def matmul_bounds(device: Device) -> dict[str, Bound]:
    """Find the upper bound of matrix products on `device` by type: its data sheet's, or what a CPU's cores can issue.

    A type without an entry has no known bound.
    """
    if device.key == "cpu":
        return cpu_bounds(read_cpuinfo(), platform.machine(), torch.get_num_threads(), _read_max_clock())
    if not device.flops:
        return {}

    source = f"the data sheet of {device.name} with {CLOCK_HEADROOM - 1:.0%} for clocks above it"
    # A type that the data sheet does not list is bounded by the fastest type.
    highest = max(device.flops.values())
    names = MATMUL_TYPES if "float16" in device.flops else device.flops
    return {name: Bound(CLOCK_HEADROOM * device.flops.get(name, highest), source) for name in names}


def bandwidth_bound(device: Device) -> Bound | None:
    """Find the upper bound of copies in the memory of `device`, in bytes/s; None where its maker publishes none."""
    if device.bandwidth is None:
        return None
    source = f"the data sheet of {device.name} with {CLOCK_HEADROOM - 1:.0%} for clocks"
    return Bound(CLOCK_HEADROOM * device.bandwidth, source)


def cpu_bounds(cpuinfo: dict[str, str], architecture: str, cores: int, clock: float) -> dict[str, Bound]:
    """Compute cores x clock x floating-point operations per cycle, for the widest units that /proc/cpuinfo names.

    Returns an empty dictionary where there is no /proc/cpuinfo, or for other architectures: a Mac's matrix unit, for
    example, is not documented.
    """
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    if not flags:
        return {}
    if architecture in ("x86_64", "AMD64", "i686"):
        operations = _x86_operations_per_cycle(flags)
    elif architecture in ("aarch64", "arm64"):
        operations = _arm_operations_per_cycle(flags)
    else:
        return {}

    bounds = {}
    for name, per_cycle in operations.items():
        source = f"{cores} cores at {clock / 1e9:.3g} GHz with {per_cycle} operations a cycle"
        bounds[name] = Bound(cores * clock * per_cycle, source)
    return bounds


def _x86_operations_per_cycle(flags: set[str]) -> dict[str, int]:
    """Return the floating-point operations per cycle of an x86 core, by type.

    A core issues two fused multiply-adds of 512 or 256 bits (128 without AVX), or 1,024 operations with AMX tiles.
    bfloat16 and float16 do twice as many as float32 where there are instructions for them.
    """
    if "avx512f" in flags:
        float32 = 64
    elif "avx" in flags:
        float32 = 32
    else:
        float32 = 16

    if "amx_bf16" in flags:
        bfloat16 = 1024
    elif {"avx512_bf16", "avx_ne_convert"} & flags:
        bfloat16 = 2 * float32
    else:
        bfloat16 = float32

    if "amx_fp16" in flags:
        float16 = 1024
    elif "avx512_fp16" in flags:
        float16 = 2 * float32
    else:
        float16 = float32

    return {"float32": float32, "bfloat16": bfloat16, "float16": float16}


def _arm_operations_per_cycle(flags: set[str]) -> dict[str, int]:
    """Return the floating-point operations per cycle of an Arm core, by type.

    A core issues four fused multiply-adds of 128 bits, or twice as many operations with SVE.
    """
    float32 = 64 if "sve" in flags else 32
    bfloat16 = 4 * float32 if "bf16" in flags else float32
    float16 = 2 * float32 if "asimdhp" in flags else float32
    return {"float32": float32, "bfloat16": bfloat16, "float16": float16}


def _read_max_clock() -> float:
    """Read the highest clock of any core, in Hz; that of the fastest processor sold where the system does not say."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    clocks = [int(file.read_text(encoding="utf-8")) * 1e3 for file in files]  # from kHz
    return max(clocks, default=FASTEST_CLOCK_HZ)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    import psutil

    return psutil.virtual_memory().available


def measure_all_reduce_rate(
    processes: int, device_type: str, megabytes: int = 64, seconds: float | None = None
) -> Rate:
    """Measure the bytes/s that each process sends in a ring all-reduce between `processes` started for it.

    That is 2 (n - 1) / n of the buffer by its time, NCCL's "bus bandwidth". The backend is NCCL on CUDA devices, else
    gloo. Sums are made for `seconds`, by default 1 on CUDA devices, else 0.3. Raises RuntimeError with the error of a
    process, or TimeoutError where they do not find each other.
    """
    from torch import multiprocessing

    if seconds is None:
        seconds = 1.0 if device_type == "cuda" else 0.3
    backend = "nccl" if device_type == "cuda" else "gloo"
    buffer_bytes = megabytes << 20
    with tempfile.TemporaryDirectory() as folder:
        # A fork has this process's imports; it could not use CUDA.
        method = "fork" if backend == "gloo" and sys.platform == "linux" else "spawn"
        workers = multiprocessing.start_processes(
            _time_all_reduce,
            (processes, backend, folder, buffer_bytes, seconds),
            nprocs=processes,
            join=False,
            start_method=method,
        )
        deadline = time.monotonic() + 1.5 * RENDEZVOUS_TIMEOUT.total_seconds()
        try:
            while not workers.join(timeout=1):
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{processes} processes over {backend} did not sum a buffer in {RENDEZVOUS_TIMEOUT}"
                    )
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            last_line = str(error).strip().splitlines()[-1]
            raise RuntimeError(last_line) from error
        finally:
            for process in workers.processes:
                if process.is_alive():
                    process.kill()

        reduce_seconds = json.loads((Path(folder) / "seconds.json").read_text(encoding="utf-8"))

    bytes_per_second = 2 * (processes - 1) / processes * buffer_bytes / reduce_seconds
    return Rate("all-reduce", bytes_per_second, backend)


def _time_all_reduce(rank: int, processes: int, backend: str, folder: str, size: int, seconds: float) -> None:
    """Sum a buffer of `size` bytes with the other processes, as often as `seconds` allow.

    The first process writes the fastest time to `folder`.
    """
    from torch import distributed

    torch.set_num_threads(1)  # the other threads of OpenMP's pool are not in a fork, and would be waited for
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend,
        init_method=f"{Path(folder).as_uri()}/meet",
        rank=rank,
        world_size=processes,
        timeout=RENDEZVOUS_TIMEOUT,
    )
    buffer = torch.zeros(size // 4, device=device)

    def all_reduce() -> None:
        distributed.all_reduce(buffer)

    # All processes have to make the same number of calls, so the slowest one decides.
    once = torch.tensor(time_fastest_call(all_reduce, device, 0), device=device)
    distributed.all_reduce(once, distributed.ReduceOp.MAX)
    calls = max(1, min(100, int(seconds / once.item())))

    fastest = min(time_fastest_call(all_reduce, device, 0) for _ in range(calls))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(fastest), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()
