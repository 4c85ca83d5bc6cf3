"""Sample completions and train on those above their group's mean reward (GRPO); makes runs/<name>/grpo.

    accelerate launch -m hf_llm.grpo recipes/gpt125m.yaml

Group-relative policy optimisation, Shao et al. 2024, https://arxiv.org/abs/2402.03300. Rewards come from the run's
reward model, one named in the section, or Python functions (docs/alignment.md). There is no critic to train.
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


KL_COEFFICIENT = 0.04  # as in the paper; TRL's default of 0 neither keeps the model near its reference nor logs the KL


@dataclass
class GrpoSection(RolloutSection):
    """The `grpo` section."""

    training: Settings["trl.GRPOConfig"] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    grpo: GrpoSection
    """Group-relative policy optimisation on sampled completions."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "grpo")
    section = recipe.grpo
    inputs = run.starting_model("grpo", section.model) | section.reward_input(run)

    from hf_llm.posttraining.group_trainer import group_headline
    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("grpo", recipe, inputs) as output:
        if output.is_complete:
            return
        trainer, counts = build_stage_trainer(recipe, output)
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, group_headline(trainer), measure, licenses=section.licenses, rows=counts)


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[GroupTrainer, dict[str, Any]]":
    """Build the trainer of this stage for the model at `output.start`; also return the counts of rows."""
    from trl import GRPOConfig

    from hf_llm.posttraining.group_trainer import ResumableGRPOTrainer, build_group_trainer

    return build_group_trainer(
        ResumableGRPOTrainer, GRPOConfig, recipe.grpo, output, recipe.seed, recipe.price_per_hour, beta=KL_COEFFICIENT
    )


if __name__ == "__main__":
    main()
