"""TRL's DPOTrainer, which scores only the completions and logs their lengths."""

from typing import Any

import torch
from trl import DPOTrainer

from hf_llm.posttraining.completion_logits import CompletionScores


class LoggedDPOTrainer(CompletionScores, DPOTrainer):
    """DPOTrainer that also logs how many tokens the chosen and the rejected completions have.

    Where the chosen ones are much longer, the model is trained on length.
    """

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        metrics = self._metrics["train" if self.model.training else "eval"]
        lengths = inputs["completion_mask"].sum(dim=1).float()  # 2 x pairs, the chosen completions first
        for name, length in zip(("chosen", "rejected"), lengths.chunk(2), strict=True):
            mean = self.accelerator.gather_for_metrics(length).mean().item()
            metrics[f"lengths/{name}"].append(mean)
        return super()._compute_loss(model, inputs, return_outputs)
