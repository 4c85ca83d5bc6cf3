"""Teach a copy of the model to score answers as people prefer them (Bradley-Terry); makes runs/<name>/reward.

    accelerate launch -m hf_llm.reward recipes/gpt125m.yaml

The score of a conversation is read off its last token; the loss is -log sigmoid(score of the chosen answer - score of
the rejected one) (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5). The folder opens with
`AutoModelForSequenceClassification`. With a `lora` section only adapters and the score are trained.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig, RewardTrainer

from hf_llm.core.errors import UserError, command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import load_preferences
from hf_llm.human_eval.preference_statistics import bootstrap, wilson
from hf_llm.model.load import load_reward_model, load_tokenizer
from hf_llm.monitoring.attach import watch
from hf_llm.pipeline.run import read_run
from hf_llm.posttraining.build_trainer import Tuning, longest_row, tuning_trainer
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.training.train_and_save import finish


@dataclass
class RewardTuning(Tuning):
    """The `reward` section."""

    training: Settings[RewardConfig] = field(default_factory=Settings)


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    reward: RewardTuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


class PairTrainer(RewardTrainer):
    """TRL's trainer, whose evaluation counts every held-out pair once and says how sure the numbers are."""

    _pairs: list[torch.Tensor] | None = None  # scores of chosen and rejected, a batch each, of the evaluation under way

    def prediction_step(self, model: torch.nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> tuple:
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        pairs = outputs.logits.float().view(2, -1).T.contiguous()  # pairs, 2
        self._pairs = [*(self._pairs or []), self.accelerator.gather_for_metrics(pairs).cpu()]
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._pairs:
            measured = pair_statistics(torch.cat(self._pairs))
            self._metrics["eval"] |= {name: [value] for name, value in measured.items()}
            self._pairs = None
        super().log(logs, start_time)


def pair_statistics(scores: torch.Tensor) -> dict[str, float]:
    """Accuracy and margin of the scores (pairs; chosen, rejected) with 95% intervals, mean and deviation of all scores.

    The interval of the accuracy is Wilson's, that of the margin is bootstrapped over the pairs.
    """
    margins = scores[:, 0] - scores[:, 1]
    right = int((margins > 0).sum())
    measured = {
        "accuracy": right / len(margins),
        "margin": margins.mean().item(),
        "mean_reward": scores.mean().item(),
        "reward_deviation": scores.std().item(),
        "pairs": len(margins),
    }
    measured["accuracy_low"], measured["accuracy_high"] = wilson(right, len(margins))
    interval = bootstrap(len(margins), lambda weights: weights @ margins.double().numpy() / len(margins))
    if interval is not None:
        measured["margin_low"], measured["margin_high"] = interval
    return measured


def encoded(
    rows: list[Dataset], tokenizer: PreTrainedTokenizerBase, context: int, allow_drop: float
) -> tuple[list[Dataset], int]:
    """`chosen_ids` and `rejected_ids` of the pairs that fit into `context` tokens, and how many do not.

    Raises UserError where none are left, or more than the share `allow_drop` do not fit.
    """

    def encode(row: dict) -> dict[str, list[int]]:
        return {f"{name}_ids": encode_chat(tokenizer, row["prompt"] + row[name])[0] for name in ("chosen", "rejected")}

    def fits(row: dict) -> bool:
        return max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= context

    every = [part.map(encode, remove_columns=part.column_names) for part in rows]
    kept = [part.filter(fits) for part in every]
    total, too_long = sum(map(len, every)), sum(map(len, every)) - sum(map(len, kept))
    if too_long > allow_drop * total or not all(map(len, kept)):
        raise UserError(
            f"reward: {too_long:,} of {total:,} pairs are longer than {context} tokens; take a longer context, "
            f"or write `allow_drop: {math.ceil(100 * too_long / total) / 100}` to go on without those pairs"
        )
    return kept, too_long


def load_scorer(start: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model at `start` with one score, which knows what padding is."""
    model = load_reward_model(start)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section, before = recipe.reward, run.starting_folder("reward")
    with run.open_stage("reward", recipe, {before: section.model}) as making:
        if making.is_complete:
            return
        start = making.sources[before]
        *rows, counts = load_preferences(section.data, section.evaluation_share, recipe.seed, section.allow_drop)
        context = longest_row(section, start, "reward")
        rows, counts["too_long"] = encoded(rows, load_tokenizer(start), context, section.allow_drop)
        set_seed(recipe.seed)  # of the new score's weights
        trainer = tuning_trainer(
            PairTrainer, RewardConfig, section, making, recipe.seed, start, rows, load_scorer, "SEQ_CLS"
        )
        watch(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
        headline = (
            "{eval_accuracy:.0%} of {eval_pairs:.0f} held-out pairs ranked right "
            "(95% interval {eval_accuracy_low:.0%} to {eval_accuracy_high:.0%}), margin {eval_margin:.2f}"
        )
        finish(trainer, making, run, headline, licenses=section.licenses, rows=counts)


if __name__ == "__main__":
    main()
