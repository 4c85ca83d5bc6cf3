"""Timing this machine, and refusing what cannot be."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_llm.hardware.cpu import cpuinfo
from hf_llm.hardware.devices import Device, device_named
from hf_llm.hardware.microbenchmarks import (
    Bound,
    Rate,
    all_reduce_rate,
    bandwidth_bound,
    copy_rate,
    cpu_bounds,
    fastest,
    judged,
    matmul_bounds,
    matmul_rates,
    product_seconds,
)

CPU = torch.device("cpu")


def test_the_199934_tflops_of_a_2080_ti_are_refused():
    seconds = 2 * 8192**3 / 199_934e12  # what a clock reads that stops when the product is queued
    bound = matmul_bounds(device_named("rtx2080ti"))["float16"]
    rate = judged(Rate("matmul", 2 * 8192**3 / seconds, "float16", 8192), bound)
    assert "199,934 TFLOP/s is more than 67.25" in rate.refused
    assert "data sheet of NVIDIA GeForce RTX 2080 Ti" in rate.refused
    assert "did not wait" in rate.refused


@pytest.mark.parametrize(("teraflops", "refused"), [(50, False), (60, False), (70, True)])
def test_a_clock_above_the_data_sheets_is_believed_but_not_more(teraflops, refused):
    rate = judged(Rate("matmul", teraflops * 1e12, "float16"), matmul_bounds(device_named("rtx2080ti"))["float16"])
    assert bool(rate.refused) == refused


def test_a_type_without_units_is_held_to_the_fastest_type():
    assert matmul_bounds(device_named("t4"))["bfloat16"] == matmul_bounds(device_named("t4"))["float16"]


def test_a_device_without_a_data_sheet_refuses_nothing():
    assert matmul_bounds(Device("unlisted", "GPU of tomorrow", 1)) == {}
    assert bandwidth_bound(Device("unlisted", "GPU of tomorrow", 1)) is None
    assert not judged(Rate("matmul", 1e20), None).refused


def test_a_timer_that_does_not_wait_for_the_work_is_found_out_on_this_cpu():
    left, bounds = torch.full((1024, 1024), 0.5), matmul_bounds(Device("cpu", "", 1))
    if not bounds:
        pytest.skip("this system does not say what its processor can do")
    with ThreadPoolExecutor(1) as elsewhere:  # queues and returns at once, as a GPU does
        queued = []
        seconds = fastest(lambda: queued.append(elsewhere.submit(torch.mm, left, left)), CPU, 0.01)
        [future.cancel() for future in queued]
    assert judged(Rate("matmul", 2 * 1024**3 / seconds), bounds["float32"]).refused
    waited = fastest(lambda: torch.mm(left, left), CPU, 0.1)
    assert not judged(Rate("matmul", 2 * 1024**3 / waited), bounds["float32"]).refused


def test_the_fastest_call_counts_and_the_first_does_not():
    ticks = iter([0, 10, 10.5, 10.5, 20, 20.2, 20.2, 30, 31, 99])
    calls = []
    assert fastest(lambda: calls.append(1), CPU, 50, lambda: next(ticks)) == pytest.approx(0.2)
    assert len(calls) == 4


def test_a_call_is_timed_even_where_no_time_is_given():
    assert 0.005 <= fastest(lambda: time.sleep(0.005), CPU, 0) < 60


def test_this_cpus_products_grow_and_stay_below_what_its_cores_can_issue():
    rates = matmul_rates(CPU, matmul_bounds(Device("cpu", "", 1)), seconds=0.3)
    assert {"float32", "bfloat16", "float16"} == {rate.dtype for rate in rates}
    for rate in rates:
        assert rate.value > 1e6
        assert not rate.refused
    sides = [rate.side for rate in rates if rate.dtype == "float32"]
    assert sides == sorted(sides)


def test_measuring_leaves_torchs_random_state_and_precision_alone():
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    product_seconds(64, CPU, torch.float32, 0)
    matmul_rates(CPU, {}, seconds=0.01)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_float32_matmul_precision() == precision


def test_memory_is_copied_at_a_rate_memory_has():
    rate = copy_rate(CPU, None, seconds=0.1)
    assert 1e7 < rate.value < 1e13
    assert judged(rate, Bound(1e6, "a floppy disk")).refused


def test_widths_of_units_are_read_from_the_flags():
    def single(flags, machine="x86_64"):
        return cpu_bounds({"flags": flags}, machine, 2, 1e9)["float32"].value / 2e9

    assert single("sse2") == 16
    assert single("avx avx2 fma") == 32
    assert single("avx avx2 fma avx512f") == 64
    assert single("asimd", "aarch64") == 32
    assert cpu_bounds({"flags": "avx avx512f amx_bf16"}, "x86_64", 1, 1e9)["bfloat16"].value == 1024e9
    assert cpu_bounds({"flags": "avx avx512f avx512_bf16"}, "x86_64", 1, 1e9)["bfloat16"].value == 128e9
    assert cpu_bounds({}, "arm64", 8, 1e9) == {}
    assert cpu_bounds({"flags": "x"}, "riscv64", 8, 1e9) == {}
    if cpuinfo():
        assert matmul_bounds(Device("cpu", "", 1))


def test_two_processes_sum_a_buffer_over_gloo():
    rate = all_reduce_rate(2, "cpu", megabytes=1, seconds=0.05)
    assert rate.dtype == "gloo"
    assert 1e5 < rate.value < 1e12


def test_what_a_process_says_before_it_fails_is_told(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    with pytest.raises(RuntimeError, match="no_such_interface"):
        all_reduce_rate(2, "cpu", megabytes=1, seconds=0.05)
