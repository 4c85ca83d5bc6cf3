"""TRL's SFTTrainer, with only the supervised positions going through the vocabulary head, on every device."""

from typing import Any

import torch
from torch import nn
from trl import SFTTrainer

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.posttraining.trl_metrics import TrlMetrics


class SupervisedSFTTrainer(TrlMetrics, SFTTrainer):
    """SFTTrainer with the same loss and metrics, computed at the supervised positions alone.

    An evaluation's loss, accuracy and entropy are means over all `eval_tokens` supervised tokens.

    TRL itself does so with Triton (on CUDA). Elsewhere it scores every position, questions and padding included, which
    are most of a row. benchmarks/tuning.py measures what this saves.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        labels = inputs["labels"][:, 1:]  # B T-1, the token that each position predicts
        is_supervised = labels != IGNORE_INDEX
        needs_logits = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        if labels.device.type == "cuda" or needs_logits or not is_supervised.any():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def select_supervised(module: nn.Module, arguments: tuple, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[:, :-1][is_supervised][None]  # 1 N D
            return output

        inputs = {**inputs, "labels": None, "shift_labels": labels[is_supervised][None]}  # 1 N
        decoder = self.accelerator.unwrap_model(self.model).get_decoder()
        hook = decoder.register_forward_hook(select_supervised)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            hook.remove()
