import pytest

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import parse_device
from hf_llm.planning.cost import Price, disk_bytes, estimate_cost, parse_price
from hf_llm.training.fault_tolerance.checkpoints import estimate_checkpoint_bytes


def test_ten_hours_of_four_cards():
    cost = estimate_cost(10, 4, parse_device("rtx4090"), price=0.4, electricity=0.3)
    assert cost.energy == pytest.approx(18)  # 4 x 450 W
    assert cost.rent == pytest.approx(16)
    assert cost.electricity == pytest.approx(5.4)


def test_cost_is_none_where_watts_and_price_are_not_known():
    cost = estimate_cost(10, 1, parse_device("apple-m3-max"), price=None, electricity=0.3)
    assert (cost.energy, cost.rent, cost.electricity) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("0.4", Price(0.4, "", False, False)),
        (" .4 / h ", Price(0.4, "", False, False)),
        ("0.4/gpu-hour", Price(0.4, "", False, True)),
        ("$0.40", Price(0.4, "USD", False, False)),
        ("US$ 2 per hour", Price(2, "USD", False, False)),
        ("2 EUR/hour", Price(2, "EUR", False, False)),
        ("€2/GPU-hour", Price(2, "EUR", False, True)),
        ("24.5 usd / machine-hour", Price(24.5, "USD", True, True)),
        ("12 per node hour", Price(12, "", True, True)),
    ],
)
def test_parse_price_reads_prices_as_people_write_them(text, price):
    assert parse_price(text) == price
    assert price.per_device(4) == (price.amount / 4 if price.is_of_machine else price.amount)
    assert ("machine-hour" in price.describe()) == (not price.is_unit_named)


@pytest.mark.parametrize("text", ["", "cheap", "0.4/day", "-1", "1,5", "$2 EUR", "nan"])
def test_parse_price_says_how_to_write_a_price(text):
    with pytest.raises(UserError, match=r"--price=0\.4/gpu-hour"):
        parse_price(text)


def test_a_checkpoint_holds_weights_and_states_and_deepspeeds_more():
    assert estimate_checkpoint_bytes(400, 100, 800) == 1200
    assert estimate_checkpoint_bytes(400, 100, 800, "deepspeed") == 400 * 2 + 800 + 400
    assert estimate_checkpoint_bytes(400, 100, 800, "fsdp") == 400 * 2 + 800


@pytest.mark.parametrize(
    ("training", "checkpoints"),
    [
        ({}, 3),  # two are kept, and one more is being written
        ({"save_total_limit": 5}, 6),
        ({"lr_scheduler_type": "warmup_stable_decay"}, 4),  # the one before the decay
        ({"load_best_model_at_end": True}, 4),
        ({"lr_scheduler_type": "warmup_stable_decay", "save_total_limit": 5, "load_best_model_at_end": True}, 8),
        ({"lr_scheduler_type": "cosine"}, 3),
    ],
)
def test_disk_bytes_count_every_checkpoint_that_a_folder_holds_at_once(training, checkpoints):
    assert disk_bytes(1200, training, weights=400) == checkpoints * 1200 + 400
