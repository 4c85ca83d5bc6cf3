"""The table of devices, and finding a device in it."""

import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.hardware.cpu import usable_memory
from hf_llm.hardware.devices import (
    DEVICES,
    detect_device,
    detect_hardware,
    find_device,
    list_devices_called,
    parse_device,
    parse_hardware,
)


def test_every_row_is_complete_and_in_its_units():
    assert len({device.key for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        assert device.source
        assert 8e9 < device.memory < 1e12, device
        assert 6e10 < device.bandwidth < 1e13, device
        assert all(1e12 < rate < 3e15 for rate in device.flops.values()), device
        if not device.key.startswith("apple"):
            assert 60 <= device.watts <= 1400
            assert {"float32", "float16"} <= set(device.flops)


def test_half_precision_is_never_slower_than_single():
    for device in DEVICES:
        order = [device.flops[dtype] for dtype in ("float32", "tf32", "float16") if dtype in device.flops]
        assert order == sorted(order), device


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("apple-m2-max", "Apple M2 Max"),
        ("mac m2", "Apple M2"),
        ("MacBook M2 Pro", "Apple M2 Pro"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("4060 ti", "NVIDIA GeForce RTX 4060 Ti"),
        ("H100-80GB", "NVIDIA H100 SXM"),
        ("h100 sxm", "NVIDIA H100 SXM"),
        ("A40 48GB", "NVIDIA A40"),
        ("Tesla T4", "NVIDIA T4"),
        ("V100 16GB", "NVIDIA V100-SXM2-16GB"),
        ("6000 Ada", "NVIDIA RTX 6000 Ada Generation"),
        ("Apple M2", "Apple M2"),
    ],
)
def test_parse_device_reads_a_key_however_spaced_and_the_full_name(key, name):
    assert parse_device(key).name == name


def test_parse_device_hints_at_a_similar_name():
    with pytest.raises(UserError, match=r"did you mean .*rtx4090"):
        parse_device("rtx4099")
    with pytest.raises(UserError, match="known: b300, b200, "):
        parse_device("abacus")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("a100", ["a100-80gb", "a100-40gb"]),
        ("a100 40GB", ["a100-40gb"]),
        ("3080", ["rtx3080", "rtx3080-12gb"]),
        ("rtx3080", ["rtx3080"]),
        ("RTX 3080 12GB", ["rtx3080-12gb"]),
        ("v100", ["v100"]),
        ("abacus", []),
        ("h100 48GB", []),
    ],
)
def test_list_devices_called_has_every_device_that_a_name_may_mean(name, keys):
    assert [device.key for device in list_devices_called(name)] == keys
    if keys:
        assert parse_device(name).key == keys[0]


CARDS = (
    "3060", "3060 ti", "3070", "3070 ti", "3080", "3080 ti", "3090", "3090 ti", "4060", "4060 ti", "4070", "4070 super",
    "4070 ti", "4070 ti super", "4080", "4080 super", "4090", "5060", "5060 ti", "5070", "5070 ti", "5080", "5090",
)  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_every_geforce_card_since_2020_is_in_the_table(card):
    device = parse_device(f"rtx {card}")
    assert device.name.lower() == f"nvidia geforce rtx {card}"
    assert device.flops["bfloat16"] == pytest.approx(2 * device.flops["float32"], rel=0.01)
    assert find_device(device.name) is not None


@pytest.mark.parametrize(
    "name", ["l40", "a30", "a10g", "t4", "v100", "gh200", "b300", "mi250", "mi250x", "mi300x", "m1", "m2", "m3", "m4"]
)
def test_common_cards_and_chips_are_in_the_table(name):
    assert parse_device(name).key.removeprefix("apple-") == name


def test_parse_hardware_reads_a_count_and_a_device():
    assert parse_hardware("4xrtx4090") == (4, parse_device("rtx4090"))
    assert parse_hardware("8 x H100") == (8, parse_device("h100"))
    assert parse_hardware("l4") == (1, parse_device("l4"))


@pytest.mark.parametrize("text", ["", "4x", "0xrtx4090", "-1xl4", "4.5xl4", "four rtx4090", "4090x2"])
def test_parse_hardware_refuses_other_texts(text):
    with pytest.raises(UserError):
        parse_hardware(text)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this host trains on a GPU")
def test_a_detected_cpu_has_its_name_and_memory_and_no_rates():
    count, device = detect_hardware()
    assert count == 1
    assert device == detect_device()
    assert device.key == "cpu"
    assert device.name
    assert device.memory == usable_memory()
    assert device.flops == {}
    assert device.bandwidth is None


@pytest.mark.parametrize("name", ["NVIDIA Z10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "Apple M9"])
def test_find_device_returns_none_for_an_unlisted_name(name):
    assert find_device(name) is None
