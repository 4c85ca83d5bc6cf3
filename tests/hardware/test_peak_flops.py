"""The peak that MFU is measured against."""

import time

import pytest
import torch

from hf_llm.hardware.peak_flops import PeakFlops, find_listed_peak, find_peak_flops, measure_peak

HALF, SINGLE = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_a_known_device_has_its_data_sheets_dense_peak(name, teraflops):
    peak = find_listed_peak(name, HALF)
    assert peak.flops == pytest.approx(teraflops * 1e12)
    assert not peak.measured


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti Laptop GPU",
        "NVIDIA A10X",
        "NVIDIA L40G",
        "Quadro K620",
    ],
)
def test_a_similar_name_does_not_get_a_known_devices_peak(name):
    assert find_listed_peak(name, HALF) is None


def test_float32_is_tf32_only_where_torch_uses_it():
    assert find_listed_peak("NVIDIA H200", SINGLE).flops == pytest.approx(66.9e12)
    assert find_listed_peak("NVIDIA H200", SINGLE, tf32=True).flops == pytest.approx(494.7e12)
    assert find_listed_peak("Tesla V100-SXM2-16GB", SINGLE, tf32=True).flops == 15.7e12


def test_a_device_without_bfloat16_units_has_no_such_peak():
    assert find_listed_peak("Tesla T4", HALF) is None
    assert find_listed_peak("Tesla T4", torch.float16).flops == 65e12


def test_a_cpus_peak_is_measured_without_drawing_random_numbers():
    random_state = torch.get_rng_state()
    peak = find_peak_flops(torch.device("cpu"), SINGLE)
    assert torch.equal(random_state, torch.get_rng_state())
    assert peak.measured
    assert 1e9 < peak.flops < 1e14
    assert "measured" in str(peak)


def test_a_measured_rate_is_what_a_matrix_product_takes():
    peak = measure_peak(torch.device("cpu"), SINGLE)
    matrix = torch.full((512, 512), 0.5)
    torch.mm(matrix, matrix)
    started = time.perf_counter()
    for _ in range(5):
        torch.mm(matrix, matrix)
    rate = 5 * 2 * 512**3 / (time.perf_counter() - started)
    assert peak.flops / 20 < rate < peak.flops * 3


def test_a_measurement_says_how_much_of_the_cores_it_got():
    peak = measure_peak(torch.device("cpu"), SINGLE)
    assert 0 < peak.core_share <= 1
    disturbed = PeakFlops(1e11, "float32", measured=True, core_share=0.4)
    assert "got 40% of the cores' time: other programs run" in str(disturbed)
    assert "other programs" not in str(PeakFlops(1e11, "float32", measured=True, core_share=0.95))
