"""A device -> the floating-point operations a second it can do at most, which model FLOPs utilisation (MFU) is against.

They are the maker's data sheet's where the device is known by name, else the rate of a large matrix product measured on
this host, and marked as such: a share of a measured rate reads higher than a share of a data sheet's. While other
programs run, the product is slower than it can be: it is timed several times, and again later (`ThroughputCallback`).
"""

import time
from dataclasses import dataclass

import torch

from hf_llm.hardware.devices import find_device
from hf_llm.hardware.microbenchmarks import time_matrix_product

CPU_SIDES = (512, 1024)  # rows of the matrices that are timed
GPU_SIDE = 8192
MEASUREMENTS = 3  # in turns, so that a short disturbance does not hit all of them
QUIET_CORE_SHARE = 0.85  # below it, other programs took a part of the cores


@dataclass(frozen=True)
class PeakFlops:
    """The peak of one device for matrix products."""

    flops: float
    """FLOP/s."""
    dtype: str
    measured: bool
    """Whether it was measured by timing a matrix product; otherwise it is from a data sheet."""
    core_share: float = 1.0
    """Share of its cores' time that a measurement on a CPU got; the rest went to other programs."""

    def __str__(self) -> str:
        source = "a matrix product measured here" if self.measured else "the data sheet"
        text = f"{self.flops / 1e12:,.3g} TFLOP/s in {self.dtype}, from {source}"
        if self.core_share < QUIET_CORE_SHARE:
            text += (
                f", which got {self.core_share:.0%} of the cores' time: other programs run, so that MFU reads too high "
                "until it is measured again"
            )
        return text


def find_peak_flops(device: torch.device, dtype: torch.dtype) -> PeakFlops:
    """Find the peak of `device` in `dtype` (float32 counts as tf32 where torch is told to use that)."""
    if device.type == "cuda":
        uses_tf32 = torch.get_float32_matmul_precision() != "highest"
        listed_peak = find_listed_peak(torch.cuda.get_device_name(device), dtype, uses_tf32)
        if listed_peak is not None:
            return listed_peak
    return measure_peak(device, dtype)


def find_listed_peak(name: str, dtype: torch.dtype, tf32: bool = False) -> PeakFlops | None:
    """Look up the data sheet's peak of the device `name`; None where it is not listed or has no units for `dtype`."""
    device = find_device(name)
    if device is None:
        return None

    units = str(dtype).removeprefix("torch.")
    if units == "float32" and tf32 and "tf32" in device.flops:
        units = "tf32"
    if units not in device.flops:
        return None
    return PeakFlops(device.flops[units], units, measured=False)


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> PeakFlops:
    """Time square matrix products for about `seconds`, synchronised, and take the fastest. Draws no random numbers.

    On a CPU two sizes are timed in turns, since which is faster depends on the caches and on what else runs.
    """
    sides = CPU_SIDES if device.type == "cpu" else (GPU_SIDE,)
    rounds = MEASUREMENTS if device.type == "cpu" else 1
    started = time.perf_counter()
    started_on_cores = time.process_time()
    flops = 0.0
    for _ in range(rounds):
        for side in sides:
            product_seconds = time_matrix_product(side, device, dtype, seconds / rounds / len(sides))
            flops = max(flops, 2 * side**3 / product_seconds)

    core_share = 1.0
    if device.type == "cpu":
        core_seconds = torch.get_num_threads() * (time.perf_counter() - started)
        core_share = min(1.0, (time.process_time() - started_on_cores) / core_seconds)
    return PeakFlops(flops, str(dtype).removeprefix("torch."), measured=True, core_share=core_share)
