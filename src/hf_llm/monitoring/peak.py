"""How many floating-point operations a second a device can do at most: what model FLOPs utilisation (MFU) is against.

From the maker's data sheet where the device is known by name, else the rate of a large matrix product measured here,
and said so: a share of a measured rate reads higher than a share of a data sheet's.
"""

import re
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peak:
    """`flops` is FLOP/s of one device in `dtype`; `measured` tells a timed matrix product from a data sheet's value."""

    flops: float
    dtype: str
    measured: bool

    def __str__(self) -> str:
        source = "a matrix product measured here" if self.measured else "the data sheet"
        return f"{self.flops / 1e12:,.3g} TFLOP/s in {self.dtype}, from {source}"


# Dense TFLOP/s (no sparsity, tensor cores accumulating in float32) by full device name: bfloat16/float16, tf32,
# float32. None: the device has no such units. A name that is not here in full (a laptop's variant, a MIG slice) is
# measured.
DATA_SHEETS: dict[str, tuple[float, float | None, float]] = {
    r"NVIDIA B200": (2250, 1125, 75),  # NVIDIA HGX B200 data sheet, per GPU, half of the values with sparsity
    r"NVIDIA H200|NVIDIA H100 80GB HBM3|NVIDIA H100 SXM5.*": (989.4, 494.7, 66.9),  # NVIDIA H100, H200 SXM data sheets
    r"NVIDIA H(100|200) NVL": (835.5, 417.5, 60),  # NVIDIA H100 NVL, H200 NVL data sheets
    r"NVIDIA H100 PCIe": (756, 378, 51.2),  # NVIDIA H100 PCIe data sheet
    r"(NVIDIA )?A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": (312, 156, 19.5),  # NVIDIA A100 data sheet
    r"NVIDIA L40S": (362, 183, 91.6),  # NVIDIA L40S data sheet
    r"NVIDIA L4": (121, 60, 30.3),  # NVIDIA L4 data sheet, half of the values with sparsity
    r"NVIDIA A10": (125, 62.5, 31.2),  # NVIDIA A10 data sheet (the A10G of AWS is another card)
    r"NVIDIA GeForce RTX 5090": (209.5, 104.8, 104.8),  # RTX Blackwell architecture paper
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),  # NVIDIA Ada GPU architecture paper, appendix A
    r"(NVIDIA )?GeForce RTX 3090": (71, 35.6, 35.6),  # NVIDIA GA102 architecture paper, appendix A
    r"(Tesla |NVIDIA )?T4": (65, None, 8.1),  # NVIDIA T4 data sheet (float16 only)
    r"Tesla V100-SXM2-(16|32)GB": (125, None, 15.7),  # NVIDIA V100 data sheet (float16 only)
    r"Tesla V100-PCIE-(16|32)GB": (112, None, 14),  # NVIDIA V100 data sheet (float16 only)
    r"AMD Instinct MI300X.*": (1307.4, 653.7, 163.4),  # AMD Instinct MI300X data sheet
}
_NO_BFLOAT16 = r".*(T4|V100).*"


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
    for pattern, (half, tensor32, single) in DATA_SHEETS.items():
        if not re.fullmatch(pattern, name):
            continue
        if dtype is torch.float32:
            return Peak(tensor32 * 1e12, "tf32", False) if tf32 and tensor32 else Peak(single * 1e12, "float32", False)
        if dtype is torch.bfloat16 and re.fullmatch(_NO_BFLOAT16, name):
            return None
        return Peak(half * 1e12, str(dtype).removeprefix("torch."), False)
    return None


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Peak:
    """Time square matrix products for about `seconds`, synchronised, and take the fastest. Draws no random numbers."""
    side = 1024 if device.type == "cpu" else 8192
    left = torch.full((side, side), 0.5, device=device, dtype=dtype)
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    torch.mm(left, left)  # the first product also sets up the library
    while time.perf_counter() < deadline:
        _synchronise(device)
        started = time.perf_counter()
        torch.mm(left, left)
        _synchronise(device)
        fastest = min(fastest, time.perf_counter() - started)
    return Peak(2 * side**3 / fastest, str(dtype).removeprefix("torch."), True)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
