"""Look up the limits of an accelerator in its maker's data sheet: memory, bandwidth, FLOP/s, power."""

import difflib
import re
import subprocess
from dataclasses import dataclass, field, replace

import torch

from hf_llm.core.errors import UserError
from hf_llm.hardware.cpu import processor_name, usable_memory

GIB = 2**30
GB = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """One GPU, Apple chip or CPU. What its maker does not publish is missing or None."""

    key: str
    """The short name that recipes use: rtx4090."""
    name: str
    """The full name: NVIDIA GeForce RTX 4090."""
    memory: int
    """Bytes that programs can use."""
    bandwidth: float | None = None
    """Bytes/s of that memory."""
    flops: dict[str, float] = field(default_factory=dict, hash=False)
    """Dense FLOP/s of matrix products by type (float32, tf32, bfloat16, float16), with accumulation in float32, which
    is torch's default."""
    watts: float | None = None
    """Power of one board at full load."""
    source: str = ""
    pattern: str = ""
    """A regular expression of the names that drivers give it; `name` where empty."""

    def is_named(self, name: str) -> bool:
        """Whether a driver's name means this device; the name of a variant (a laptop's GPU, a MIG slice) does not."""
        return re.fullmatch(self.pattern or re.escape(self.name), name) is not None


def _gpu_row(
    key: str,
    name: str,
    gib: float,
    gb_per_second: float,
    half: float,
    tf32: float | None,
    float32: float,
    watts: float,
    source: str,
    pattern: str = "",
    bfloat16: bool = True,
) -> Device:
    """Build a row of the table. `half` is for float16, and for bfloat16 where the GPU has units for it."""
    teraflops_by_type = {
        "float32": float32,
        "tf32": tf32,
        "bfloat16": half if bfloat16 else None,
        "float16": half,
    }
    flops = {dtype: teraflops * TERA for dtype, teraflops in teraflops_by_type.items() if teraflops}
    return Device(key, name, int(gib * GIB), gb_per_second * GB, flops, watts, source, pattern)


def _apple_row(chip: str, gib: int, gb_per_second: float, float32: float | None = None) -> Device:
    flops = {"float32": float32 * TERA} if float32 else {}
    return Device(
        key="apple-" + chip.lower().replace(" ", "-"),
        name=f"Apple {chip}",
        memory=gib * GIB,
        bandwidth=gb_per_second * GB,
        flops=flops,
        source=f"Apple's announcement of {chip}",
    )


# The columns: key, name, GiB, GB/s, dense TFLOP/s in float16/bfloat16, tf32 and float32, watts, source, pattern.
# What a data sheet calls GB of memory are GiB. Cards with GDDR6 for data centres come with ECC on, which takes a
# sixteenth of it. Data sheets that print only rates with sparsity are halved. No prices: they change by the week.
DEVICES: tuple[Device, ...] = (
    _gpu_row("b200", "NVIDIA B200", 180, 8000, 2250, 1125, 75, 1000, "NVIDIA HGX B200 data sheet, per GPU"),
    _gpu_row("h200", "NVIDIA H200", 141, 4800, 989.4, 494.7, 66.9, 700, "NVIDIA H200 SXM data sheet"),
    _gpu_row("h200-nvl", "NVIDIA H200 NVL", 141, 4800, 835.5, 417.5, 60, 600, "NVIDIA H200 NVL data sheet"),
    _gpu_row("h100", "NVIDIA H100 SXM", 80, 3350, 989.4, 494.7, 66.9, 700, "NVIDIA H100 SXM data sheet",
             r"NVIDIA H100 80GB HBM3|NVIDIA H100 SXM5.*"),
    _gpu_row("h100-nvl", "NVIDIA H100 NVL", 94, 3900, 835.5, 417.5, 60, 400, "NVIDIA H100 NVL data sheet"),
    _gpu_row("h100-pcie", "NVIDIA H100 PCIe", 80, 2000, 756, 378, 51.2, 350, "NVIDIA H100 PCIe data sheet"),
    _gpu_row("a100-80gb", "NVIDIA A100-SXM4-80GB", 80, 2039, 312, 156, 19.5, 400, "NVIDIA A100 data sheet",
             r"(NVIDIA )?A100-SXM4-80GB"),
    _gpu_row("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 80, 1935, 312, 156, 19.5, 300, "NVIDIA A100 data sheet",
             r"(NVIDIA )?A100-PCIE-80GB|NVIDIA A100 80GB PCIe"),
    _gpu_row("a100-40gb", "NVIDIA A100-SXM4-40GB", 40, 1555, 312, 156, 19.5, 400, "NVIDIA A100 data sheet",
             r"(NVIDIA )?A100-SXM4-40GB"),
    _gpu_row("a100-40gb-pcie", "NVIDIA A100-PCIE-40GB", 40, 1555, 312, 156, 19.5, 250, "NVIDIA A100 data sheet",
             r"(NVIDIA )?A100-PCIE-40GB"),
    _gpu_row("a40", "NVIDIA A40", 45, 696, 149.7, 74.8, 37.4, 300, "NVIDIA A40 data sheet"),
    _gpu_row("a10", "NVIDIA A10", 22.5, 600, 125, 62.5, 31.2, 150,
             "NVIDIA A10 data sheet (AWS's A10G is another card)"),
    _gpu_row("l40s", "NVIDIA L40S", 45, 864, 362, 183, 91.6, 350, "NVIDIA L40S data sheet"),
    _gpu_row("l4", "NVIDIA L4", 22.5, 300, 121, 60, 30.3, 72, "NVIDIA L4 data sheet"),
    _gpu_row("t4", "NVIDIA T4", 15, 320, 65, None, 8.1, 70, "NVIDIA T4 data sheet", r"(Tesla |NVIDIA )?T4",
             bfloat16=False),
    _gpu_row("v100", "NVIDIA V100-SXM2-32GB", 32, 900, 125, None, 15.7, 300, "NVIDIA V100 data sheet",
             r"Tesla V100-SXM2-32GB", bfloat16=False),
    _gpu_row("v100-16gb", "NVIDIA V100-SXM2-16GB", 16, 900, 125, None, 15.7, 300, "NVIDIA V100 data sheet",
             r"Tesla V100-SXM2-16GB", bfloat16=False),
    _gpu_row("v100-pcie", "NVIDIA V100-PCIE-32GB", 32, 900, 112, None, 14, 250, "NVIDIA V100 data sheet",
             r"Tesla V100-PCIE-32GB", bfloat16=False),
    _gpu_row("v100-16gb-pcie", "NVIDIA V100-PCIE-16GB", 16, 900, 112, None, 14, 250, "NVIDIA V100 data sheet",
             r"Tesla V100-PCIE-16GB", bfloat16=False),
    _gpu_row("rtx6000ada", "NVIDIA RTX 6000 Ada Generation", 48, 960, 364.2, 182.1, 91.1, 300,
             "NVIDIA Ada GPU architecture paper, appendix"),
    _gpu_row("rtxa6000", "NVIDIA RTX A6000", 48, 768, 154.8, 77.4, 38.7, 300,
             "NVIDIA GA102 architecture paper, appendix A"),
    _gpu_row("rtx5090", "NVIDIA GeForce RTX 5090", 32, 1792, 209.5, 104.8, 104.8, 575,
             "RTX Blackwell architecture paper"),
    _gpu_row("rtx4090", "NVIDIA GeForce RTX 4090", 24, 1008, 165.2, 82.6, 82.6, 450,
             "NVIDIA Ada GPU architecture paper, appendix A"),
    _gpu_row("rtx4080", "NVIDIA GeForce RTX 4080", 16, 716.8, 97.5, 48.7, 48.7, 320,
             "NVIDIA Ada GPU architecture paper, appendix"),
    _gpu_row("rtx3090", "NVIDIA GeForce RTX 3090", 24, 936, 71, 35.6, 35.6, 350,
             "NVIDIA GA102 architecture paper, appendix A", r"(NVIDIA )?GeForce RTX 3090"),
    _gpu_row("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 11, 616, 53.8, None, 13.4, 250,
             "NVIDIA Turing architecture paper, appendix A", r"(NVIDIA )?GeForce RTX 2080 Ti", bfloat16=False),
    _gpu_row("mi300x", "AMD Instinct MI300X", 192, 5300, 1307.4, 653.7, 163.4, 750, "AMD Instinct MI300X data sheet",
             r"AMD Instinct MI300X.*"),
    # The largest memory it is sold with. Apple has printed FLOP/s for two chips only, and watts for none.
    _apple_row("M1", 16, 68, 2.6),
    _apple_row("M1 Pro", 32, 200),
    _apple_row("M1 Max", 64, 400),
    _apple_row("M1 Ultra", 128, 800),
    _apple_row("M2", 24, 100, 3.6),
    _apple_row("M2 Pro", 32, 200),
    _apple_row("M2 Max", 96, 400),
    _apple_row("M2 Ultra", 192, 800),
    _apple_row("M3", 24, 100),
    _apple_row("M3 Pro", 36, 150),
    _apple_row("M3 Max", 128, 400),
    _apple_row("M3 Ultra", 512, 819),
    _apple_row("M4", 32, 120),
    _apple_row("M4 Pro", 64, 273),
    _apple_row("M4 Max", 128, 546),
)  # fmt: skip


def find_device(name: str) -> Device | None:
    """Find the device that a driver calls `name`; None where its data sheet is not in the table."""
    for device in DEVICES:
        if device.is_named(name):
            return device
    return None


def parse_device(text: str) -> Device:
    """Find the device of a short key (`rtx4090`, `h100`, `a100-80gb`), however it is spaced. Raises UserError."""
    wanted = _normalize_name(text)
    for device in DEVICES:
        names = (_normalize_name(device.key), _normalize_name(device.name))
        if wanted in names or device.is_named(text):
            return device

    keys = [device.key for device in DEVICES]
    near_keys = [key for key in keys if wanted and _normalize_name(key).startswith(wanted)]
    if not near_keys:
        near_keys = difflib.get_close_matches(wanted, keys, 3)
    if near_keys:
        hint = f"did you mean {' or '.join(near_keys[:3])}?"
    else:
        hint = f"known: {', '.join(keys)}"
    raise UserError(f"{text!r} is not a device whose data sheet is known; {hint}")


def parse_hardware(text: str) -> tuple[int, Device]:
    """Parse `4xrtx4090` as (4, its Device); without a count, as one device. Raises UserError."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(\S.*?)\s*", text)
    count = int(match[1] or 1) if match else 0
    if not count:
        raise UserError(
            f"{text!r} does not name any hardware; write the number and kind of its devices, as in 4xrtx4090"
        )
    return count, parse_device(match[2])


def training_dtype(device: Device) -> str | None:
    """Return the type (a key of `flops`) that training uses on a device of the table; None where it lists no rates."""
    for dtype in ("bfloat16", "float32"):
        if dtype in device.flops:
            return dtype
    return None


def detect_hardware() -> tuple[int, Device]:
    """Detect how many devices of which kind Trainer would use on this host."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 1
    return count, detect_device()


def detect_device() -> Device:
    """Detect the first GPU, the Apple chip or the CPU of this host, with its actual memory.

    A device whose data sheet is not known (a CPU, a laptop's GPU) has no rates; `python -m hf_llm.doctor` measures
    them.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return _look_up_device(properties.name, properties.total_memory)
    if torch.backends.mps.is_available():
        return _look_up_device(_read_apple_chip(), torch.mps.recommended_max_memory())
    return Device("cpu", processor_name(), usable_memory())


def _look_up_device(name: str, memory: int) -> Device:
    """Return the device of a driver's name, with `memory` bytes."""
    listed = find_device(name)
    if listed is None:
        return Device("unlisted", name, memory)
    return replace(listed, name=name, memory=memory)


def _read_apple_chip() -> str:
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return completed.stdout.strip()


def _normalize_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]|nvidia|geforce", "", text.lower())
