"""Estimate an experiment before it runs: the size of each variant, and how long all trainings take on this machine."""

from dataclasses import dataclass

from hf_llm.core.format import align_columns, format_duration, format_number
from hf_llm.experiments.matched_sizes import UNIT_NAMES, measure_model
from hf_llm.experiments.train_variants import run_in_subprocess
from hf_llm.experiments.variants import PlannedPretraining, Variant, plan_pretraining
from hf_llm.hardware.runtime import device_type, has_bf16
from hf_llm.planning.memory_estimate import TrainingJob
from hf_llm.planning.speed import measure_job_speed
from hf_llm.planning.stage_plans import count_equivalent_tokens


@dataclass(frozen=True)
class PlannedVariant:
    """A variant before it is trained."""

    variant: Variant
    pretraining: PlannedPretraining
    parameters: int
    flops_per_token: int
    """FLOPs of training on one token."""
    tokens: int | None
    """Tokens of one training; None where epochs determine them."""
    total_flops: float | None
    """FLOPs of one training with its evaluations; None where epochs determine the tokens."""

    def matched_quantity(self, equal: str) -> int:
        """Return the quantity that `--equal` makes equal: the parameters or the FLOPs per token."""
        return self.parameters if equal == "parameters" else self.flops_per_token

    @property
    def training_flops(self) -> float | None:
        """FLOPs of one training without its evaluations; None where epochs determine the tokens."""
        if self.tokens is None:
            return None
        return self.flops_per_token * self.tokens


def plan_variants(variants: list[Variant]) -> list[PlannedVariant]:
    """Compute parameters, FLOPs and tokens of each variant."""
    return [_plan_variant(variant) for variant in variants]


def _plan_variant(variant: Variant) -> PlannedVariant:
    pretraining = plan_pretraining(variant.tree, variant.name)
    section = pretraining.section
    size = measure_model(pretraining.config, pretraining.context)

    tokens = None
    total_flops = None
    max_steps = section.training.get("max_steps")
    if max_steps and max_steps > 0:
        tokens = max_steps * section.tokens_per_step
        total_flops = size["flops"] * count_equivalent_tokens(section, max_steps)
    return PlannedVariant(variant, pretraining, size["parameters"], size["flops"], tokens, total_flops)


def measure_flops_per_second(planned: PlannedVariant) -> float:
    """Measure the FLOP/s at which this machine trains a variant, on a few of its layers."""
    pretraining = planned.pretraining
    section = pretraining.section
    windows_per_step = section.tokens_per_step // pretraining.context
    bf16 = has_bf16(device_type())
    job = TrainingJob(pretraining.config, pretraining.context, windows_per_step, section.training, bf16)
    speed = run_in_subprocess(measure_job_speed, job, 1)
    return speed.tokens_per_second * planned.flops_per_token


def format_plan(planned: list[PlannedVariant], equal: str, flops_per_second: float, seeds: int) -> str:
    """Format the variants as they will be trained, a line each, and how long all of them take."""
    is_matched = equal != "none"
    header = ["variant", "parameters", "FLOPs/token"]
    if is_matched:
        header.append("to baseline")
    header += ["tokens", "time"]
    if is_matched:
        header.append("fitted")

    rows = [header]
    for entry in planned:
        row = [entry.variant.name, f"{entry.parameters:,}", f"{entry.flops_per_token:.3g}"]
        if is_matched:
            ratio = entry.matched_quantity(equal) / planned[0].matched_quantity(equal)
            row.append(f"{ratio - 1:+.2%}")
        if entry.tokens:
            row += [format_number(entry.tokens), format_duration(entry.total_flops / flops_per_second)]
        else:
            row += ["by epochs", ""]
        if is_matched:
            fitted = [f"{key.removeprefix('model.')} {value}" for key, value in entry.variant.fitted.items()]
            row.append(", ".join(fitted))
        rows.append(row)

    lines = [align_columns(rows)]
    if is_matched:
        lines.append(f"  equal {UNIT_NAMES[equal]} within 1%")
    if any(entry.total_flops is None for entry in planned):
        lines.append("  how long that takes can be estimated once pretrain.training.max_steps is set")
        return "\n".join(lines)

    seconds = seeds * sum(entry.total_flops for entry in planned) / flops_per_second
    lines.append(
        f"  {len(planned) * seeds} trainings, about {format_duration(seconds)} in all at {flops_per_second:.2g} "
        "FLOP/s, measured on this machine with the first"
    )
    return "\n".join(lines)
