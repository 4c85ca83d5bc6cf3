import pytest

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import parse_device
from hf_llm.planning.cost import disk_bytes, estimate_cost, parse_price
from hf_llm.training.fault_tolerance.checkpoints import estimate_checkpoint_bytes


def test_ten_hours_of_four_cards():
    cost = estimate_cost(10, 4, parse_device("rtx4090"), price=0.4, electricity=0.3)
    assert cost.energy == pytest.approx(18)  # 4 x 450 W
    assert cost.rent == pytest.approx(16)
    assert cost.electricity == pytest.approx(5.4)


def test_cost_is_none_where_watts_and_price_are_not_known():
    cost = estimate_cost(10, 1, parse_device("apple-m3-max"), price=None, electricity=0.3)
    assert (cost.energy, cost.rent, cost.electricity) == (None, None, None)


@pytest.mark.parametrize("text", ["0.4", "0.4/gpu-hour", "0.4/hour", " .4 / h "])
def test_parse_price_reads_prices_as_people_write_them(text):
    assert parse_price(text) == 0.4


@pytest.mark.parametrize("text", ["", "cheap", "0.4/day", "-1", "1,5"])
def test_parse_price_says_how_to_write_a_price(text):
    with pytest.raises(UserError, match=r"--price=0\.4/gpu-hour"):
        parse_price(text)


def test_a_checkpoint_holds_weights_and_states_and_deepspeeds_more():
    assert estimate_checkpoint_bytes(400, 100, 800) == 1200
    assert estimate_checkpoint_bytes(400, 100, 800, "deepspeed") == 400 * 2 + 800 + 400
    assert estimate_checkpoint_bytes(400, 100, 800, "fsdp") == 400 * 2 + 800


def test_disk_bytes_count_one_checkpoint_more_than_are_kept():
    assert disk_bytes(1200, kept=0, weights=400) == 3 * 1200 + 400
    assert disk_bytes(1200, kept=5, weights=400) == 6 * 1200 + 400
