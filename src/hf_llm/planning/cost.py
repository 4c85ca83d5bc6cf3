"""Estimate disk space, energy and cost from the hours of a training, at prices that the user states."""

import re
from dataclasses import dataclass

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import Device

# Checkpoints that are kept at least (hf_llm.training.fault_tolerance.resume). One more exists while it is written.
MIN_CHECKPOINTS_KEPT = 2


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


def parse_price(text: str) -> float:
    """Parse `0.4` or `0.4/gpu-hour`, the price of one device-hour. Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:/\s*(?:gpu-)?(?:hour|h))?\s*", text)
    if not match:
        raise UserError(
            f"--price: {text!r} is not a price; write the price of one GPU for an hour, as in --price=0.4/gpu-hour"
        )
    return float(match[1])


def disk_bytes(checkpoint: int, kept: int, weights: int) -> int:
    """Count the bytes of a stage's folder at its fullest.

    That is when it holds the `kept` checkpoints, one more that is being written, and the finished model.
    """
    checkpoints = max(MIN_CHECKPOINTS_KEPT, kept) + 1
    return checkpoint * checkpoints + weights
