"""Let the model answer prompts several times, and learn from the answers above the others; makes runs/<name>/rloo.

    accelerate launch -m hf_llm.rloo recipes/gpt125m.yaml

REINFORCE leave-one-out, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740: the baseline of an answer is the mean
reward of the other answers to its prompt. Rewards come as in hf_llm.grpo (docs/alignment.md).
"""

from dataclasses import dataclass, field

from trl import RLOOConfig

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings, load_recipe
from hf_llm.pipeline.run import Run
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
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    section, before = recipe.rloo, run.model_before("rloo")
    start = run.given(section.model) or run.require(before)
    judge = section.judge(run)
    with run.begin("rloo", recipe, **{before: start}, **({"reward": judge} if judge else {})) as making:
        if not making.finished:
            learn_from_groups(
                LeaveOneOutTrainer,
                RLOOConfig,
                section,
                making,
                run,
                recipe.seed,
                start,
                judge,
                recipe.price_per_hour,
            )


if __name__ == "__main__":
    main()
