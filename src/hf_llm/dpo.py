"""Teach the chat model which of two answers people prefer (direct preference optimisation); makes runs/<name>/dpo.

    accelerate launch -m hf_llm.dpo recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.dpo recipes/gpt125m.yaml

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290; `training.loss_type` names its variants (docs/alignment.md).
With a `lora` section only adapters are trained, and the reference is the same model with the adapter switched off;
without one, the reference's log-probabilities are computed before training, so that one copy of the weights is enough.
"""

from dataclasses import dataclass, field

from trl import DPOConfig

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import load_preferences
from hf_llm.monitoring.attach import watch
from hf_llm.pipeline.run import read_run
from hf_llm.posttraining.build_trainer import Tuning, chat_tokenizer, longest_row, tuning_trainer
from hf_llm.posttraining.trainers import PairTrainer, fitting
from hf_llm.training.train_and_save import finish

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


@dataclass
class PreferenceTuning(Tuning):
    """The `dpo` section."""

    training: Settings[DPOConfig] = field(default_factory=Settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.training.get("loss_type", ()):  # TRL would say so after all has been prepared
            if name not in LOSSES:
                raise ValueError(f"training.loss_type: {name!r} is unknown; one of {', '.join(LOSSES)}")


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    dpo: PreferenceTuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section, before = recipe.dpo, run.starting_folder("dpo")
    with run.open_stage("dpo", recipe, {before: section.model}) as making:
        if making.is_complete:
            return
        start = making.sources[before]
        *rows, counts = load_preferences(section.data, section.evaluation_share, recipe.seed, section.allow_drop)
        limit = longest_row(section, start, "dpo")
        tokenizer = chat_tokenizer(start, run.root)
        rows, counts["too_long"] = fitting(rows, ("chosen", "rejected"), tokenizer, limit, section)
        precompute = section.lora is None and not section.training.get("sync_ref_model")
        trainer = tuning_trainer(
            PairTrainer, DPOConfig, section, making, recipe.seed, start, rows, precompute_ref_log_probs=precompute
        )
        watch(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
        headline = "{eval_rewards/accuracies:.0%} of held-out pairs ranked right, margin {eval_rewards/margins:.2f}"
        finish(trainer, making, run, headline, licenses=section.licenses, rows=counts)


if __name__ == "__main__":
    main()
