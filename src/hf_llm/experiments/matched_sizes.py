"""Sizes that make a variant comparable to the baseline: as many parameters, or as many FLOPs for each token."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_llm.core.errors import UserError
from hf_llm.experiments.variants import Prospective, Variant, checked, with_changes
from hf_llm.model.summary import flops_per_token
from hf_llm.planning.memory_estimate import model_of, planned_config

EQUAL = ("parameters", "flops", "none")
UNITS = {"parameters": "parameters", "flops": "FLOPs per token"}
TOLERANCE = 0.01
# How far the MLP may go from its own share of the width, as a factor: little before the width is touched, then far.
BOUNDS = (2.0, 8.0)
STEPS = (64, 32, 16, 8, 4, 2, 1)  # of the MLP's width, the coarsest that comes near enough: kernels like round numbers
WIDEST = 4  # times the variant's own width
MLP_WIDTHS = ("moe_intermediate_size", "intermediate_size", "n_inner", "d_ff", "ffn_dim")  # transformers' names

Sizes = dict[str, int]  # keys of the `model` section


def measures(config: PreTrainedConfig, context: int) -> dict[str, int]:
    """`parameters` (all, tied ones once) and `flops` (of training on one token, of the experts only those chosen)."""
    with torch.device("meta"):
        model = model_of(config)
    return {"parameters": model.num_parameters(), "flops": flops_per_token(model, context)}


def equalised(variant: Variant, baseline: Variant, equal: str) -> Variant:
    """The variant with sizes at which its `equal` is within 1% of the baseline's; itself where it is so already.

    The MLP is made wider or narrower first, up to twice or half of what it was; then the whole model, its heads in
    proportion. What `variant.changes` sets stays. Raises UserError where no size comes near enough.
    """
    if equal == "none" or not variant.changes:
        return variant
    base = checked(baseline.tree, baseline.name)
    wanted = measures(base.config, base.context)[equal]
    fit = Fit(checked(variant.tree, variant.name), variant.changes, equal, wanted)
    sizes = fit.sizes()
    if sizes is None:
        raise UserError(
            f"{variant.name}: no size that --vary leaves open comes within {TOLERANCE:.0%} of the baseline's "
            f"{wanted:,} {UNITS[equal]}; {fit.nearest:,} ({fit.nearest / wanted - 1:+.1%}) is the nearest. Leave more "
            "sizes open, take another value, or add --equal none"
        )
    fitted = {f"model.{key}": value for key, value in sizes.items()}
    return Variant(variant.name, variant.changes, with_changes(variant.tree, fitted), fitted)


class Fit:
    """The search for the sizes of one variant. `nearest` is what came nearest to what is `wanted`."""

    def __init__(self, prospective: Prospective, changes: dict[str, Any], equal: str, wanted: int):
        self.own, self.equal, self.wanted = prospective, equal, wanted
        self.config = prospective.config
        self.names = type(self.config).attribute_map
        given = (key.split(".")[1] for key in changes if key.startswith("model."))
        self.given = {self.names.get(key, key) for key in given}
        known = [key for key in MLP_WIDTHS if getattr(self.config, key, None)]
        known = known if getattr(self.config, "num_experts", None) else [k for k in known if not k.startswith("moe")]
        self.mlp = known[0] if known and known[0] not in self.given else None
        self.nearest = self.measure({})

    def sizes(self) -> Sizes | None:
        """What to set in the `model` section; None where nothing comes near enough."""
        if self.is_near(self.nearest):
            return {}
        for bound in BOUNDS:
            for width in ({}, *self.widths()):
                try:
                    found = self.with_mlp(width, bound)
                except UserError:  # sizes that contradict a switch of this variant
                    continue
                if found is not None:
                    return found
        return None

    def measure(self, sizes: Sizes) -> int:
        """Parameters or FLOPs of the variant with other sizes, the nearest so far kept."""
        config = planned_config({**self.own.model, **sizes}, self.config.vocab_size, self.own.section.context)
        found = measures(config, self.own.context)[self.equal]
        self.nearest = min(getattr(self, "nearest", found), found, key=lambda value: abs(value / self.wanted - 1))
        return found

    def is_near(self, value: float) -> bool:
        return abs(value / self.wanted - 1) <= TOLERANCE

    def with_mlp(self, width: Sizes, bound: float) -> Sizes | None:
        """This width with the MLP that makes it fit; None where none between 1 / `bound` and `bound` does.

        Parameters and FLOPs grow with the MLP's width in a straight line.
        """
        if self.mlp is None:
            return width if self.is_near(self.measure(width)) else None
        share = width.get(self.key("hidden_size"), self.config.hidden_size) / self.config.hidden_size
        middle = max(1, round(getattr(self.config, self.mlp) * share))
        at_middle, at_twice = (self.measure({**width, self.mlp: size}) for size in (middle, 2 * middle))
        best = middle + (self.wanted - at_middle) * middle / (at_twice - at_middle)
        for step in STEPS:
            size = round(best / step) * step
            if max(1, middle / bound) <= size <= middle * bound:
                if self.is_near(self.measure({**width, self.mlp: size})):
                    return {**width, self.mlp: size}
        return None

    def widths(self) -> list[Sizes]:
        """Narrower and wider models, the nearest first: by the number of heads, then by the size of as many heads."""
        if self.key("hidden_size") in self.given:
            return []

        def distance(sizes: Sizes) -> float:
            return abs(math.log(sizes[self.key("hidden_size")] / self.config.hidden_size))

        return sorted(self._by_heads(), key=distance) + sorted(self._by_head_size(), key=distance)

    def _by_heads(self) -> Iterator[Sizes]:
        heads = self.config.num_attention_heads
        each = self.config.hidden_size // heads
        pairs = getattr(self.config, "num_key_value_heads", None)  # key/value heads stay where they are 1 or given
        stays = pairs == 1 or self.key("num_key_value_heads") in self.given
        if self.key("num_attention_heads") in self.given:
            return
        for number in range(1, WIDEST * heads + 1):
            sizes = {self.key("hidden_size"): number * each, self.key("num_attention_heads"): number}
            if pairs and not stays:
                if number * pairs % heads:
                    continue
                sizes[self.key("num_key_value_heads")] = number * pairs // heads
            if number != heads and not (pairs and stays and number % pairs):
                yield sizes

    def _by_head_size(self) -> Iterator[Sizes]:
        heads = self.config.num_attention_heads
        each = self.config.hidden_size // heads
        head_dim = getattr(self.config, "head_dim", None)
        if self.key("head_dim") in self.given:
            return
        for size in range(2, WIDEST * each + 1, 2):
            if size != each:
                sizes = {self.key("hidden_size"): heads * size}
                yield {**sizes, self.key("head_dim"): size} if head_dim == each else sizes

    def key(self, name: str) -> str:
        """What this family calls a size in its own configuration."""
        return self.names.get(name, name)
