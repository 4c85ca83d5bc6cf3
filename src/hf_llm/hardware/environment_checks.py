"""What training finds on this computer: system, GPUs, disk, libraries, and what to do where they do not fit."""

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from hf_llm.hardware.cpu import processor_name, usable_cores, usable_memory

GIB = 2**30
LEAST_DISK, MUCH_DISK = 1 * GIB, 20 * GIB  # a checkpoint of 125M parameters takes 1.5 GB, and two are kept
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Finding:
    """One fact. A `note` is worth knowing, a `problem` stops training or leaves the hardware idle."""

    what: str
    value: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""


def findings(runs: Path = Path("runs")) -> list[Finding]:
    """All there is to say about this computer, in the order of reading."""
    return [
        *system(),
        *torch_build(),
        *gpus(),
        *disks(runs),
        *packages(),
        *compilers(),
        *hub(os.environ),
        *platform_notes(platform.system(), platform.release(), platform.mac_ver()[0], os.environ),
    ]


def system() -> Iterator[Finding]:
    """Python, system, processor and memory, as far as this process may use them."""
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", platform.platform(terse=True))
    yield Finding("processor", f"{usable_cores()} cores of {os.cpu_count()}, {processor_name()}")
    memory = usable_memory()
    if memory < 4 * GIB:
        yield Finding("memory", _gib(memory), "note", "pretraining the quickstart takes 1.3 GiB (docs/performance.md)")
    else:
        yield Finding("memory", _gib(memory))


def torch_build() -> Iterator[Finding]:
    """PyTorch with its CUDA or ROCm, against the driver that is there."""
    build = torch.version.cuda or torch.version.hip
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if build else "CPU only"
    yield Finding("PyTorch", f"{torch.__version__}, {kind}")
    if torch.version.hip is None:
        yield driver_against_build(driver_cuda(), torch.version.cuda, torch.cuda.is_available())
    if torch.cuda.is_available():
        yield Finding("cuDNN", str(torch.backends.cudnn.version()))
    if torch.distributed.is_available():
        yield backends(torch.cuda.device_count())


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver here runs, as (12, 8); None without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_against_build(driver: tuple[int, int] | None, build: str | None, available: bool) -> Finding:
    """Whether the driver runs the CUDA that PyTorch was built with; within a major version an older one does."""
    if driver is None:
        if build and not available:
            return Finding("driver", "no NVIDIA driver; training uses the CPU", "note", "install the driver of the GPU")
        return Finding("driver", "no NVIDIA driver")
    found = f"runs CUDA up to {driver[0]}.{driver[1]}"
    if build is None:
        index = f"https://download.pytorch.org/whl/cu{driver[0]}{driver[1]}"
        return Finding(
            "driver",
            f"{found}, but this PyTorch is built without CUDA: the GPU stays idle",
            "problem",
            f"install PyTorch's CUDA build (pytorch.org, Get Started; {index} or an older one)",
        )
    wanted = tuple(map(int, build.split(".")[:2]))
    if driver[0] < wanted[0]:
        remedy = "update the NVIDIA driver, or install the PyTorch build of an older CUDA"
        return Finding("driver", f"{found}, PyTorch needs {build}", "problem", remedy)
    if not available:
        remedy = "compare `nvidia-smi`, CUDA_VISIBLE_DEVICES and the container's --gpus option"
        return Finding("driver", f"{found}, yet PyTorch {build} finds no GPU", "problem", remedy)
    if driver < wanted:
        note = "works within a major version; update the driver where a kernel is said to be missing"
        return Finding("driver", f"{found}, PyTorch has {build}", "note", note)
    return Finding("driver", f"{found}, PyTorch has {build}")


def backends(devices: int) -> Finding:
    """Which backends processes can meet over."""
    from torch import distributed

    has = {
        "NCCL": distributed.is_nccl_available(),
        "gloo": distributed.is_gloo_available(),
        "MPI": distributed.is_mpi_available(),
    }
    value = ", ".join(name for name, there in has.items() if there) or "none"
    if has["NCCL"] and torch.cuda.is_available():
        value = value.replace("NCCL", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
    if devices > 1 and not has["NCCL"]:
        return Finding("between processes", value, "problem", "several GPUs need NCCL: use Linux, or WSL on Windows")
    return Finding("between processes", value)


def gpus() -> Iterator[Finding]:
    """Every accelerator: memory, free memory, and what its compute capability allows."""
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory()
        yield Finding("GPU", f"Apple (Metal), {_gib(memory)} of the memory for it; bfloat16 {_yes(_mps_bfloat16())}")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = (properties.major, properties.minor)
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        value = (
            f"{properties.name}, {_gib(total)}, {_gib(free)} free, compute capability {capability[0]}.{capability[1]}: "
            f"bfloat16 {_yes(bfloat16)}, flash attention {_yes(torch.version.hip is not None or capability >= (8, 0))}"
        )
        yield gpu_finding(index, value, capability, torch.cuda.get_arch_list(), free, total)
    if not torch.cuda.device_count():
        yield Finding("GPU", "none; training uses the CPU")


def gpu_finding(
    index: int, value: str, capability: tuple[int, int], built_for: list[str], free: int, total: int
) -> Finding:
    """Whether PyTorch has kernels for a GPU of this compute capability, and whether another program fills it."""
    if not has_kernels(capability, built_for):
        value += f"; this PyTorch has kernels for {', '.join(built_for)} only"
        return Finding(f"GPU {index}", value, "problem", "install a PyTorch build for it (pytorch.org, Get Started)")
    if free < total / 2:
        return Finding(f"GPU {index}", value, "note", "another program holds most of its memory: see `nvidia-smi`")
    return Finding(f"GPU {index}", value)


def has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a build for `sm_80` (runs on 8.x from 8.0 on) or `compute_80` (on all from there on) runs on a GPU."""
    own = 10 * capability[0] + capability[1]
    for arch in built_for:
        kind, _, number = arch.partition("_")
        least = int(number.rstrip("af")) if kind in ("sm", "compute") else own
        if least <= own and (kind != "sm" or least // 10 == capability[0]):
            return True
    return not built_for


def disks(runs: Path) -> Iterator[Finding]:
    """Free space where runs and the Hub's downloads go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for what, path in (("disk for runs", runs), ("disk for the Hub's cache", Path(HF_HUB_CACHE))):
        path = path.absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        yield disk(what, str(path), shutil.disk_usage(there).free, os.access(there, os.W_OK))


def disk(what: str, path: str, free: int, writable: bool) -> Finding:
    """Whether a folder's disk has room for checkpoints."""
    value = f"{_gib(free)} free at {path}"
    where = "set HF_HOME to a folder on another disk" if "Hub" in what else "work in a folder on another disk"
    if not writable:
        return Finding(what, f"{path} cannot be written to", "problem", where)
    if free < LEAST_DISK:
        return Finding(what, value, "problem", f"free some, or {where}")
    if free < MUCH_DISK:
        note = f"a checkpoint takes 12 bytes x parameters and at least two are kept; else {where}"
        return Finding(what, value, "note", note)
    return Finding(what, value)


def packages() -> Iterator[Finding]:
    """The libraries hf_llm stands on, against the versions it asks for (its own metadata, so pyproject.toml)."""
    own = metadata.metadata("hf-llm")
    extras = [extra for extra in own.get_all("Provides-Extra") or [] if extra not in ("test", "benchmarks")]
    good = []
    for line in metadata.requires("hf-llm") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        optional = marker is not None and not marker.evaluate({"extra": ""})
        if optional and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        version = _version(requirement.name)
        finding = package(requirement, version, optional)
        if finding:
            yield finding
        elif version and requirement.specifier:
            good.append(f"{requirement.name} {version}")
    yield Finding("libraries", ", ".join(good))


def package(requirement: Requirement, version: str | None, optional: bool) -> Finding | None:
    """What is wrong with one library; None where it is as asked for, or optional and not there."""
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if version is None:
        return None if optional else Finding(requirement.name, "not installed", "problem", install)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    value = f"{version}, hf_llm asks for {requirement.specifier}"
    return Finding(requirement.name, value, "note" if optional else "problem", install)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def compilers() -> Iterator[Finding]:
    """What torch.compile (a C++ compiler) and DeepSpeed's operators (nvcc, ninja) need."""
    names = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    yield compiler_finding(compiler, torch.cuda.is_available())
    if _version("deepspeed") and torch.cuda.is_available():
        from torch.utils.cpp_extension import CUDA_HOME

        nvcc = CUDA_HOME and shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin"))
        remedy = "only DeepSpeed's fused and offloaded optimizers need it: install the CUDA toolkit, set CUDA_HOME"
        yield Finding("nvcc", nvcc) if nvcc else Finding("nvcc", "none", "note", remedy)


def compiler_finding(compiler: str | None, cuda: bool) -> Finding:
    """Pretraining on CUDA compiles the model, so there it has to be; on a CPU it is for those who ask."""
    if compiler:
        return Finding("C++ compiler", compiler)
    remedy = "apt install g++ (or your system's compiler); else --pretrain.training.torch_compile=false"
    return Finding("C++ compiler", "none, torch.compile will fail", "problem" if cuda else "note", remedy)


def hub(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether there is a login for the Hub (never the token itself), and whether it is switched off."""
    from huggingface_hub import get_token

    if get_token():
        yield Finding("Hugging Face login", "present")
    else:
        yield Finding("Hugging Face login", "none", "note", "only pushing and gated data need one: `hf auth login`")
    off = [name for name in OFFLINE if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if off:
        yield Finding("offline", ", ".join(off), "note", "data sets and models come from the local cache alone")


def platform_notes(system: str, release: str, mac: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """What is different on Windows, WSL, Colab, Kaggle and Macs; nothing on others."""
    if system == "Windows":
        yield Finding(
            "Windows",
            "one GPU trains; several do not (no NCCL), DeepSpeed and torch.compile mostly fail",
            "note",
            "for all of it work inside WSL: `wsl --install`, then install hf_llm there",
        )
    if "microsoft" in release.lower():
        yield Finding(
            "WSL",
            "the GPU's driver is that of Windows; files below /mnt are slow",
            "note",
            "install no Linux driver, keep runs and data in the Linux home; memory limits are in .wslconfig",
        )
    if "COLAB_RELEASE_TAG" in environment:
        yield Finding(
            "Colab",
            "files vanish with the session",
            "note",
            "mount Drive and work there: from google.colab import drive; drive.mount('/content/drive')",
        )
    if "KAGGLE_KERNEL_RUN_TYPE" in environment:
        yield Finding("Kaggle", "only /kaggle/working is kept", "note", "start in /kaggle/working, save a version")
    if system == "Darwin" and mac:
        old = int(mac.split(".")[0]) < 14
        yield Finding(
            "macOS",
            f"{mac}; one process trains, without NCCL, DeepSpeed and flash attention",
            "note",
            "update to macOS 14 for bfloat16" if old else "hf_llm trains in float32 on Metal",
        )


def _mps_bfloat16() -> bool:
    return int((platform.mac_ver()[0] or "0").split(".")[0]) >= 14


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"
