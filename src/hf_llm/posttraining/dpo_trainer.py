"""TRL's DPOTrainer, which scores only the completions, logs their lengths, and evaluates over pairs."""

from typing import Any, ClassVar

import torch
from trl import DPOTrainer

from hf_llm.posttraining.completion_logits import CompletionScores
from hf_llm.posttraining.trl_metrics import TrlMetrics

# Losses whose value for several pairs is not the mean of their values for one.
LOSSES_OVER_BATCHES = {"sft", "aot", "aot_unpaired"}


class LoggedDPOTrainer(TrlMetrics, CompletionScores, DPOTrainer):
    """DPOTrainer that also logs how many tokens the chosen and the rejected completions have.

    Where the chosen ones are much longer, the model is trained on length. An evaluation's loss, accuracy and margins
    are means over all `eval_pairs` pairs; entropies, logits and token accuracies are means over completion tokens.
    """

    loss_unit = "pairs"
    default_unit = "pairs"
    logged_units = ("pairs",)
    unit_of_metric: ClassVar = {
        "entropy": "tokens",
        "logits/chosen": "chosen_tokens",
        "logits/rejected": "rejected_tokens",
        "mean_token_accuracy": "chosen_tokens",
    }

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        metrics = self._metrics["train" if self.model.training else "eval"]
        lengths = inputs["completion_mask"].sum(dim=1).float()  # 2 x pairs, the chosen completions first
        for name, length in zip(("chosen", "rejected"), lengths.chunk(2), strict=True):
            mean = self.accelerator.gather_for_metrics(length).mean().item()
            metrics[f"lengths/{name}"].append(mean)
        return super()._compute_loss(model, inputs, return_outputs)

    def count_units(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | int]:
        """Return the `pairs` of a batch, and the `tokens` of their completions that the model predicts."""
        chosen, rejected = inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2)
        return {
            "pairs": len(chosen),
            "tokens": chosen.sum() + rejected.sum(),
            "chosen_tokens": chosen.sum(),
            "rejected_tokens": rejected.sum(),
        }

    def measure_batch(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Add what a batch measures to the evaluation's sums; pair by pair where a loss belongs to a whole batch."""
        if LOSSES_OVER_BATCHES.isdisjoint(self.loss_types):
            return super().measure_batch(model, inputs)
        pairs = self.count_units(inputs)["pairs"]
        losses = [super(LoggedDPOTrainer, self).measure_batch(model, take_pair(inputs, i, pairs)) for i in range(pairs)]
        return torch.stack(losses).mean()


def take_pair(inputs: dict[str, torch.Tensor], number: int, pairs: int) -> dict[str, torch.Tensor]:
    """Return a batch of pair `number` alone, of a batch of `pairs`.

    A tensor has a row for each completion, the chosen ones first, or a value for each pair.
    """
    pair = {}
    for name, values in inputs.items():
        rows = [number] if len(values) == pairs and values.dim() == 1 else [number, pairs + number]
        pair[name] = values[rows]
    return pair
