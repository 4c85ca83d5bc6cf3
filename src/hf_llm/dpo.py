"""Train the chat model on which of two answers people prefer (direct preference optimisation); makes runs/<name>/dpo.

    accelerate launch -m hf_llm.dpo recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.dpo recipes/gpt125m.yaml

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290; `training.loss_type` names its variants (docs/alignment.md).
With a `lora` section only adapters are trained, and the reference is the same model with the adapter switched off;
without one, the reference's log-probabilities are computed before training, so that one copy of the weights is enough.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.core.similar_names import suggest_names
from hf_llm.data.chat.loaders import format_row_counts, load_preferences
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.preflight.before_work import check_before_work

if TYPE_CHECKING:
    import trl
    from transformers import Trainer


LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


@dataclass
class DpoSection(PostTrainingSection):
    """The `dpo` section."""

    training: Settings["trl.DPOConfig"] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""

    @property
    def has_reference(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.training.get("loss_type", ()):  # TRL would say so after everything has been prepared
            if name not in LOSSES:
                hint = suggest_names(name, LOSSES, f"one of {', '.join(LOSSES)}")
                raise ValueError(f"training.loss_type: {name!r} is unknown; {hint}")


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    dpo: DpoSection
    """Direct preference optimisation."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "dpo")
    section = recipe.dpo

    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("dpo", recipe, run.starting_model("dpo", section.model)) as output:
        if output.is_complete:
            return
        trainer, counts = build_stage_trainer(recipe, output)
        headline = (
            "preference accuracy {eval_rewards/accuracies:.0%} on held-out pairs, margin {eval_rewards/margins:.2f}"
        )
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, headline, measure, licenses=section.licenses, rows=counts)


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[Trainer, dict[str, Any]]":
    """Build the trainer of this stage for the model at `output.start`; also return the counts of rows."""
    from trl import DPOConfig

    from hf_llm.monitoring.attach import attach_callbacks
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.dpo_trainer import LoggedDPOTrainer
    from hf_llm.posttraining.rows.overlong_rows import fit_rows
    from hf_llm.posttraining.rows.refused_rows import drop_refused_rows
    from hf_llm.posttraining.starting_model import load_chat_tokenizer, max_row_length

    section = recipe.dpo
    *rows, counts = load_preferences(
        section.data, section.evaluation_share, recipe.seed, section.allow_drop, output.path.with_name("corpus")
    )
    print_main(format_row_counts(counts))
    tokenizer = load_chat_tokenizer(output.start, output.path.parent)
    rows, counts["refused"] = drop_refused_rows(rows, ("chosen", "rejected"), tokenizer, section.allow_drop)
    limit = max_row_length(section, output.start, "dpo")
    rows, too_long = fit_rows(rows, ("chosen", "rejected"), tokenizer, limit, section, "dpo")
    counts |= too_long

    precompute = section.lora is None and not section.training.get("sync_ref_model")
    trainer = build_trainer(
        LoggedDPOTrainer, DPOConfig, section, output, recipe.seed, rows, precompute_ref_log_probs=precompute
    )
    attach_callbacks(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
    return trainer, counts


if __name__ == "__main__":
    main()
