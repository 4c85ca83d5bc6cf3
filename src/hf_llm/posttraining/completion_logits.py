"""Save TRL's preference trainers work: only completions go through the vocabulary head, on every device."""

from functools import wraps
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_llm.core.labels import IGNORE_INDEX

# What TRL's fused head returns for every position.
POSITION_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def score_completions_only(model: PreTrainedModel | PeftModel) -> None:
    """Let the forward method that TRL gave `model` (`add_fused_lm_head`) score labelled positions only.

    TRL itself does so with Triton (on CUDA). Elsewhere it scores prompts and padding too, which are most of a row, and
    then overwrites them with zeros. The result is the same; benchmarks/preferences.py measures what this saves. A
    second call for the same model does nothing.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    fused = base.forward
    if hasattr(fused, "completions_only"):
        return

    @wraps(fused)
    def forward(
        *arguments: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **keywords: Any
    ) -> Any:
        has_label = None if labels is None else labels[:, 1:] != IGNORE_INDEX  # B T-1

        # TRL's own forward serves where there is nothing to save.
        if not fused_lm_head or has_label is None or has_label.device.type == "cuda" or not has_label.any():
            labels_argument = {} if labels is None else {"labels": labels}
            return fused(*arguments, fused_lm_head=fused_lm_head, **labels_argument, **keywords)

        def select_labelled(module: nn.Module, inputs: tuple, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[:, :-1][has_label][None]  # 1 N D
            return output

        shift_labels = labels[:, 1:][has_label][None]  # 1 N
        hook = base.base_model.register_forward_hook(select_labelled)
        try:
            outputs = fused(*arguments, fused_lm_head=True, shift_labels=shift_labels, **keywords)
        finally:
            hook.remove()

        # Put the values of the N labelled positions back in their places in the batch.
        for name in POSITION_OUTPUTS:
            values = getattr(outputs, name)  # 1 N
            if values is not None:
                scattered = values.new_zeros(has_label.shape).masked_scatter(has_label, values)  # B T-1
                setattr(outputs, name, scattered)
        outputs.label_mask = has_label
        return outputs

    forward.completions_only = True
    base.forward = forward


class CompletionScores:
    """Base class that makes a TRL trainer's model and reference score completions only; list it before the trainer."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._score_completions_only()

    def _precompute_ref_logps(self, *arguments: Any, **keywords: Any) -> Any:  # called while the trainer is built
        self._score_completions_only()
        return super()._precompute_ref_logps(*arguments, **keywords)

    def _score_completions_only(self) -> None:
        for model in (self.model, self.ref_model):
            if model is not None:
                score_completions_only(self.accelerator.unwrap_model(model))
