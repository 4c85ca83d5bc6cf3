"""An experiment before it is made: the size of each variant, and how long all of it takes on this machine."""

from dataclasses import dataclass

from hf_llm.core.format import format_duration as duration
from hf_llm.experiments.matched_sizes import UNITS, measures
from hf_llm.experiments.train_variants import apart
from hf_llm.experiments.variants import Prospective, Variant, checked
from hf_llm.hardware.runtime import device_type, has_bf16
from hf_llm.planning.memory_estimate import Job
from hf_llm.planning.speed import measured_here
from hf_llm.planning.stage_plans import tokens_worked
from hf_llm.planning.tables import aligned, number


@dataclass(frozen=True)
class Planned:
    """A variant before it is trained. `tokens` are those of one training; None where its epochs decide."""

    variant: Variant
    prospective: Prospective
    parameters: int
    flops: int  # of training on one token
    tokens: int | None
    work: float | None  # FLOPs of one training, evaluations and all

    def measure(self, equal: str) -> int:
        """What is made equal: `parameters` or `flops`."""
        return self.parameters if equal == "parameters" else self.flops

    @property
    def compute(self) -> float | None:
        """FLOPs of one training without its evaluations."""
        return None if self.tokens is None else self.flops * self.tokens


def plan(variants: list[Variant]) -> list[Planned]:
    """Parameters, arithmetic and tokens of each variant."""
    planned = []
    for variant in variants:
        found = checked(variant.tree, variant.name)
        counts = measures(found.config, found.context)
        steps = found.section.training.get("max_steps")
        told = bool(steps and steps > 0)
        tokens = steps * found.section.tokens_per_step if told else None
        work = counts["flops"] * tokens_worked(found.section, steps) if told else None
        planned.append(Planned(variant, found, counts["parameters"], counts["flops"], tokens, work))
    return planned


def rate(planned: Planned) -> float:
    """FLOP/s at which this machine trains a variant, measured on a few of its layers."""
    found = planned.prospective
    windows, settings = found.section.tokens_per_step // found.context, found.section.training
    job = Job(found.config, found.context, windows, settings, has_bf16(device_type()))
    return apart(measured_here, job, 1).tokens_per_second * planned.flops


def plan_table(planned: list[Planned], equal: str, flops_per_second: float, seeds: int) -> str:
    """The variants as they will be trained, a line each, and how long all of them take."""
    compared = ["to baseline"] if equal != "none" else []
    lines = [["variant", "parameters", "FLOPs/token", *compared, "tokens", "time"]]
    lines[0] += ["fitted"] if compared else []
    for entry in planned:
        line = [entry.variant.name, f"{entry.parameters:,}", f"{entry.flops:.3g}"]
        line += [f"{entry.measure(equal) / planned[0].measure(equal) - 1:+.2%}"] if compared else []
        line += [number(entry.tokens), duration(entry.work / flops_per_second)] if entry.tokens else ["by epochs", ""]
        fitted = ", ".join(f"{k.removeprefix('model.')} {v}" for k, v in entry.variant.fitted.items())
        lines.append(line + ([fitted] if compared else []))
    told = [aligned(lines)] + ([f"  equal {UNITS[equal]} within 1%"] if compared else [])
    if any(entry.work is None for entry in planned):
        return "\n".join([*told, "  how long that takes is known once pretrain.training.max_steps is set"])
    seconds = seeds * sum(entry.work for entry in planned) / flops_per_second
    told.append(
        f"  {len(planned) * seeds} trainings, about {duration(seconds)} in all at {flops_per_second:.2g} FLOP/s, "
        "measured here on the first"
    )
    return "\n".join(told)
