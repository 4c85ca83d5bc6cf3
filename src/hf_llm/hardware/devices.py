"""Look up the limits of an accelerator in its maker's data sheet: memory, bandwidth, FLOP/s, power."""

import re
import subprocess
from dataclasses import dataclass, field, replace

from hf_llm.core.errors import UserError
from hf_llm.core.similar_names import find_similar_names
from hf_llm.hardware.cpu import processor_name, usable_memory

GIB = 2**30
GB = 1e9
TERA = 1e12

# Words in the names of devices that people leave out.
OPTIONAL_WORDS = (
    "nvidia", "geforce", "rtx", "tesla", "amd", "instinct", "apple", "mac", "macbook", "gpu",
    "sxm", "sxm2", "sxm4", "sxm5",
)  # fmt: skip
MEMORY_TOLERANCE = 0.1  # an A40 of 48 GB has 45 GiB left


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


def _geforce_row(
    key: str, name: str, gib: float, gb_per_second: float, cores: int, boost_ghz: float, watts: float
) -> Device:
    """Build a row of a GeForce card of 2020 or later from its product page.

    A core does one multiplication and one addition in a cycle. tf32 is as fast, and the other half precisions twice
    that, as NVIDIA's architecture papers say of the cards in their appendices.
    """
    float32 = 2 * cores * boost_ghz / 1000
    source = f"NVIDIA's product page of the {name}: {cores:,} cores at {boost_ghz} GHz"
    full_name = f"NVIDIA GeForce {name}"
    pattern = rf"(NVIDIA )?GeForce {re.escape(name)}"
    return _gpu_row(key, full_name, gib, gb_per_second, 2 * float32, float32, float32, watts, source, pattern)


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
    _gpu_row("b300", "NVIDIA B300", 288, 8000, 2250, 1125, 75, 1400, "NVIDIA HGX B300 data sheet, per GPU",
             r"NVIDIA B300.*"),
    _gpu_row("b200", "NVIDIA B200", 180, 8000, 2250, 1125, 75, 1000, "NVIDIA HGX B200 data sheet, per GPU"),
    _gpu_row("gh200", "NVIDIA GH200 480GB", 96, 4000, 989.4, 494.7, 66.9, 1000,
             "NVIDIA GH200 data sheet; the watts are of the GPU with its CPU"),
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
    _gpu_row("a30", "NVIDIA A30", 24, 933, 165, 82, 10.3, 165, "NVIDIA A30 data sheet"),
    _gpu_row("a10", "NVIDIA A10", 22.5, 600, 125, 62.5, 31.2, 150, "NVIDIA A10 data sheet"),
    _gpu_row("a10g", "NVIDIA A10G", 22.5, 600, 70, 35, 31.5, 300, "NVIDIA A10G data sheet (AWS's g5 instances)"),
    _gpu_row("l40", "NVIDIA L40", 45, 864, 181, 90.5, 90.5, 300, "NVIDIA L40 data sheet"),
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
    _geforce_row("rtx5080", "RTX 5080", 16, 960, 10752, 2.62, 360),
    _geforce_row("rtx5070ti", "RTX 5070 Ti", 16, 896, 8960, 2.45, 300),
    _geforce_row("rtx5070", "RTX 5070", 12, 672, 6144, 2.51, 250),
    _geforce_row("rtx5060ti", "RTX 5060 Ti", 16, 448, 4608, 2.57, 180),
    _geforce_row("rtx5060", "RTX 5060", 8, 448, 3840, 2.5, 145),
    _gpu_row("rtx4090", "NVIDIA GeForce RTX 4090", 24, 1008, 165.2, 82.6, 82.6, 450,
             "NVIDIA Ada GPU architecture paper, appendix A"),
    _gpu_row("rtx4080", "NVIDIA GeForce RTX 4080", 16, 716.8, 97.5, 48.7, 48.7, 320,
             "NVIDIA Ada GPU architecture paper, appendix"),
    _geforce_row("rtx4080super", "RTX 4080 SUPER", 16, 736, 10240, 2.55, 320),
    _geforce_row("rtx4070tisuper", "RTX 4070 Ti SUPER", 16, 672, 8448, 2.61, 285),
    _geforce_row("rtx4070ti", "RTX 4070 Ti", 12, 504, 7680, 2.61, 285),
    _geforce_row("rtx4070super", "RTX 4070 SUPER", 12, 504, 7168, 2.48, 220),
    _geforce_row("rtx4070", "RTX 4070", 12, 504, 5888, 2.48, 200),
    _geforce_row("rtx4060ti", "RTX 4060 Ti", 8, 288, 4352, 2.54, 160),
    _geforce_row("rtx4060ti-16gb", "RTX 4060 Ti", 16, 288, 4352, 2.54, 165),
    _geforce_row("rtx4060", "RTX 4060", 8, 272, 3072, 2.46, 115),
    _geforce_row("rtx3090ti", "RTX 3090 Ti", 24, 1008, 10752, 1.86, 450),
    _gpu_row("rtx3090", "NVIDIA GeForce RTX 3090", 24, 936, 71, 35.6, 35.6, 350,
             "NVIDIA GA102 architecture paper, appendix A", r"(NVIDIA )?GeForce RTX 3090"),
    _geforce_row("rtx3080ti", "RTX 3080 Ti", 12, 912, 10240, 1.67, 350),
    _geforce_row("rtx3080", "RTX 3080", 10, 760, 8704, 1.71, 320),
    _geforce_row("rtx3080-12gb", "RTX 3080", 12, 912, 8960, 1.71, 350),
    _geforce_row("rtx3070ti", "RTX 3070 Ti", 8, 608, 6144, 1.77, 290),
    _geforce_row("rtx3070", "RTX 3070", 8, 448, 5888, 1.73, 220),
    _geforce_row("rtx3060ti", "RTX 3060 Ti", 8, 448, 4864, 1.67, 200),
    _geforce_row("rtx3060", "RTX 3060", 12, 360, 3584, 1.78, 170),
    _gpu_row("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 11, 616, 53.8, None, 13.4, 250,
             "NVIDIA Turing architecture paper, appendix A", r"(NVIDIA )?GeForce RTX 2080 Ti", bfloat16=False),
    _gpu_row("mi325x", "AMD Instinct MI325X", 256, 6000, 1307.4, 653.7, 163.4, 1000, "AMD Instinct MI325X data sheet",
             r"AMD Instinct MI325X.*"),
    _gpu_row("mi300a", "AMD Instinct MI300A", 128, 5300, 980.6, 490.3, 122.6, 760, "AMD Instinct MI300A data sheet",
             r"AMD Instinct MI300A.*"),
    # Two dies, each a device of its own to programs: these are the figures of one.
    _gpu_row("mi250x", "AMD Instinct MI250X", 64, 1638, 191.5, None, 47.9, 280,
             "AMD Instinct MI250X data sheet, half a board", r"AMD Instinct MI250X.*"),
    _gpu_row("mi250", "AMD Instinct MI250", 64, 1638, 181, None, 45.3, 280,
             "AMD Instinct MI250 data sheet, half a board", r"AMD Instinct MI250"),
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
    """Find the device that people call `text`: `rtx4090`, `4090`, `H100-80GB`, `mac m2 pro`, a driver's name.

    Of a name that several devices share, such as `a100`, the first in the table is taken (`list_devices_called` has the
    others). Raises UserError for a name that none has.
    """
    devices = list_devices_called(text)
    if devices:
        return devices[0]

    keys = [device.key for device in DEVICES]
    wanted, _ = _split_memory(text)
    near_keys = [key for key in keys if wanted and wanted in _shorten_name(key)]
    if not near_keys:
        near_keys = find_similar_names(text, keys)
    if near_keys:
        hint = f"did you mean {' or '.join(near_keys[:3])}?"
    else:
        hint = f"known: {', '.join(keys)}"
    raise UserError(f"{text!r} is not a device whose data sheet is known; {hint}")


def list_devices_called(text: str) -> list[Device]:
    """List the devices that a name may mean, in the order of the table; a key or a driver's name means only one."""
    wanted = _normalize_name(text)
    for device in DEVICES:
        if wanted in (_normalize_name(device.key), _normalize_name(device.name)) or device.is_named(text):
            return [device]

    name, gib = _split_memory(text)
    devices = []
    for device in DEVICES:
        short_names = {_split_memory(device.key)[0], _split_memory(device.name)[0]}
        has_that_memory = gib is None or abs(device.memory / GIB - gib) <= MEMORY_TOLERANCE * gib
        if name in short_names and has_that_memory:
            devices.append(device)
    return devices


def parse_hardware(text: str) -> tuple[int, Device]:
    """Parse `4xrtx4090` as (4, its Device); without a count, as one device. Raises UserError."""
    match = re.fullmatch(r"\s*(?:(\d{1,3})\s*[x×*]\s*)?(\S.*?)\s*", text)
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
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 1
    return count, detect_device()


def detect_device() -> Device:
    """Detect the first GPU, the Apple chip or the CPU of this host, with its actual memory.

    A device whose data sheet is not known (a CPU, a laptop's GPU) has no rates; `python -m hf_llm.doctor` measures
    them.
    """
    import torch

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


def _split_memory(text: str) -> tuple[str, int | None]:
    """Return the short form of a device's name, without the words that people leave out, and the GB that it ends with.

    `NVIDIA GeForce RTX 3080 12GB` is ("3080", 12).
    """
    match = re.search(r"[\s_-]*(\d+) ?gi?b\b", text.lower())
    gib = None
    if match:
        gib = int(match[1])
        text = text[: match.start()] + text[match.end() :]
    return _shorten_name(text), gib


def _shorten_name(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    name = "".join(word for word in words if word not in OPTIONAL_WORDS)
    return re.sub(r"^(geforce|nvidia)*(rtx|gtx)(?=\d)", "", name)
