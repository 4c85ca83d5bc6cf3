"""Check this host before a training: system, GPUs, disk, libraries; each problem comes with a remedy."""

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
MIN_MEMORY_BYTES = 4 * GIB
MIN_DISK_BYTES = 1 * GIB
AMPLE_DISK_BYTES = 20 * GIB  # a checkpoint of 125M parameters takes 1.5 GB, and two are kept
FIRST_MACOS_WITH_BF16 = 14

# Environment variables that keep the libraries from downloading.
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

# Extras whose libraries no training needs.
UNCHECKED_EXTRAS = ("test", "benchmarks")


@dataclass(frozen=True)
class Finding:
    """One checked property. A `note` is worth knowing, a `problem` stops training or leaves the hardware idle."""

    what: str
    """What was checked."""
    value: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""


def check_environment(runs: Path = Path("runs")) -> list[Finding]:
    """Run all checks on this host, in the order in which they are printed. `runs` is the folder of the runs."""
    return [
        *check_system(),
        *check_torch_build(),
        *check_gpus(),
        *check_disks(runs),
        *check_packages(),
        *check_compilers(),
        *check_hub(os.environ),
        *check_platform(platform.system(), platform.release(), platform.mac_ver()[0], os.environ),
    ]


def check_system() -> Iterator[Finding]:
    """Report Python, system, and the processor and memory that this process may use."""
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", platform.platform(terse=True))
    yield Finding("processor", f"{usable_cores()} cores of {os.cpu_count()}, {processor_name()}")

    memory = usable_memory()
    if memory < MIN_MEMORY_BYTES:
        remedy = "pretraining a model of 4M parameters takes 1.3 GiB (docs/performance.md)"
        yield Finding("memory", _format_gib(memory), "note", remedy)
    else:
        yield Finding("memory", _format_gib(memory))


def check_torch_build() -> Iterator[Finding]:
    """Check PyTorch with its CUDA or ROCm against the driver of this host."""
    if torch.version.cuda:
        kind = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        kind = f"ROCm {torch.version.hip}"
    else:
        kind = "CPU only"
    yield Finding("PyTorch", f"{torch.__version__}, {kind}")

    if torch.version.hip is None:
        yield check_driver(read_driver_cuda(), torch.version.cuda, torch.cuda.is_available())
    if torch.cuda.is_available():
        yield Finding("cuDNN", str(torch.backends.cudnn.version()))
    if torch.distributed.is_available():
        yield check_backends(torch.cuda.device_count())


def read_driver_cuda() -> tuple[int, int] | None:
    """Read the newest CUDA that the NVIDIA driver of this host runs, as (12, 8); None without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    error_code = driver.cuDriverGetVersion(ctypes.byref(version))
    if error_code:
        return None
    return version.value // 1000, version.value % 1000 // 10


def check_driver(driver: tuple[int, int] | None, build: str | None, is_available: bool) -> Finding:
    """Check whether the driver runs the CUDA that PyTorch was built with.

    An older driver works within a major version. `driver` is what `read_driver_cuda` returns, `build` the CUDA version
    of the PyTorch build (as "12.8"; None for a build without CUDA), and `is_available` whether PyTorch finds a GPU.
    """
    if driver is None:
        if build and not is_available:
            return Finding("driver", "no NVIDIA driver; training uses the CPU", "note", "install the driver of the GPU")
        return Finding("driver", "no NVIDIA driver")

    newest_cuda = f"runs CUDA up to {driver[0]}.{driver[1]}"
    if build is None:
        index = f"https://download.pytorch.org/whl/cu{driver[0]}{driver[1]}"
        return Finding(
            "driver",
            f"{newest_cuda}, but this PyTorch is built without CUDA: the GPU stays idle",
            "problem",
            f"install PyTorch's CUDA build (pytorch.org, Get Started; {index} or an older one)",
        )

    major, minor = (int(number) for number in build.split(".")[:2])
    if driver[0] < major:
        remedy = "update the NVIDIA driver, or install the PyTorch build of an older CUDA"
        return Finding("driver", f"{newest_cuda}, PyTorch needs {build}", "problem", remedy)
    if not is_available:
        remedy = "compare `nvidia-smi`, CUDA_VISIBLE_DEVICES and the container's --gpus option"
        return Finding("driver", f"{newest_cuda}, yet PyTorch {build} finds no GPU", "problem", remedy)
    if driver < (major, minor):
        remedy = "works within a major version; update the driver if an error says that a kernel is missing"
        return Finding("driver", f"{newest_cuda}, PyTorch has {build}", "note", remedy)
    return Finding("driver", f"{newest_cuda}, PyTorch has {build}")


def check_backends(devices: int) -> Finding:
    """Check which backends processes can communicate over; several GPUs need NCCL."""
    from torch import distributed

    availability = {
        "NCCL": distributed.is_nccl_available(),
        "gloo": distributed.is_gloo_available(),
        "MPI": distributed.is_mpi_available(),
    }
    value = ", ".join(name for name, is_available in availability.items() if is_available) or "none"
    if availability["NCCL"] and torch.cuda.is_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        value = value.replace("NCCL", f"NCCL {version}")

    if devices > 1 and not availability["NCCL"]:
        return Finding("between processes", value, "problem", "several GPUs need NCCL: use Linux, or WSL on Windows")
    return Finding("between processes", value)


def check_gpus() -> Iterator[Finding]:
    """Check every accelerator: memory, free memory, and the features of its compute capability."""
    if torch.backends.mps.is_available():
        memory = _format_gib(torch.mps.recommended_max_memory())
        macos_major = int((platform.mac_ver()[0] or "0").split(".")[0])
        bfloat16 = _format_yes_no(macos_major >= FIRST_MACOS_WITH_BF16)
        yield Finding("GPU", f"Apple (Metal), {memory} of the memory for it; bfloat16 {bfloat16}")
        return

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = (properties.major, properties.minor)
        is_rocm = torch.version.hip is not None

        bfloat16 = _format_yes_no(torch.cuda.is_bf16_supported(including_emulation=False))
        flash_attention = _format_yes_no(is_rocm or capability >= (8, 0))
        value = (
            f"{properties.name}, {_format_gib(total)}, {_format_gib(free)} free, "
            f"compute capability {properties.major}.{properties.minor}: "
            f"bfloat16 {bfloat16}, flash attention {flash_attention}"
        )
        yield check_gpu(index, value, capability, torch.cuda.get_arch_list(), free, total)

    if not torch.cuda.device_count():
        yield Finding("GPU", "none; training uses the CPU")


def check_gpu(
    index: int, value: str, capability: tuple[int, int], architectures: list[str], free: int, total: int
) -> Finding:
    """Check whether PyTorch has kernels for a GPU of this compute capability, and whether another program fills it.

    `value` describes the GPU, `architectures` are those that PyTorch is built for, and `free` and `total` bytes of the
    GPU's memory.
    """
    if not has_kernels(capability, architectures):
        value += f"; this PyTorch has kernels for {', '.join(architectures)} only"
        return Finding(f"GPU {index}", value, "problem", "install a PyTorch build for it (pytorch.org, Get Started)")
    if free < total / 2:
        return Finding(f"GPU {index}", value, "note", "another program holds most of its memory: see `nvidia-smi`")
    return Finding(f"GPU {index}", value)


def has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a build for `architectures` runs on a GPU.

    Kernels for `sm_80` run on capability 8.0 and later 8.x, those for `compute_80` on 8.0 and everything later. ROCm's
    names are not compared: they pass for any GPU.
    """
    if not architectures:
        return True

    gpu_number = 10 * capability[0] + capability[1]
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        if kind not in ("sm", "compute"):
            return True
        lowest = int(number.rstrip("af"))
        is_same_major = lowest // 10 == capability[0]
        if lowest <= gpu_number and (kind == "compute" or is_same_major):
            return True
    return False


def check_disks(runs: Path) -> Iterator[Finding]:
    """Check the free space where runs and the Hub's downloads go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for title, path in (("disk for runs", runs), ("disk for the Hub's cache", Path(HF_HUB_CACHE))):
        path = path.absolute()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        is_writable = os.access(existing, os.W_OK)
        yield check_disk(title, str(path), free, is_writable)


def check_disk(title: str, path: str, free: int, is_writable: bool) -> Finding:
    """Check whether a folder's disk has room for checkpoints. `free` is in bytes."""
    value = f"{_format_gib(free)} free at {path}"
    elsewhere = "work in a folder on another disk"
    if "Hub" in title:
        elsewhere = "set HF_HOME to a folder on another disk"

    if not is_writable:
        return Finding(title, f"{path} cannot be written to", "problem", elsewhere)
    if free < MIN_DISK_BYTES:
        return Finding(title, value, "problem", f"free some, or {elsewhere}")
    if free < AMPLE_DISK_BYTES:
        remedy = f"a checkpoint takes 12 bytes x parameters and at least two are kept; else {elsewhere}"
        return Finding(title, value, "note", remedy)
    return Finding(title, value)


def check_packages() -> Iterator[Finding]:
    """Check hf_llm's libraries against the versions that its metadata (from pyproject.toml) ask for."""
    project = metadata.metadata("hf-llm")
    extras = [extra for extra in project.get_all("Provides-Extra") or [] if extra not in UNCHECKED_EXTRAS]

    good = []
    for line in metadata.requires("hf-llm") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        is_optional = marker is not None and not marker.evaluate({"extra": ""})
        if is_optional and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue

        version = _installed_version(requirement.name)
        finding = check_package(requirement, version, is_optional)
        if finding:
            yield finding
        elif version and requirement.specifier:
            good.append(f"{requirement.name} {version}")
    yield Finding("libraries", ", ".join(good))


def check_package(requirement: Requirement, version: str | None, is_optional: bool) -> Finding | None:
    """Check one library; None where its version is right, or where it is optional and not installed."""
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if version is None:
        if is_optional:
            return None
        return Finding(requirement.name, "not installed", "problem", install)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    value = f"{version}, hf_llm asks for {requirement.specifier}"
    return Finding(requirement.name, value, "note" if is_optional else "problem", install)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_compilers() -> Iterator[Finding]:
    """Check for what torch.compile (a C++ compiler) and DeepSpeed's operators (nvcc, ninja) need."""
    compiler = None
    for name in (os.environ.get("CXX"), "g++", "clang++", "cl"):
        if name and compiler is None:
            compiler = shutil.which(name)
    yield check_compiler(compiler, torch.cuda.is_available())

    if _installed_version("deepspeed") and torch.cuda.is_available():
        from torch.utils.cpp_extension import CUDA_HOME

        nvcc = CUDA_HOME and shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin"))
        if nvcc:
            yield Finding("nvcc", nvcc)
        else:
            remedy = "only DeepSpeed's fused and offloaded optimizers need it: install the CUDA toolkit, set CUDA_HOME"
            yield Finding("nvcc", "none", "note", remedy)


def check_compiler(compiler: str | None, has_cuda: bool) -> Finding:
    """Check for a C++ compiler. Pretraining on CUDA compiles the model and needs one; on a CPU only on request."""
    if compiler:
        return Finding("C++ compiler", compiler)
    remedy = "apt install g++ (or your system's compiler); else --pretrain.training.torch_compile=false"
    return Finding("C++ compiler", "none, torch.compile will fail", "problem" if has_cuda else "note", remedy)


def check_hub(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Report whether there is a login for the Hub (never the token itself), and whether the Hub is switched off."""
    from huggingface_hub import get_token

    if get_token():
        yield Finding("Hugging Face login", "present")
    else:
        yield Finding("Hugging Face login", "none", "note", "only pushing and gated data need one: `hf auth login`")

    offline = []
    for name in OFFLINE_VARIABLES:
        if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            offline.append(name)
    if offline:
        yield Finding("offline", ", ".join(offline), "note", "data sets and models come from the local cache alone")


def check_platform(system: str, release: str, macos: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Report what is different on Windows, WSL, Colab, Kaggle and Macs; nothing on others."""
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
    if system == "Darwin" and macos:
        is_old = int(macos.split(".")[0]) < FIRST_MACOS_WITH_BF16
        yield Finding(
            "macOS",
            f"{macos}; one process trains, without NCCL, DeepSpeed and flash attention",
            "note",
            "update to macOS 14 for bfloat16" if is_old else "hf_llm trains in float32 on Metal",
        )


def _format_yes_no(is_true: bool) -> str:
    return "yes" if is_true else "no"


def _format_gib(size: int) -> str:
    if size < GIB / 20:  # which would be 0.0 GiB
        return f"{size / 2**20:,.1f} MiB"
    return f"{size / GIB:,.1f} GiB"
