"""How many floating-point operations a second a device can do at most: what model FLOPs utilisation (MFU) is against.

From the maker's data sheet where the device is known by name, else the rate of a large matrix product measured here,
and said so: a share of a measured rate reads higher than a share of a data sheet's.
"""

from dataclasses import dataclass

import torch

from hf_llm.hardware.devices import known_device
from hf_llm.hardware.microbenchmarks import product_seconds


@dataclass(frozen=True)
class Peak:
    """`flops` is FLOP/s of one device in `dtype`; `measured` tells a timed matrix product from a data sheet's value."""

    flops: float
    dtype: str
    measured: bool

    def __str__(self) -> str:
        source = "a matrix product measured here" if self.measured else "the data sheet"
        return f"{self.flops / 1e12:,.3g} TFLOP/s in {self.dtype}, from {source}"


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of `device` for matrix products in `dtype` (float32 counts as tf32 where torch is told to use that)."""
    if device.type == "cuda":
        listed = listed_peak(
            torch.cuda.get_device_name(device), dtype, torch.get_float32_matmul_precision() != "highest"
        )
        if listed is not None:
            return listed
    return measured_peak(device, dtype)


def listed_peak(name: str, dtype: torch.dtype, tf32: bool = False) -> Peak | None:
    """The data sheet's peak of the device `name`; None where it is not in the table or has no units for `dtype`."""
    device = known_device(name)
    if device is None:
        return None
    used = str(dtype).removeprefix("torch.")
    if used == "float32" and tf32 and "tf32" in device.flops:
        used = "tf32"
    return Peak(device.flops[used], used, False) if used in device.flops else None


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Peak:
    """Time square matrix products for about `seconds`, synchronised, and take the fastest. Draws no random numbers."""
    side = 1024 if device.type == "cpu" else 8192
    flops = 2 * side**3 / product_seconds(side, device, dtype, seconds)
    return Peak(flops, str(dtype).removeprefix("torch."), True)
