"""The learning rate of a post-training stage where the recipe names none: by method, size, and full or LoRA training.

docs/alignment.md has the same table with the published recipe, or the recipe of ours, of each rate; those of models
below 100M parameters are ours. Where nobody has published one, that for LoRA is about ten times that for all weights
(Schulman et al. 2025, https://thinkingmachines.ai/blog/lora/).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """The learning rates of models of fewer than `parameters` parameters."""

    parameters: float
    full: float
    lora: float


ANY_SIZE = float("inf")

PREFERENCE_RATES = (
    Rate(100e6, full=5e-5, lora=2e-4),
    Rate(2.5e9, full=1e-6, lora=1e-5),
    Rate(20e9, full=5e-7, lora=5e-6),
    Rate(ANY_SIZE, full=2e-7, lora=2e-6),
)
GROUP_RATES = (
    Rate(100e6, full=1e-4, lora=4e-4),
    Rate(ANY_SIZE, full=1e-6, lora=1e-5),
)
RATES = {
    "sft": (
        Rate(100e6, full=1e-3, lora=2e-3),
        Rate(1e9, full=1e-3, lora=1e-3),
        Rate(2.5e9, full=3e-4, lora=3e-4),
        Rate(20e9, full=2e-5, lora=2e-4),
        Rate(ANY_SIZE, full=2e-6, lora=1e-4),
    ),
    "dpo": PREFERENCE_RATES,
    "kto": PREFERENCE_RATES,
    "grpo": GROUP_RATES,
    "rloo": GROUP_RATES,
    "ppo": (
        Rate(100e6, full=2e-4, lora=4e-4),
        Rate(20e9, full=3e-6, lora=3e-5),
        Rate(ANY_SIZE, full=1e-7, lora=1e-6),
    ),
    "reward": (
        Rate(100e6, full=2e-4, lora=1e-3),
        Rate(20e9, full=3e-6, lora=1e-4),
        Rate(ANY_SIZE, full=1e-6, lora=5e-5),
    ),
}


def default_learning_rate(stage: str, parameters: int, uses_lora: bool) -> float:
    """Return the learning rate of a stage (`sft`, `dpo` ...) for a model of so many parameters."""
    rate = next(rate for rate in RATES[stage] if parameters < rate.parameters)
    return rate.lora if uses_lora else rate.full


def describe_learning_rate(stage: str, parameters: int, uses_lora: bool) -> str:
    """Return the line that tells which learning rate was chosen, and why."""
    kind = "LoRA" if uses_lora else "all weights"
    rate = default_learning_rate(stage, parameters, uses_lora)
    return (
        f"{stage}.training.learning_rate {rate:g}: usual for {stage} of {parameters / 1e6:,.3g}M parameters, {kind} "
        "(docs/alignment.md)"
    )
