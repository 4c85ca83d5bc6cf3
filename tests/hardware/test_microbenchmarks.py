"""Timing this host, and refusing figures that cannot be true."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_llm.hardware.cpu import read_cpuinfo
from hf_llm.hardware.devices import Device, parse_device
from hf_llm.hardware.microbenchmarks import (
    Bound,
    Rate,
    bandwidth_bound,
    cpu_bounds,
    matmul_bounds,
    measure_all_reduce_rate,
    measure_copy_rate,
    measure_matmul_rates,
    refuse_above_bound,
    time_fastest_call,
    time_matrix_product,
)

CPU = torch.device("cpu")


def test_the_199934_tflops_of_a_2080_ti_are_refused():
    seconds = 2 * 8192**3 / 199_934e12  # what a clock reads that stops when the product is queued
    bound = matmul_bounds(parse_device("rtx2080ti"))["float16"]
    rate = refuse_above_bound(Rate("matmul", 2 * 8192**3 / seconds, "float16", 8192), bound)
    assert "199,934 TFLOP/s is more than 67.25" in rate.refused
    assert "data sheet of NVIDIA GeForce RTX 2080 Ti" in rate.refused
    assert "did not wait" in rate.refused


@pytest.mark.parametrize(("teraflops", "refused"), [(50, False), (60, False), (70, True)])
def test_rates_a_quarter_above_the_data_sheet_are_kept_and_higher_ones_refused(teraflops, refused):
    bound = matmul_bounds(parse_device("rtx2080ti"))["float16"]
    rate = refuse_above_bound(Rate("matmul", teraflops * 1e12, "float16"), bound)
    assert bool(rate.refused) == refused


def test_a_type_without_units_is_held_to_the_fastest_type():
    bounds = matmul_bounds(parse_device("t4"))
    assert bounds["bfloat16"] == bounds["float16"]


def test_a_device_without_a_data_sheet_refuses_nothing():
    assert matmul_bounds(Device("unlisted", "GPU of tomorrow", 1)) == {}
    assert bandwidth_bound(Device("unlisted", "GPU of tomorrow", 1)) is None
    assert not refuse_above_bound(Rate("matmul", 1e20), None).refused


def test_the_rate_of_a_timer_that_does_not_wait_is_refused_on_this_cpu():
    matrix = torch.full((1024, 1024), 0.5)
    bounds = matmul_bounds(Device("cpu", "", 1))
    if not bounds:
        pytest.skip("this system does not say what its processor can do")

    # A thread queues the work and returns at once, as a GPU does.
    with ThreadPoolExecutor(1) as executor:
        futures = []
        seconds = time_fastest_call(lambda: futures.append(executor.submit(torch.mm, matrix, matrix)), CPU, 0.01)
        for future in futures:
            future.cancel()
    assert refuse_above_bound(Rate("matmul", 2 * 1024**3 / seconds), bounds["float32"]).refused

    seconds = time_fastest_call(lambda: torch.mm(matrix, matrix), CPU, 0.1)
    assert not refuse_above_bound(Rate("matmul", 2 * 1024**3 / seconds), bounds["float32"]).refused


def test_the_fastest_call_counts_and_the_first_does_not():
    ticks = iter([0, 10, 10.5, 10.5, 20, 20.2, 20.2, 30, 31, 99])
    calls = []
    assert time_fastest_call(lambda: calls.append(1), CPU, 50, lambda: next(ticks)) == pytest.approx(0.2)
    assert len(calls) == 4


def test_a_call_is_timed_even_where_no_time_is_given():
    assert 0.005 <= time_fastest_call(lambda: time.sleep(0.005), CPU, 0) < 60


def test_this_cpus_matmul_rates_stay_below_what_its_cores_can_issue():
    rates = measure_matmul_rates(CPU, matmul_bounds(Device("cpu", "", 1)), seconds=0.3)
    assert {"float32", "bfloat16", "float16"} == {rate.dtype for rate in rates}
    for rate in rates:
        assert rate.value > 1e6
        assert not rate.refused
    sides = [rate.side for rate in rates if rate.dtype == "float32"]
    assert sides == sorted(sides)


def test_measuring_leaves_torchs_random_state_and_precision_alone():
    random_state = torch.get_rng_state()
    precision = torch.get_float32_matmul_precision()
    time_matrix_product(64, CPU, torch.float32, 0)
    measure_matmul_rates(CPU, {}, seconds=0.01)
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.get_float32_matmul_precision() == precision


def test_memory_is_copied_at_a_rate_memory_has():
    rate = measure_copy_rate(CPU, None, seconds=0.1)
    assert 1e7 < rate.value < 1e13
    assert refuse_above_bound(rate, Bound(1e6, "a floppy disk")).refused


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
    if read_cpuinfo():
        assert matmul_bounds(Device("cpu", "", 1))


def test_two_processes_sum_a_buffer_over_gloo():
    rate = measure_all_reduce_rate(2, "cpu", megabytes=1, seconds=0.05)
    assert rate.dtype == "gloo"
    assert 1e5 < rate.value < 1e12


def test_the_error_of_a_process_is_raised(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    with pytest.raises(RuntimeError, match="no_such_interface"):
        measure_all_reduce_rate(2, "cpu", megabytes=1, seconds=0.05)
