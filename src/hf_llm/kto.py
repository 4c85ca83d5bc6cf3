"""Teach the chat model from answers that are each called good or bad, without pairs; makes runs/<name>/kto.

    accelerate launch -m hf_llm.kto recipes/gpt125m.yaml

Kahneman-Tversky optimisation, Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306. Rows hold `prompt`,
`completion` and `label`; pairs of preferences become two rows. With a `lora` section only adapters are trained, and the
reference is the model with the adapter switched off; without one, its log-probabilities are computed before training.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from trl import KTOConfig

from hf_llm.core.errors import UserError, command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import load_labelled
from hf_llm.monitoring.attach import watch
from hf_llm.pipeline.run import read_run
from hf_llm.posttraining.build_trainer import Tuning, chat_tokenizer, longest_row, tuning_trainer
from hf_llm.posttraining.trainers import LabelTrainer, fitting
from hf_llm.training.train_and_save import finish


@dataclass
class LabelTuning(Tuning):
    """The `kto` section."""

    training: Settings[KTOConfig] = field(default_factory=Settings)


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    kto: LabelTuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


def check_labels(rows: list[Dataset]) -> None:
    """Raise UserError where all answers of a side are good, or all are bad: there is nothing to tell apart."""
    for part, name in zip(rows, ("to learn from", "held out"), strict=True):
        if len(labels := set(part["label"])) < 2:
            kind, other = ("good", "bad") if labels == {True} else ("bad", "good")
            raise UserError(f"kto: all {len(part):,} answers {name} are {kind}; add rows, some of them {other} answers")


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section, before = recipe.kto, run.starting_folder("kto")
    with run.open_stage("kto", recipe, {before: section.model}) as making:
        if making.is_complete:
            return
        start = making.sources[before]
        *rows, counts = load_labelled(section.data, section.evaluation_share, recipe.seed, section.allow_drop)
        limit = longest_row(section, start, "kto")
        rows, counts["too_long"] = fitting(rows, ("completion",), chat_tokenizer(start, run.root), limit, section)
        check_labels(rows)
        # TRL goes through the rows in their order, and pairs each prompt with its neighbour's answer to estimate the
        # KL: neighbours must not be two answers to one prompt, nor all of a kind.
        rows = [part.shuffle(seed=recipe.seed) for part in rows]
        precompute = section.lora is None and not section.training.get("sync_ref_model")
        trainer = tuning_trainer(
            LabelTrainer, KTOConfig, section, making, recipe.seed, start, rows, precompute_ref_log_probs=precompute
        )
        watch(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
        headline = "loss {eval_loss:.3f} on held-out answers, {eval_rewards/chosen:.2f} for good ones"
        finish(trainer, making, run, headline, licenses=section.licenses, rows=counts)


if __name__ == "__main__":
    main()
