"""Train a copy of the model to score answers as people prefer them (Bradley-Terry); makes runs/<name>/reward.

    accelerate launch -m hf_llm.reward recipes/gpt125m.yaml

The score of a conversation is read off its last token; the loss is -log sigmoid(score of the chosen answer - score of
the rejected one) (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5). The folder opens with
`AutoModelForSequenceClassification`. With a `lora` section only adapters and the score are trained.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import format_row_counts, load_preferences
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.preflight.before_work import check_before_work

if TYPE_CHECKING:
    import trl
    from transformers import Trainer


@dataclass
class RewardSection(PostTrainingSection):
    """The `reward` section."""

    training: Settings["trl.RewardConfig"] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    reward: RewardSection
    """A reward model trained on preferences."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "reward")
    section = recipe.reward

    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("reward", recipe, run.starting_model("reward", section.model)) as output:
        if output.is_complete:
            return
        trainer, counts = build_stage_trainer(recipe, output)
        headline = (
            "preference accuracy {eval_accuracy:.0%} on held-out pairs "
            "(95% interval {eval_accuracy_low:.0%} to {eval_accuracy_high:.0%}), margin {eval_margin:.2f}"
        )
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, headline, measure, licenses=section.licenses, rows=counts)


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[Trainer, dict[str, Any]]":
    """Build the trainer of this stage for the model at `output.start`; also return the counts of rows."""
    from transformers import set_seed
    from trl import RewardConfig

    from hf_llm.model.load import load_tokenizer
    from hf_llm.monitoring.attach import attach_callbacks
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.reward_trainer import PairwiseRewardTrainer, encode_pairs, load_padded_scorer
    from hf_llm.posttraining.rows.refused_rows import drop_refused_rows
    from hf_llm.posttraining.starting_model import max_row_length

    section = recipe.reward
    *rows, counts = load_preferences(
        section.data, section.evaluation_share, recipe.seed, section.allow_drop, output.path.with_name("corpus")
    )
    print_main(format_row_counts(counts))
    limit = max_row_length(section, output.start, "reward")
    tokenizer = load_tokenizer(output.start)
    rows, counts["refused"] = drop_refused_rows(rows, ("chosen", "rejected"), tokenizer, section.allow_drop)
    rows, too_long = encode_pairs(rows, tokenizer, limit, section)
    counts |= too_long

    set_seed(recipe.seed)  # for the weights of the new score
    trainer = build_trainer(
        PairwiseRewardTrainer, RewardConfig, section, output, recipe.seed, rows, load_padded_scorer, task="SEQ_CLS"
    )
    attach_callbacks(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
    return trainer, counts


if __name__ == "__main__":
    main()
