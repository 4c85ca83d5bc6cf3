"""Sample completions and train on those above the mean of the others (RLOO); makes runs/<name>/rloo.

    accelerate launch -m hf_llm.rloo recipes/gpt125m.yaml

REINFORCE leave-one-out, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740: the baseline of a completion is the
mean reward of the other completions of its prompt. Rewards come as in hf_llm.grpo (docs/alignment.md).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.posttraining.sections import RolloutSection
from hf_llm.preflight.before_work import check_before_work

if TYPE_CHECKING:
    import trl

    from hf_llm.posttraining.group_trainer import GroupTrainer


@dataclass
class RlooSection(RolloutSection):
    """The `rloo` section."""

    training: Settings["trl.RLOOConfig"] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    rloo: RlooSection
    """REINFORCE leave-one-out on sampled completions."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "rloo")
    section = recipe.rloo
    inputs = run.starting_model("rloo", section.model) | section.reward_input(run)

    from hf_llm.posttraining.group_trainer import group_headline
    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("rloo", recipe, inputs) as output:
        if output.is_complete:
            return
        trainer, counts = build_stage_trainer(recipe, output)
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, group_headline(trainer), measure, licenses=section.licenses, rows=counts)


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[GroupTrainer, dict[str, Any]]":
    """Build the trainer of this stage for the model at `output.start`; also return the counts of rows."""
    from trl import RLOOConfig

    from hf_llm.posttraining.group_trainer import ResumableRLOOTrainer, build_group_trainer

    return build_group_trainer(
        ResumableRLOOTrainer, RLOOConfig, recipe.rloo, output, recipe.seed, recipe.price_per_hour
    )


if __name__ == "__main__":
    main()
