"""TRL's RewardTrainer, whose evaluation counts every held-out pair once and gives intervals."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardTrainer

from hf_llm.data.chat.messages import load_tools
from hf_llm.evaluation.intervals import bootstrap_interval, wilson_interval
from hf_llm.model.load import load_reward_model
from hf_llm.posttraining.overlong_rows import fit_rows
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.tokenization.chat_encoding import encode_chat


class PairwiseRewardTrainer(RewardTrainer):
    """RewardTrainer that logs accuracy and margin over all held-out pairs, with 95% intervals."""

    _pair_scores: list[torch.Tensor] | None = None  # of this evaluation, one tensor (pairs x 2) for each batch

    def prediction_step(self, model: torch.nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> tuple:
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        scores = outputs.logits.float().view(2, -1).T.contiguous()  # pairs x 2: chosen, rejected
        gathered = self.accelerator.gather_for_metrics(scores).cpu()
        self._pair_scores = [*(self._pair_scores or []), gathered]
        return loss.detach(), None, None

    def take_evaluation_metrics(self) -> dict[str, float]:
        """Forget what was collected for an evaluation's log entry, which is of single pairs."""
        self._pair_scores = None
        self._metrics["eval"].clear()
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._pair_scores:
            statistics = pair_statistics(torch.cat(self._pair_scores))
            self._metrics["eval"] |= {name: [value] for name, value in statistics.items()}
            self._pair_scores = None
        super().log(logs, start_time)


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
