"""Find sizes that make a variant comparable to the baseline: equal parameters, or equal FLOPs per token."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_llm.core.errors import UserError
from hf_llm.experiments.variants import PlannedPretraining, Variant, plan_pretraining, set_keys
from hf_llm.model.summary import flops_per_token
from hf_llm.planning.memory_estimate import build_planned_config, build_planned_model

UNIT_NAMES = {"parameters": "parameters", "flops": "FLOPs per token"}
TOLERANCE = 0.01

# The search has two rounds. In each, the ratio of the MLP's width to the model's may change by up to this factor.
MLP_FACTORS = (2.0, 8.0)
# The MLP's width is a multiple of the largest of these that comes close enough: kernels are fast at round numbers.
MLP_MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
MAX_WIDTH_FACTOR = 4  # the model may become so many times as wide
MLP_WIDTH_KEYS = ("moe_intermediate_size", "intermediate_size", "n_inner", "d_ff", "ffn_dim")  # transformers' names

Sizes = dict[str, int]  # keys of the `model` section


def measure_model(config: PreTrainedConfig, context: int) -> dict[str, int]:
    """Count `parameters` (tied ones once) and `flops` of training on one token (of experts, the active ones)."""
    with torch.device("meta"):
        model = build_planned_model(config)
    return {"parameters": model.num_parameters(), "flops": flops_per_token(model, context)}


def match_baseline(variant: Variant, baseline: Variant, equal: str) -> Variant:
    """Return the variant with sizes at which its `equal` is within 1% of the baseline's.

    First the MLP is made wider or narrower, by up to a factor of two; then the whole model, with its heads in
    proportion. Keys in `variant.changes` keep their values. Raises UserError where no size comes close enough.
    """
    if equal == "none" or not variant.changes:
        return variant

    target_pretraining = plan_pretraining(baseline.tree, baseline.name)
    target = measure_model(target_pretraining.config, target_pretraining.context)[equal]
    search = SizeSearch(plan_pretraining(variant.tree, variant.name), variant.changes, equal, target)
    sizes = search.find_sizes()
    if sizes is None:
        raise UserError(
            f"{variant.name}: no size that --vary leaves open comes within {TOLERANCE:.0%} of the baseline's "
            f"{target:,} {UNIT_NAMES[equal]}; {search.closest:,} ({search.closest / target - 1:+.1%}) is the closest. "
            "Leave more sizes open, use another value, or add --equal none"
        )
    fitted = {f"model.{key}": value for key, value in sizes.items()}
    return Variant(variant.name, variant.changes, set_keys(variant.tree, fitted), fitted)


class SizeSearch:
    """The search for sizes at which one variant has `target` parameters or FLOPs per token.

    `closest` is the count that came closest to the target so far.
    """

    def __init__(self, pretraining: PlannedPretraining, changes: dict[str, Any], equal: str, target: int):
        self.pretraining = pretraining
        self.config = pretraining.config
        self.equal = equal
        self.target = target

        # Families name sizes differently: GPT-2's `n_embd` is `hidden_size`.
        self.family_names = type(self.config).attribute_map
        changed_sizes = [key.split(".")[1] for key in changes if key.startswith("model.")]
        self.fixed = {self.family_name(size) for size in changed_sizes}
        self.mlp_key = self._find_mlp_key()
        self.closest = self._count({})

    def family_name(self, size: str) -> str:
        """Return the name of a size in this model family's own configuration."""
        return self.family_names.get(size, size)

    def _find_mlp_key(self) -> str | None:
        """Return the key of the MLP's width; None where the family has none or the variant fixes it."""
        has_experts = bool(getattr(self.config, "num_experts", None))
        for key in MLP_WIDTH_KEYS:
            is_of_experts = key.startswith("moe")
            if getattr(self.config, key, None) and (has_experts or not is_of_experts):
                return None if key in self.fixed else key
        return None

    def find_sizes(self) -> Sizes | None:
        """Return what to set in the `model` section; None where nothing comes close enough."""
        if self.is_close(self.closest):
            return {}
        for factor in MLP_FACTORS:
            for width in ({}, *self.list_widths()):
                try:
                    sizes = self.fit_mlp(width, factor)
                except UserError:  # sizes that contradict a switch of this variant
                    continue
                if sizes is not None:
                    return sizes
        return None

    def count_with(self, sizes: Sizes) -> int:
        """Count parameters or FLOPs of the variant with other sizes, and note the count where it is the closest."""
        count = self._count(sizes)
        if self._relative_error(count) < self._relative_error(self.closest):
            self.closest = count
        return count

    def _count(self, sizes: Sizes) -> int:
        section = {**self.pretraining.model, **sizes}
        config = build_planned_config(section, self.config.vocab_size, self.pretraining.section.context)
        return measure_model(config, self.pretraining.context)[self.equal]

    def _relative_error(self, count: float) -> float:
        return abs(count / self.target - 1)

    def is_close(self, count: float) -> bool:
        """Whether a count is within the tolerance of the target."""
        return self._relative_error(count) <= TOLERANCE

    def fit_mlp(self, width: Sizes, factor: float) -> Sizes | None:
        """Return the sizes `width` with an MLP that reaches the target.

        The MLP's width may differ by up to `factor` from its usual proportion; None where that is not enough.
        Parameters and FLOPs are linear in the MLP's width, so two counts determine it.
        """
        if self.mlp_key is None:
            return width if self.is_close(self.count_with(width)) else None

        hidden_size = width.get(self.family_name("hidden_size"), self.config.hidden_size)
        scale = hidden_size / self.config.hidden_size
        middle = max(1, round(getattr(self.config, self.mlp_key) * scale))
        count_at_middle = self.count_with({**width, self.mlp_key: middle})
        count_at_double = self.count_with({**width, self.mlp_key: 2 * middle})
        ideal = middle + (self.target - count_at_middle) * middle / (count_at_double - count_at_middle)

        for multiple in MLP_MULTIPLES:
            mlp_width = round(ideal / multiple) * multiple
            if not max(1, middle / factor) <= mlp_width <= middle * factor:
                continue
            sizes = {**width, self.mlp_key: mlp_width}
            if self.is_close(self.count_with(sizes)):
                return sizes
        return None

    def list_widths(self) -> list[Sizes]:
        """List narrower and wider models: first those with another number of heads, then those with other head sizes.

        Each group is sorted by how much the width changes, the least first.
        """
        hidden_key = self.family_name("hidden_size")
        if hidden_key in self.fixed:
            return []

        def distance(sizes: Sizes) -> float:
            return abs(math.log(sizes[hidden_key] / self.config.hidden_size))

        return sorted(self._vary_heads(), key=distance) + sorted(self._vary_head_size(), key=distance)

    def _vary_heads(self) -> Iterator[Sizes]:
        """Yield models with another number of heads of the same size."""
        heads_key = self.family_name("num_attention_heads")
        key_value_key = self.family_name("num_key_value_heads")
        if heads_key in self.fixed:
            return

        heads = self.config.num_attention_heads
        head_size = self.config.hidden_size // heads
        key_value_heads = getattr(self.config, "num_key_value_heads", None)
        keeps_key_value_heads = key_value_heads == 1 or key_value_key in self.fixed
        for number in range(1, MAX_WIDTH_FACTOR * heads + 1):
            if number == heads:
                continue
            sizes = {self.family_name("hidden_size"): number * head_size, heads_key: number}

            # Key/value heads grow in proportion, or stay; heads must be a multiple of them either way.
            if key_value_heads and keeps_key_value_heads and number % key_value_heads:
                continue
            if key_value_heads and not keeps_key_value_heads:
                if number * key_value_heads % heads:
                    continue
                sizes[key_value_key] = number * key_value_heads // heads
            yield sizes

    def _vary_head_size(self) -> Iterator[Sizes]:
        """Yield models with as many heads of another size, which stays even as rotary positions need."""
        head_size_key = self.family_name("head_dim")
        if head_size_key in self.fixed:
            return

        heads = self.config.num_attention_heads
        own_head_size = self.config.hidden_size // heads
        names_head_size = getattr(self.config, "head_dim", None) == own_head_size
        for head_size in range(2, MAX_WIDTH_FACTOR * own_head_size + 1, 2):
            if head_size == own_head_size:
                continue
            sizes = {self.family_name("hidden_size"): heads * head_size}
            if names_head_size:
                sizes[head_size_key] = head_size
            yield sizes
