"""The engines' arithmetic on a footprint of round numbers."""

import pytest

from hf_llm.planning.memory import ACTIVATIONS, COPIES, GRADIENTS, OPTIMIZER, TRAINING, UPDATE, WEIGHTS, Footprint
from hf_llm.planning.memory_estimate import fitting
from hf_llm.planning.sharded_memory import BUFFERS, Sizes, engines

COUNT = 1000
SIZES = Sizes(trained=COUNT, frozen=0, layer=100, outside_layers=200)
WHOLE = Footprint(
    {
        TRAINING: {WEIGHTS: 4000, COPIES: 2000, OPTIMIZER: 8000, ACTIVATIONS: 5000},
        UPDATE: {WEIGHTS: 4000, GRADIENTS: 4000, OPTIMIZER: 8000},
    }
)
HALF = Footprint({TRAINING: {WEIGHTS: 2000, ACTIVATIONS: 3000}, UPDATE: {WEIGHTS: 2000, GRADIENTS: 2000}})


def test_one_device_holds_what_it_holds():
    assert engines(WHOLE, WHOLE, SIZES, 1, bf16=True) == {"one device": WHOLE}


def test_ddp_holds_gradients_twice():
    found = engines(WHOLE, HALF, SIZES, 4, bf16=True)["DDP"]
    assert found.phases[UPDATE] == {WEIGHTS: 4000, GRADIENTS: 4000, OPTIMIZER: 8000, BUFFERS: 4000}


def test_each_stage_of_zero_splits_more():
    found = engines(WHOLE, HALF, SIZES, 4, bf16=True)
    kept = {engine: footprint.phases[UPDATE] for engine, footprint in found.items()}
    assert kept["ZeRO-1"][WEIGHTS] == kept["ZeRO-1"][GRADIENTS] == 2000
    assert kept["ZeRO-2"][GRADIENTS] == 500 and kept["ZeRO-2"][WEIGHTS] == 2000
    assert kept["ZeRO-3"][WEIGHTS] == 500
    assert kept["ZeRO-2"][OPTIMIZER] == (8000 + 4000) / 4  # moments and the float32 copy of the weights
    assert kept["ZeRO-2, offload"][OPTIMIZER] == 0
    assert kept["FSDP2"][WEIGHTS] == kept["FSDP2"][GRADIENTS] == 1000
    assert all(footprint.phases[TRAINING][ACTIVATIONS] == 3000 for name, footprint in found.items() if name != "DDP")
    assert all(COPIES not in footprint.phases[TRAINING] for name, footprint in found.items() if name != "DDP")


def test_more_devices_never_take_more_of_one():
    few, many = (engines(WHOLE, HALF, SIZES, devices, bf16=True) for devices in (2, 8))
    assert all(many[engine].peak <= few[engine].peak for engine in many)


@pytest.mark.parametrize(("memory", "windows"), [(99, 0), (1000, 4), (1249, 4), (1250, 5), (600, 2)])
def test_what_fits_is_read_off_a_straight_line(memory, windows):
    once = Footprint({TRAINING: {ACTIVATIONS: 1000}, UPDATE: {WEIGHTS: 100}})
    twice = Footprint({TRAINING: {ACTIVATIONS: 2000}, UPDATE: {WEIGHTS: 100}})
    assert fitting(memory, 4, once, twice) == windows
