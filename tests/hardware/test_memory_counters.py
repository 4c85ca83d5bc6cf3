"""Memory of a process, as logged while it trains."""

import torch

from hf_llm.hardware import memory_counters
from hf_llm.hardware.memory_counters import memory_in_use


def test_the_peak_is_never_below_what_is_in_use(monkeypatch):
    now = memory_counters.resident_bytes()
    monkeypatch.setattr(memory_counters, "peak_resident_bytes", lambda: now // 2)  # the kernel's counter lags behind
    used = memory_in_use(torch.device("cpu"))
    assert used["memory_gib"] >= used["memory_now_gib"] > 0
