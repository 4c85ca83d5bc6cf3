"""TRL's trainers of preferences, but only the answers go through the vocabulary head, on every device."""

from functools import wraps
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

IGNORED = -100  # the label of a token that is not scored, as PyTorch's cross-entropy has it


def score_answers_only(model: PreTrainedModel | PeftModel) -> None:
    """Let the forward that TRL gave `model` (`add_fused_lm_head`) score labelled positions alone; once is enough.

    TRL does so where Triton is (on CUDA); elsewhere it scores prompts and padding too, which are most of a row, and
    then writes zeros over them. What comes out is the same. benchmarks/preferences.py measures what this saves.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    fused = base.forward
    if hasattr(fused, "answers_only"):
        return

    @wraps(fused)
    def forward(*arguments: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **others: Any) -> Any:
        learnt = None if labels is None else labels[:, 1:] != IGNORED  # B T-1
        if not fused_lm_head or learnt is None or learnt.device.type == "cuda" or not learnt.any():
            given = {} if labels is None else {"labels": labels}
            return fused(*arguments, fused_lm_head=fused_lm_head, **given, **others)

        def select(module: nn.Module, inputs: tuple, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[:, :-1][learnt][None]  # 1 N D
            return output

        hook = base.base_model.register_forward_hook(select)
        try:
            found = fused(*arguments, fused_lm_head=True, shift_labels=labels[:, 1:][learnt][None], **others)
        finally:
            hook.remove()
        for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
            values = getattr(found, name)  # 1 N
            if values is not None:
                setattr(found, name, values.new_zeros(learnt.shape).masked_scatter(learnt, values))
        found.label_mask = learnt
        return found

    forward.answers_only = True
    base.forward = forward


class AnswerScores:
    """Stands before a trainer class of TRL's, and has its model and its reference score the answers only."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._narrow()

    def _precompute_ref_logps(self, *arguments: Any, **keywords: Any) -> Any:  # while the trainer is being made
        self._narrow()
        return super()._precompute_ref_logps(*arguments, **keywords)

    def _narrow(self) -> None:
        for model in (self.model, self.ref_model):
            if model is not None:
                score_answers_only(self.accelerator.unwrap_model(model))
