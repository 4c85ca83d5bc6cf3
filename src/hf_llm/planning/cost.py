"""Estimate disk space, energy and cost from the hours of a training, at prices that the user states."""

import re
from dataclasses import dataclass
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import Device

# Checkpoints that are kept at least (hf_llm.training.fault_tolerance.resume). One more exists while it is written.
MIN_CHECKPOINTS_KEPT = 2
WITH_DECAY = "warmup_stable_decay"  # a schedule of which the checkpoint before the decay is kept, to be trained on

CURRENCY_SIGNS = {"$": "USD", "us$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
MACHINE_UNITS = ("machine", "node", "server", "instance")
PRICE = re.compile(
    r"(?P<sign>us\$|[$€£¥])?\s*(?P<amount>\d+(?:\.\d+)?|\.\d+)\s*(?P<code>[a-z]{3})?"
    r"\s*(?:(?:/|per)\s*(?:(?P<unit>gpu|device|card|machine|node|server|instance)[\s-]*)?(?:hours?|hr|h))?"
)


@dataclass(frozen=True)
class Cost:
    """The energy of one training, and its cost at the user's prices (None where no price is given)."""

    energy: float | None
    """kWh; None where the maker of the device does not publish its watts."""
    rent: float | None
    electricity: float | None


def estimate_cost(
    hours: float, devices: int, device: Device, price: float | None = None, electricity: float | None = None
) -> Cost:
    """Estimate the cost of `hours` on `devices`, at `price` for one device-hour and `electricity` for a kWh.

    The energy is that of the boards at full power, without the computer around them or its cooling.
    """
    energy = None
    if device.watts:
        energy = hours * devices * device.watts / 1000

    rent = None
    if price is not None:
        rent = hours * devices * price

    electricity_cost = None
    if energy is not None and electricity is not None:
        electricity_cost = energy * electricity

    return Cost(energy, rent, electricity_cost)


@dataclass(frozen=True)
class Price:
    """What an hour costs."""

    amount: float
    currency: str = ""
    """As the user has written it, in capitals: USD; empty where there is none."""
    is_of_machine: bool = False
    """Whether it is the price of all devices together, rather than of one."""
    is_unit_named: bool = True
    """Whether the user has said which of the two."""

    def per_device(self, devices: int) -> float:
        """Return the price of one device for an hour."""
        return self.amount / devices if self.is_of_machine else self.amount

    def describe(self) -> str:
        """Say how the price was understood."""
        whose = "the machine" if self.is_of_machine else "one GPU"
        text = f"price: {self.amount:g} {self.currency}".rstrip() + f" for {whose} for an hour"
        if not self.is_unit_named:
            text += " (write 0.4/machine-hour for the price of all GPUs together)"
        return text


def parse_price(text: str) -> Price:
    """Parse the price of an hour: `0.4`, `$0.40`, `2 EUR/hour`, `0.4/gpu-hour`, `12/machine-hour`.

    Without a unit it is that of one device. Raises UserError.
    """
    match = PRICE.fullmatch(text.strip().lower())
    if not match or (match["sign"] and match["code"]):
        raise UserError(
            f"--price: {text!r} is not a price; write the price of one GPU for an hour, as in --price=0.4/gpu-hour, or "
            "of all of them, as in --price=3.2/machine-hour"
        )
    currency = CURRENCY_SIGNS.get(match["sign"] or "", "") or (match["code"] or "").upper()
    return Price(
        amount=float(match["amount"]),
        currency=currency,
        is_of_machine=match["unit"] in MACHINE_UNITS,
        is_unit_named=match["unit"] is not None,
    )


def disk_bytes(checkpoint: int, training: dict[str, Any], weights: int) -> int:
    """Count the bytes of a stage's folder at its fullest: its checkpoints, and the finished model of `weights` bytes.

    `checkpoint` are the bytes of one. By its `training` section it keeps `save_total_limit` of them, the one before the
    decay of a warmup_stable_decay schedule and the best one; one more is being written.
    """
    checkpoints = max(MIN_CHECKPOINTS_KEPT, training.get("save_total_limit") or 0) + 1
    if training.get("lr_scheduler_type") == WITH_DECAY:
        checkpoints += 1
    if training.get("load_best_model_at_end"):
        checkpoints += 1
    return checkpoint * checkpoints + weights
