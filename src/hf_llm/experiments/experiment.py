"""An experiment from its variants to its page: what hf_llm.ablate and hf_llm.scaling have in common."""

import argparse
from pathlib import Path
from typing import Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.experiments.estimate import Planned, plan, plan_table, rate
from hf_llm.experiments.matched_sizes import equalised
from hf_llm.experiments.page import write_page
from hf_llm.experiments.results import results
from hf_llm.experiments.train_variants import Training, check_standing, prepare, train, trainings
from hf_llm.experiments.variants import Variant
from hf_llm.model.load import CAUSAL
from hf_llm.pipeline.run import Run
from hf_llm.training.objectives import objective_in


class Experiment:
    """`variants` of the recipe of `run`, the first of them the baseline, trained with each of `seeds` and made `equal`
    (hf_llm.experiments.matched_sizes.EQUAL) below runs/<name>/`into`. `compared`: whether they are ranked against the
    first.

    Raises UserError where a variant cannot be made equal, or its training was begun with other settings.
    """

    def __init__(self, run: Run, into: str, variants: list[Variant], seeds: int, equal: str, compared: bool):
        self.run, self.into, self.equal, self.compared = run, into, equal, compared
        self.seeds = [int(run.tree.get("seed", 42)) + number for number in range(seeds)]
        self._asked = variants
        self._fit()
        check_comparable(self.trainings)
        check_standing(self.trainings, into)

    @property
    def folder(self) -> Path:
        return self.run.root / self.into

    def _fit(self) -> None:
        self.planned: list[Planned] = plan([equalised(each, self._asked[0], self.equal) for each in self._asked])
        self.trainings: list[Training] = trainings(self.run, self.into, [p.variant for p in self.planned], self.seeds)

    def announce(self) -> None:
        """Print sizes and hours. The speed is that of the baseline, measured in a few seconds."""
        print_main(plan_table(self.planned, self.equal, rate(self.planned[0]), len(self.seeds)))

    def train(self) -> int:
        """Make the data, then train what is not finished, the page written after each. Returns how many failed.

        Sizes are fitted anew once the tokenizers are there: a small corpus may give fewer tokens than were asked for.
        """
        before = [entry.variant.tree for entry in self.planned]
        prepare(self.run, self._asked)
        self._fit()
        if before != [entry.variant.tree for entry in self.planned]:
            print_main("The tokenizer has other tokens than planned, so the sizes are now:")
            self.announce()
        return train(self.trainings, lambda: write_page(self.folder, self.results(), self.trainings))

    def results(self) -> dict[str, Any]:
        """What is known now, as plain values (hf_llm.experiments.results)."""
        return results(self.run.name, self.planned, self.trainings, self.equal, self.compared)


def check_comparable(trainings: list[Training]) -> None:
    """Raise UserError for models that read different tokens and that have no bits per byte to be compared by."""
    trees = [training.variant.tree for training in trainings]
    kinds = {objective_in(tree).kind for tree in trees} - {CAUSAL}
    if kinds and len({tree["name"] for tree in trees}) > 1:
        raise UserError(
            f"variants that read different tokens are compared by bits per byte, and {kinds.pop()} models have none; "
            "vary keys of model or pretrain, or take a causal model"
        )


def options(program: str, description: str, into: str) -> argparse.ArgumentParser:
    """A parser with what both commands take."""
    parser = argparse.ArgumentParser(
        f"python -m hf_llm.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=positive, default=1, help="trainings of each, with seeds from the recipe's on")
    parser.add_argument("--into", default=into, help="the folder of it all, below runs/<name> (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only print sizes and hours")
    return parser


def positive(text: str) -> int:
    """A whole number from 1 on, of a command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number from 1 on is wanted")
    return number
