"""Keep what was measured on this machine, so that it is measured once: one JSON file for each question.

A question is plain data that names all that its answer depends on; the processor, the threads and the versions of the
libraries are added here.
"""

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from hf_llm.core.atomic_io import user_cache_folder, write_text
from hf_llm.core.console import print_main
from hf_llm.core.manifest import digest_of, package_versions
from hf_llm.hardware.cpu import processor_name
from hf_llm.hardware.runtime import has_bf16

# The libraries whose kernels and modules are timed.
TIMED_LIBRARIES = ("hf-llm", "torch", "transformers")


def describe_machine() -> dict[str, Any]:
    """Return what the speed of this process depends on: processor, instructions, threads, versions of libraries."""
    versions = package_versions()
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16 units": has_bf16("cpu"),
        "threads": torch.get_num_threads(),
        "versions": {name: versions.get(name) for name in TIMED_LIBRARIES},
    }


def read_measurement(question: dict[str, Any], max_age_seconds: float | None = None) -> Any | None:
    """Return what was measured on this machine for `question`; None where nothing was, or longer ago than that."""
    try:
        entry = json.loads(_find_file(question).read_text(encoding="utf-8"))
        answer = entry["answer"]
        age = time.time() - entry["time"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        print_main(f"{_find_file(question)} cannot be read ({error}); what it holds is measured again")
        return None
    age = max(age, 0.0)  # the time is rounded, and a clock may have been set back
    if max_age_seconds is not None and age > max_age_seconds:
        return None
    return answer


def keep_measurement(question: dict[str, Any], answer: Any) -> None:
    """Keep `answer`, plain data, for the next run on this machine. A full or read-only disk is reported, no error."""
    path = _find_file(question)
    entry = {"question": question, "machine": describe_machine(), "answer": answer, "time": round(time.time(), 1)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(entry, indent=2) + "\n")
    except OSError as error:
        print_main(f"{path} cannot be written ({error}); the next run measures again")


def _find_file(question: dict[str, Any]) -> Path:
    return user_cache_folder() / "measurements" / f"{digest_of([question, describe_machine()])}.json"
