"""Tell one process from all others, on this host and on others, and whether it is still alive."""

import os
import socket
from pathlib import Path
from typing import Any

import psutil

CLOCK_SECONDS = 5.0  # how far the system's clock may have been adjusted while a process ran


def process_identity() -> dict[str, Any]:
    """Return what distinguishes this process from all others: host, pid, time of creation, and the pids' namespace."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": psutil.Process().create_time(),
        "namespace": pid_namespace(),
    }


def pid_namespace() -> str:
    """Return what tells the pids of this system or container from those of another; empty where it is not known.

    Two containers may have the same host name, and a pid of one means nothing in the other.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_local(identity: dict[str, Any]) -> bool:
    """Whether the process of a `process_identity` is one whose pid can be looked up here."""
    is_same_host = identity.get("host") == socket.gethostname()
    return is_same_host and identity.get("namespace", pid_namespace()) == pid_namespace()


def is_alive(identity: dict[str, Any]) -> bool:
    """Whether the process of a `process_identity` still runs on this machine; False for one on another machine."""
    if not is_local(identity):
        return False
    try:
        process = psutil.Process(identity["pid"])
        created = process.create_time()
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    # psutil computes the time of creation from that of the boot, which shifts when the system's clock is set.
    is_same_process = abs(created - identity["since"]) < CLOCK_SECONDS
    return is_same_process and not is_zombie
