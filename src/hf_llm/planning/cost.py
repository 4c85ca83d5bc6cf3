"""What a training takes of disk, electricity and money, at prices that the user states."""

import re
from dataclasses import dataclass

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import Device

KEPT = 2  # checkpoints at least (hf_llm.training.fault_tolerance.resume), and one more while it is written


@dataclass(frozen=True)
class Cost:
    """Of one training: kWh (None where the maker of the device does not publish its watts) and money at the prices."""

    energy: float | None
    rent: float | None
    electricity: float | None


def cost(
    hours: float, devices: int, device: Device, price: float | None = None, electricity: float | None = None
) -> Cost:
    """Of `hours` on `devices`, at `price` for an hour of one, and `electricity` for a kWh.

    The energy is that of the boards at full power, without the computer around them or its cooling.
    """
    energy = hours * devices * device.watts / 1000 if device.watts else None
    return Cost(
        energy,
        hours * devices * price if price is not None else None,
        energy * electricity if energy is not None and electricity is not None else None,
    )


def parse_price(text: str) -> float:
    """`0.4` or `0.4/gpu-hour`: the price of an hour of one device. Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:/\s*(?:gpu-)?(?:hour|h))?\s*", text)
    if not match:
        raise UserError(f"--price: {text!r} is no price; write that of one GPU for an hour, as in --price=0.4/gpu-hour")
    return float(match[1])


def disk_bytes(checkpoint: int, kept: int, weights: int) -> int:
    """Bytes that a stage's folder takes at its fullest: the checkpoints kept, one being written, the finished model."""
    return checkpoint * (max(KEPT, kept) + 1) + weights
