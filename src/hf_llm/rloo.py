"""Sample completions and train on those above the mean of the others (RLOO); makes runs/<name>/rloo.

    accelerate launch -m hf_llm.rloo recipes/gpt125m.yaml

REINFORCE leave-one-out, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740: the baseline of a completion is the
mean reward of the other completions of its prompt. Rewards come as in hf_llm.grpo (docs/alignment.md).
"""

from dataclasses import dataclass, field

from trl import RLOOConfig

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.pipeline.run import BaseRecipe, read_run
from hf_llm.posttraining.group_trainer import ResumableRLOOTrainer, train_group_policy
from hf_llm.posttraining.sections import RolloutSection


@dataclass
class RlooSection(RolloutSection):
    """The `rloo` section."""

    training: Settings[RLOOConfig] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    rloo: RlooSection
    """REINFORCE leave-one-out on sampled completions."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section = recipe.rloo
    inputs = run.starting_model("rloo", section.model) | section.reward_input(run)
    with run.open_stage("rloo", recipe, inputs) as output:
        if output.is_complete:
            return
        train_group_policy(ResumableRLOOTrainer, RLOOConfig, section, output, run, recipe)


if __name__ == "__main__":
    main()
