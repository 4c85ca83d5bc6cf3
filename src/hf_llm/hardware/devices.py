"""What an accelerator can do at most, from its maker's data sheet: memory, bandwidth, arithmetic, power."""

import difflib
import re
import subprocess
from dataclasses import dataclass, field

import torch

from hf_llm.core.errors import UserError
from hf_llm.hardware.cpu import processor_name, usable_memory


@dataclass(frozen=True)
class Device:
    """One GPU, Apple chip or CPU. What its maker does not publish is missing or None.

    `flops` holds the dense FLOP/s of matrix products by type (float32, tf32, bfloat16, float16), tensor cores adding
    up in float32 as torch has them do.
    """

    key: str  # rtx4090
    name: str  # NVIDIA GeForce RTX 4090
    memory: int  # bytes that programs can use
    bandwidth: float | None = None  # bytes/s of that memory
    flops: dict[str, float] = field(default_factory=dict, hash=False)
    watts: float | None = None  # of one board at full power
    source: str = ""
    pattern: str = ""  # of the names that drivers give it; `name` where empty

    def is_named(self, name: str) -> bool:
        """Whether a driver's name means this device; that of a relative (a laptop's, a MIG slice) does not."""
        return re.fullmatch(self.pattern or re.escape(self.name), name) is not None


GIB, GB, TERA = 2**30, 1e9, 1e12


def _gpu(key, name, gib, gb_per_second, half, tf32, float32, watts, source, pattern="", bfloat16=True) -> Device:
    flops = {"float32": float32, "tf32": tf32, "bfloat16": half if bfloat16 else None, "float16": half}
    flops = {dtype: teraflops * TERA for dtype, teraflops in flops.items() if teraflops}
    return Device(key, name, int(gib * GIB), gb_per_second * GB, flops, watts, source, pattern)


def _apple(chip, gib, gb_per_second, float32=None) -> Device:
    flops = {"float32": float32 * TERA} if float32 else {}
    key = "apple-" + chip.lower().replace(" ", "-")
    return Device(key, f"Apple {chip}", gib * GIB, gb_per_second * GB, flops, None, f"Apple's announcement of {chip}")


# GiB, GB/s, dense TFLOP/s in float16/bfloat16, tf32 and float32, watts. What a data sheet calls GB of memory are GiB.
# Cards with GDDR6 for data centres come with ECC on, which takes a sixteenth of it. Data sheets that print only rates
# with sparsity are halved. No prices: they change by the week.
DEVICES: tuple[Device, ...] = (
    _gpu("b200", "NVIDIA B200", 180, 8000, 2250, 1125, 75, 1000, "NVIDIA HGX B200 data sheet, per GPU"),
    _gpu("h200", "NVIDIA H200", 141, 4800, 989.4, 494.7, 66.9, 700, "NVIDIA H200 SXM data sheet"),
    _gpu("h200-nvl", "NVIDIA H200 NVL", 141, 4800, 835.5, 417.5, 60, 600, "NVIDIA H200 NVL data sheet"),
    _gpu("h100", "NVIDIA H100 SXM", 80, 3350, 989.4, 494.7, 66.9, 700, "NVIDIA H100 SXM data sheet",
         r"NVIDIA H100 80GB HBM3|NVIDIA H100 SXM5.*"),
    _gpu("h100-nvl", "NVIDIA H100 NVL", 94, 3900, 835.5, 417.5, 60, 400, "NVIDIA H100 NVL data sheet"),
    _gpu("h100-pcie", "NVIDIA H100 PCIe", 80, 2000, 756, 378, 51.2, 350, "NVIDIA H100 PCIe data sheet"),
    _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 80, 2039, 312, 156, 19.5, 400, "NVIDIA A100 data sheet",
         r"(NVIDIA )?A100-SXM4-80GB"),
    _gpu("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 80, 1935, 312, 156, 19.5, 300, "NVIDIA A100 data sheet",
         r"(NVIDIA )?A100-PCIE-80GB|NVIDIA A100 80GB PCIe"),
    _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 40, 1555, 312, 156, 19.5, 400, "NVIDIA A100 data sheet",
         r"(NVIDIA )?A100-SXM4-40GB"),
    _gpu("a100-40gb-pcie", "NVIDIA A100-PCIE-40GB", 40, 1555, 312, 156, 19.5, 250, "NVIDIA A100 data sheet",
         r"(NVIDIA )?A100-PCIE-40GB"),
    _gpu("a40", "NVIDIA A40", 45, 696, 149.7, 74.8, 37.4, 300, "NVIDIA A40 data sheet"),
    _gpu("a10", "NVIDIA A10", 22.5, 600, 125, 62.5, 31.2, 150, "NVIDIA A10 data sheet (AWS's A10G is another card)"),
    _gpu("l40s", "NVIDIA L40S", 45, 864, 362, 183, 91.6, 350, "NVIDIA L40S data sheet"),
    _gpu("l4", "NVIDIA L4", 22.5, 300, 121, 60, 30.3, 72, "NVIDIA L4 data sheet"),
    _gpu("t4", "NVIDIA T4", 15, 320, 65, None, 8.1, 70, "NVIDIA T4 data sheet", r"(Tesla |NVIDIA )?T4", bfloat16=False),
    _gpu("v100", "NVIDIA V100-SXM2-32GB", 32, 900, 125, None, 15.7, 300, "NVIDIA V100 data sheet",
         r"Tesla V100-SXM2-32GB", bfloat16=False),
    _gpu("v100-16gb", "NVIDIA V100-SXM2-16GB", 16, 900, 125, None, 15.7, 300, "NVIDIA V100 data sheet",
         r"Tesla V100-SXM2-16GB", bfloat16=False),
    _gpu("v100-pcie", "NVIDIA V100-PCIE-32GB", 32, 900, 112, None, 14, 250, "NVIDIA V100 data sheet",
         r"Tesla V100-PCIE-32GB", bfloat16=False),
    _gpu("v100-16gb-pcie", "NVIDIA V100-PCIE-16GB", 16, 900, 112, None, 14, 250, "NVIDIA V100 data sheet",
         r"Tesla V100-PCIE-16GB", bfloat16=False),
    _gpu("rtx6000ada", "NVIDIA RTX 6000 Ada Generation", 48, 960, 364.2, 182.1, 91.1, 300,
         "NVIDIA Ada GPU architecture paper, appendix"),
    _gpu("rtxa6000", "NVIDIA RTX A6000", 48, 768, 154.8, 77.4, 38.7, 300,
         "NVIDIA GA102 architecture paper, appendix A"),
    _gpu("rtx5090", "NVIDIA GeForce RTX 5090", 32, 1792, 209.5, 104.8, 104.8, 575, "RTX Blackwell architecture paper"),
    _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24, 1008, 165.2, 82.6, 82.6, 450,
         "NVIDIA Ada GPU architecture paper, appendix A"),
    _gpu("rtx4080", "NVIDIA GeForce RTX 4080", 16, 716.8, 97.5, 48.7, 48.7, 320,
         "NVIDIA Ada GPU architecture paper, appendix"),
    _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 24, 936, 71, 35.6, 35.6, 350,
         "NVIDIA GA102 architecture paper, appendix A", r"(NVIDIA )?GeForce RTX 3090"),
    _gpu("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 11, 616, 53.8, None, 13.4, 250,
         "NVIDIA Turing architecture paper, appendix A", r"(NVIDIA )?GeForce RTX 2080 Ti", bfloat16=False),
    _gpu("mi300x", "AMD Instinct MI300X", 192, 5300, 1307.4, 653.7, 163.4, 750, "AMD Instinct MI300X data sheet",
         r"AMD Instinct MI300X.*"),
    # The largest memory it is sold with. Apple has printed FLOP/s for two chips only, and watts for none.
    _apple("M1", 16, 68, 2.6), _apple("M1 Pro", 32, 200), _apple("M1 Max", 64, 400), _apple("M1 Ultra", 128, 800),
    _apple("M2", 24, 100, 3.6), _apple("M2 Pro", 32, 200), _apple("M2 Max", 96, 400), _apple("M2 Ultra", 192, 800),
    _apple("M3", 24, 100), _apple("M3 Pro", 36, 150), _apple("M3 Max", 128, 400), _apple("M3 Ultra", 512, 819),
    _apple("M4", 32, 120), _apple("M4 Pro", 64, 273), _apple("M4 Max", 128, 546),
)  # fmt: skip


def known_device(name: str) -> Device | None:
    """The device that a driver calls `name`; None where no data sheet of it is here."""
    return next((device for device in DEVICES if device.is_named(name)), None)


def device_named(key: str) -> Device:
    """The device of a short key (`rtx4090`, `h100`, `a100-80gb`), however it is spaced. Raises UserError."""
    wanted = _letters(key)
    for device in DEVICES:
        if wanted in (_letters(device.key), _letters(device.name)) or device.is_named(key):
            return device
    keys = [device.key for device in DEVICES]
    near = [k for k in keys if wanted and _letters(k).startswith(wanted)] or difflib.get_close_matches(wanted, keys, 3)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"known: {', '.join(keys)}"
    raise UserError(f"{key!r} is no device whose data sheet is known; {hint}")


def parse_machine(text: str) -> tuple[int, Device]:
    """`4xrtx4090` as (4, its Device); without a count, one. Raises UserError."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(\S.*?)\s*", text)
    count = int(match[1] or 1) if match else 0
    if not count:
        raise UserError(f"{text!r} is no machine; write the number and kind of its devices, as in 4xrtx4090")
    return count, device_named(match[2])


def training_dtype(device: Device) -> str | None:
    """The type that training computes in on a device of the table, a key of `flops`; None where it lists no rates."""
    return next((dtype for dtype in ("bfloat16", "float32") if dtype in device.flops), None)


def this_machine() -> tuple[int, Device]:
    """How many devices of which kind Trainer would use here."""
    return (torch.cuda.device_count() if torch.cuda.is_available() else 1), this_device()


def this_device() -> Device:
    """The first GPU, the Apple chip or the CPU of this machine, with the memory it really has.

    One that no data sheet is known of (a CPU, a laptop's GPU) comes without rates: `planning.rates` measures them.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return _as_found(properties.name, properties.total_memory)
    if torch.backends.mps.is_available():
        return _as_found(_apple_chip(), torch.mps.recommended_max_memory())
    return Device("cpu", processor_name(), usable_memory())


def _as_found(name: str, memory: int) -> Device:
    listed = known_device(name)
    if listed is None:
        return Device("unlisted", name, memory)
    return Device(listed.key, name, memory, listed.bandwidth, listed.flops, listed.watts, listed.source, listed.pattern)


def _apple_chip() -> str:
    return subprocess.run(
        ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]|nvidia|geforce", "", text.lower())
