"""Train the chat model on answers that are each labelled good or bad, without pairs; makes runs/<name>/kto.

    accelerate launch -m hf_llm.kto recipes/gpt125m.yaml

Kahneman-Tversky optimisation, Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306. Rows hold `prompt`,
`completion` and `label`; pairs of preferences become two rows. With a `lora` section only adapters are trained, and the
reference is the model with the adapter switched off; without one, its log-probabilities are computed before training.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import format_row_counts, load_labelled_completions
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.preflight.before_work import check_before_work

if TYPE_CHECKING:
    import trl
    from transformers import Trainer


@dataclass
class KtoSection(PostTrainingSection):
    """The `kto` section."""

    training: Settings["trl.KTOConfig"] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""

    @property
    def has_reference(self) -> bool:
        return True


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    kto: KtoSection
    """Kahneman-Tversky optimisation on labelled answers."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "kto")
    section = recipe.kto

    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("kto", recipe, run.starting_model("kto", section.model)) as output:
        if output.is_complete:
            return
        trainer, counts = build_stage_trainer(recipe, output)
        headline = (
            "loss {eval_loss:.3f} on {eval_completions:,} held-out answers, "
            "reward {eval_rewards/chosen:.2f} of good ones"
        )
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, headline, measure, licenses=section.licenses, rows=counts)


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[Trainer, dict[str, Any]]":
    """Build the trainer of this stage for the model at `output.start`; also return the counts of rows."""
    from trl import KTOConfig

    from hf_llm.monitoring.attach import attach_callbacks
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.kto_trainer import CompletionKTOTrainer, check_labels
    from hf_llm.posttraining.rows.overlong_rows import fit_rows
    from hf_llm.posttraining.rows.refused_rows import drop_refused_rows
    from hf_llm.posttraining.starting_model import load_chat_tokenizer, max_row_length

    section = recipe.kto
    *rows, counts = load_labelled_completions(
        section.data, section.evaluation_share, recipe.seed, section.allow_drop, output.path.with_name("corpus")
    )
    print_main(format_row_counts(counts))
    tokenizer = load_chat_tokenizer(output.start, output.path.parent)
    rows, counts["refused"] = drop_refused_rows(rows, ("completion",), tokenizer, section.allow_drop)
    limit = max_row_length(section, output.start, "kto")
    rows, too_long = fit_rows(rows, ("completion",), tokenizer, limit, section, "kto")
    counts |= too_long
    check_labels(rows)
    # TRL goes through the rows in their order, and pairs each prompt with its neighbour's completion to estimate
    # the KL: neighbours must not be two completions of one prompt, nor all of one label.
    rows = [part.shuffle(seed=recipe.seed) for part in rows]

    precompute = section.lora is None and not section.training.get("sync_ref_model")
    trainer = build_trainer(
        CompletionKTOTrainer, KTOConfig, section, output, recipe.seed, rows, precompute_ref_log_probs=precompute
    )
    attach_callbacks(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
    return trainer, counts


if __name__ == "__main__":
    main()
