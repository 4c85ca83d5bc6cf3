"""Run an experiment from its variants to its page: what hf_llm.ablate and hf_llm.scaling have in common."""

from pathlib import Path
from typing import Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.experiments.estimate import PlannedVariant, format_plan, measure_flops_per_second, plan_variants
from hf_llm.experiments.matched_sizes import match_baseline
from hf_llm.experiments.page import write_page
from hf_llm.experiments.results import collect_results
from hf_llm.experiments.train_variants import (
    Training,
    check_same_settings,
    list_trainings,
    prepare_data,
    train_variants,
)
from hf_llm.experiments.variants import Variant
from hf_llm.model.load import CAUSAL
from hf_llm.pipeline.run import Run
from hf_llm.training.objectives import resolve_objective


class Experiment:
    """Variants of a recipe, each trained with several seeds.

    Raises UserError where a variant cannot be made equal, or its training was begun with other settings.
    """

    planned: list[PlannedVariant]
    trainings: list[Training]

    def __init__(self, run: Run, into: str, variants: list[Variant], seeds: int, equal: str, compared: bool):
        """Plan the experiment below runs/<name>/`into`.

        The first of the `variants` of the recipe of `run` is the baseline, to which the others are made `equal`
        (hf_llm.experiments.command_line.MATCH_CHOICES). `compared` is whether they are ranked against it.
        """
        self.run = run
        self.into = into
        self.equal = equal
        self.compared = compared
        first_seed = int(run.tree.get("seed", 42))
        self.seeds = [first_seed + number for number in range(seeds)]

        self._requested_variants = variants
        self._plan_trainings()
        check_comparable(self.trainings)
        check_same_settings(self.trainings, into)

    @property
    def folder(self) -> Path:
        """The folder of all trainings and of the page."""
        return self.run.root / self.into

    def _plan_trainings(self) -> None:
        baseline = self._requested_variants[0]
        variants = [match_baseline(variant, baseline, self.equal) for variant in self._requested_variants]
        self.planned = plan_variants(variants)
        self.trainings = list_trainings(self.run, self.into, variants, self.seeds)

    def print_plan(self) -> None:
        """Print sizes and hours. The speed is that of the baseline, measured in a few seconds."""
        flops_per_second = measure_flops_per_second(self.planned[0])
        print_main(format_plan(self.planned, self.equal, flops_per_second, len(self.seeds)))

    def run_trainings(self) -> int:
        """Make the data, then run the trainings that are not finished, and write the page after each.

        Returns how many failed. Sizes are matched again once the tokenizers are there, since a tokenizer trained on a
        small corpus may have fewer tokens than the recipe asks for.
        """
        planned_trees = [entry.variant.tree for entry in self.planned]
        prepare_data(self.run, self._requested_variants)
        self._plan_trainings()
        if [entry.variant.tree for entry in self.planned] != planned_trees:
            print_main("The tokenizer has another number of tokens than planned, so the sizes are now:")
            self.print_plan()
        return train_variants(self.trainings, after_each=self._write_page)

    def _write_page(self) -> None:
        write_page(self.folder, self.results(), self.trainings)

    def results(self) -> dict[str, Any]:
        """Return what has been measured so far, as plain values (hf_llm.experiments.results)."""
        return collect_results(self.run.name, self.planned, self.trainings, self.equal, self.compared)


def check_comparable(trainings: list[Training]) -> None:
    """Raise UserError for models that read different tokens and that have no bits per byte to be compared by."""
    trees = [training.variant.tree for training in trainings]
    data_names = {tree["name"] for tree in trees}
    kinds_without_bits = {resolve_objective(tree).kind for tree in trees} - {CAUSAL}
    if kinds_without_bits and len(data_names) > 1:
        raise UserError(
            "variants that read different tokens are compared by bits per byte, and "
            f"{kinds_without_bits.pop()} models have none; vary keys of model or pretrain, or use a causal model"
        )
