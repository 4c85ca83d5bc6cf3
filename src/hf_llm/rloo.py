"""Let the model answer prompts several times, and learn from the answers above the others; makes runs/<name>/rloo.

    accelerate launch -m hf_llm.rloo recipes/gpt125m.yaml

REINFORCE leave-one-out, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740: the baseline of an answer is the mean
reward of the other answers to its prompt. Rewards come as in hf_llm.grpo (docs/alignment.md).
"""

from dataclasses import dataclass, field

from trl import RLOOConfig

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.pipeline.run import read_run
from hf_llm.posttraining.trainers import AnswerTuning, LeaveOneOutTrainer, learn_from_groups


@dataclass
class LeaveOneOutTuning(AnswerTuning):
    """The `rloo` section."""

    training: Settings[RLOOConfig] = field(default_factory=Settings)


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    rloo: LeaveOneOutTuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section, before = recipe.rloo, run.starting_folder("rloo")
    judge = section.judge(run)
    inputs = {before: section.model} | ({"reward": judge} if judge else {})
    with run.open_stage("rloo", recipe, inputs) as making:
        if not making.is_complete:
            learn_from_groups(
                LeaveOneOutTrainer,
                RLOOConfig,
                section,
                making,
                run,
                recipe.seed,
                making.sources[before],
                judge,
                recipe.price_per_hour,
            )


if __name__ == "__main__":
    main()
