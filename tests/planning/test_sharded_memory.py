"""The arithmetic of the engines on a footprint of round numbers."""

import pytest

from hf_llm.planning.memory import ACTIVATIONS, COPIES, GRADIENTS, OPTIMIZER, TRAINING, UPDATE, WEIGHTS, Footprint
from hf_llm.planning.memory_estimate import count_fitting_windows
from hf_llm.planning.sharded_memory import BUFFERS, ParameterCounts, estimate_engines

COUNTS = ParameterCounts(trained=1000, frozen=0, per_layer=100, outside_layers=200)
WHOLE = Footprint(
    {
        TRAINING: {WEIGHTS: 4000, COPIES: 2000, OPTIMIZER: 8000, ACTIVATIONS: 5000},
        UPDATE: {WEIGHTS: 4000, GRADIENTS: 4000, OPTIMIZER: 8000},
    }
)
HALF = Footprint({TRAINING: {WEIGHTS: 2000, ACTIVATIONS: 3000}, UPDATE: {WEIGHTS: 2000, GRADIENTS: 2000}})


def test_one_device_holds_the_whole_footprint():
    assert estimate_engines(WHOLE, WHOLE, COUNTS, 1, bf16=True) == {"one device": WHOLE}


def test_ddp_holds_gradients_twice():
    ddp = estimate_engines(WHOLE, HALF, COUNTS, 4, bf16=True)["DDP"]
    assert ddp.phases[UPDATE] == {WEIGHTS: 4000, GRADIENTS: 4000, OPTIMIZER: 8000, BUFFERS: 4000}


def test_each_stage_of_zero_splits_more():
    engines = estimate_engines(WHOLE, HALF, COUNTS, 4, bf16=True)
    kept = {engine: footprint.phases[UPDATE] for engine, footprint in engines.items()}
    assert kept["ZeRO-1"][WEIGHTS] == kept["ZeRO-1"][GRADIENTS] == 2000
    assert kept["ZeRO-2"][WEIGHTS] == 2000
    assert kept["ZeRO-2"][GRADIENTS] == 500
    assert kept["ZeRO-3"][WEIGHTS] == 500
    assert kept["ZeRO-2"][OPTIMIZER] == (8000 + 4000) / 4  # moments and the float32 copy of the weights
    assert kept["ZeRO-2, offload"][OPTIMIZER] == 0
    assert kept["FSDP2"][WEIGHTS] == kept["FSDP2"][GRADIENTS] == 1000


def test_sharding_engines_work_in_half_precision_without_copies():
    engines = estimate_engines(WHOLE, HALF, COUNTS, 4, bf16=True)
    del engines["DDP"]
    for footprint in engines.values():
        assert footprint.phases[TRAINING][ACTIVATIONS] == 3000
        assert COPIES not in footprint.phases[TRAINING]


def test_more_devices_never_take_more_of_one():
    two_devices = estimate_engines(WHOLE, HALF, COUNTS, 2, bf16=True)
    eight_devices = estimate_engines(WHOLE, HALF, COUNTS, 8, bf16=True)
    for engine in eight_devices:
        assert eight_devices[engine].peak <= two_devices[engine].peak


@pytest.mark.parametrize(("memory", "windows"), [(99, 0), (1000, 4), (1249, 4), (1250, 5), (600, 2)])
def test_fitting_windows_are_read_off_a_straight_line(memory, windows):
    footprint = Footprint({TRAINING: {ACTIVATIONS: 1000}, UPDATE: {WEIGHTS: 100}})
    footprint_of_double = Footprint({TRAINING: {ACTIVATIONS: 2000}, UPDATE: {WEIGHTS: 100}})
    assert count_fitting_windows(memory, 4, footprint, footprint_of_double) == windows
