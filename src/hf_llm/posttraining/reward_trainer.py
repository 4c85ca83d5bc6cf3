"""TRL's RewardTrainer, whose evaluation counts every held-out pair once and gives intervals."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardTrainer

from hf_llm.data.chat.messages import load_tools
from hf_llm.evaluation.intervals import bootstrap_interval, wilson_interval
from hf_llm.model.load import load_reward_model
from hf_llm.posttraining.rows.overlong_rows import fit_rows
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.posttraining.trl_metrics import TrlMetrics
from hf_llm.tokenization.chat_encoding import encode_chat


class PairwiseRewardTrainer(TrlMetrics, RewardTrainer):
    """RewardTrainer whose evaluation logs accuracy and margin over all held-out pairs, with 95% intervals."""

    loss_unit = "pairs"
    default_unit = "pairs"
    logged_units = ("pairs",)

    # Of this evaluation: the pairs' scores (chosen, rejected) that this process is to count, each pair once.
    _pair_scores: list[list[float]]

    def evaluation_loop(self, *arguments: Any, **keywords: Any) -> Any:
        self._pair_scores = []
        return super().evaluation_loop(*arguments, **keywords)

    def count_units(self, inputs: dict[str, torch.Tensor]) -> dict[str, int]:
        """Return the `pairs` of a batch; it has a row for each completion."""
        return {"pairs": len(inputs["input_ids"]) // 2}

    def measure_batch(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Add a batch's loss to the evaluation's sums, and keep its scores."""
        loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        self.take_metrics("eval")  # `pair_statistics` has them
        pairs = self.count_units(inputs)["pairs"]
        self.add_to_evaluation("loss", loss, pairs)

        is_counted_elsewhere = self.evaluation_copies > 1 and self.accelerator.process_index > 0
        if not is_counted_elsewhere:
            scores = outputs.logits.double().view(2, -1).T  # pairs x 2
            self._pair_scores += scores.tolist()
        return loss

    def summarize_evaluation(self) -> dict[str, float]:
        # Sorted, since the interval's resamples depend on the order.
        scores = torch.tensor(sorted(gather_object(self._pair_scores)), dtype=torch.float64)
        return super().summarize_evaluation() | pair_statistics(scores)


def pair_statistics(scores: torch.Tensor) -> dict[str, float]:
    """Compute accuracy and margin of scores (pairs x 2: chosen, rejected) with 95% intervals, and the scores' moments.

    The interval of the accuracy is Wilson's, that of the margin is bootstrapped over the pairs.
    """
    margins = scores[:, 0] - scores[:, 1]
    correct = int((margins > 0).sum())
    statistics = {
        "accuracy": correct / len(margins),
        "margin": margins.mean().item(),
        "mean_reward": scores.mean().item(),
        "min_reward": scores.min().item(),
        "max_reward": scores.max().item(),
        "reward_deviation": scores.std().item(),
        "pairs": len(margins),
    }
    statistics["accuracy_low"], statistics["accuracy_high"] = wilson_interval(correct, len(margins))
    interval = bootstrap_interval(len(margins), lambda weights: weights @ margins.double().numpy() / len(margins))
    if interval is not None:
        statistics["margin_low"], statistics["margin_high"] = interval
    return statistics


def encode_pairs(
    rows: list[Dataset], tokenizer: PreTrainedTokenizerBase, context: int, section: PostTrainingSection
) -> tuple[list[Dataset], dict[str, int]]:
    """Encode pairs as `chosen_ids` and `rejected_ids`, of at most `context` tokens, as `section.too_long` says.

    Returns the rows, and the counts `too_long` and `truncated`. Raises UserError where none are left on a side.
    """
    kept, counts = fit_rows(rows, ("chosen", "rejected"), tokenizer, context, section, "reward")

    def encode(row: dict) -> dict[str, list[int]]:
        tools = load_tools(row)
        chosen, _ = encode_chat(tokenizer, row["prompt"] + row["chosen"], tools)
        rejected, _ = encode_chat(tokenizer, row["prompt"] + row["rejected"], tools)
        return {"chosen_ids": chosen[:context], "rejected_ids": rejected[:context]}

    return [part.map(encode, remove_columns=part.column_names) for part in kept], counts


def load_padded_scorer(start: Path | str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the model at `start` with one score per sequence; its config names the padding token."""
    model = load_reward_model(start)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model
