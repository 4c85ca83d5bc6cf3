"""Let the model answer prompts several times, and learn from the answers above their mean; makes runs/<name>/grpo.

    accelerate launch -m hf_llm.grpo recipes/gpt125m.yaml

Group relative policy optimisation, Shao et al. 2024, https://arxiv.org/abs/2402.03300. Rewards come from the run's
reward model, one named in the section, or Python functions (docs/alignment.md). There is no critic to train.
"""

from dataclasses import dataclass, field

from trl import GRPOConfig

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.pipeline.run import read_run
from hf_llm.posttraining.trainers import AnswerTuning, GroupRelativeTrainer, learn_from_groups

KL_COEFFICIENT = 0.04  # as in the paper; TRL's default is 0, which neither keeps near the model before nor logs the KL


@dataclass
class GroupRelativeTuning(AnswerTuning):
    """The `grpo` section."""

    training: Settings[GRPOConfig] = field(default_factory=Settings)


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    grpo: GroupRelativeTuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section, before = recipe.grpo, run.starting_folder("grpo")
    judge = section.judge(run)
    inputs = {before: section.model} | ({"reward": judge} if judge else {})
    with run.open_stage("grpo", recipe, inputs) as making:
        if not making.is_complete:
            learn_from_groups(
                GroupRelativeTrainer,
                GRPOConfig,
                section,
                making,
                run,
                recipe.seed,
                making.sources[before],
                judge,
                recipe.price_per_hour,
                beta=KL_COEFFICIENT,
            )


if __name__ == "__main__":
    main()
