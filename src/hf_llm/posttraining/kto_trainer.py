"""TRL's KTOTrainer, which scores only the completions and evaluates over all of them; and a check of their labels."""

import copy
import math
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from hf_llm.core.errors import UserError
from hf_llm.posttraining.completion_logits import CompletionScores
from hf_llm.posttraining.trl_metrics import TrlMetrics


class CompletionKTOTrainer(TrlMetrics, CompletionScores, KTOTrainer):
    """KTOTrainer with the same losses, without prompts and padding in the vocabulary head.

    KTO's loss compares each completion with a KL that TRL estimates from its batch. An evaluation estimates it once,
    from all `eval_completions` held-out completions.
    """

    loss_unit = "completions"
    default_unit = "completions"
    logged_units = ("completions",)
    unit_of_metric: ClassVar = {
        "entropy": "tokens",
        "logits/chosen": "chosen_tokens",
        "logits/rejected": "rejected_tokens",
        "rewards/chosen": "chosen",
        "rewards/rejected": "rejected",
        "logps/chosen": "chosen",
        "logps/rejected": "rejected",
    }

    # Of this process's completions in this evaluation, a row each: whether it is good, by how much more likely it is
    # than to the reference, its part of the KL, and the share of it that counts (less where other processes have it).
    _completion_rows: list[list[float]]

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: KTOConfig, dataset_name: str) -> Dataset:
        """Let TRL pair prompts with other completions, for the KL: held-out ones among all of them.

        TRL pairs them within batches of the training, so that an evaluation would depend on their size.
        """
        if dataset_name != "train":
            args = copy.copy(args)
            args.per_device_train_batch_size = max(1, len(dataset))
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def take_metrics(self, mode: str) -> dict[str, float]:
        """Take TRL's metrics; its `kl` is summed over a completion, and gets a name that says so."""
        metrics = super().take_metrics(mode)
        if "kl" in metrics:
            metrics["kl_per_completion"] = metrics.pop("kl")
        return metrics

    def evaluation_loop(self, *arguments: Any, **keywords: Any) -> Any:
        self._completion_rows = []
        return super().evaluation_loop(*arguments, **keywords)

    def count_units(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | int]:
        """Return the `completions` of a batch, and their tokens, of good (chosen) and of bad ones (rejected)."""
        is_good = torch.as_tensor(inputs["label"], dtype=torch.bool)
        tokens = inputs["completion_mask"][:, 1:].sum(dim=1).to(is_good.device)
        return {
            "completions": len(is_good),
            "tokens": tokens.sum(),
            "chosen": is_good.sum(),
            "rejected": (~is_good).sum(),
            "chosen_tokens": tokens[is_good].sum(),
            "rejected_tokens": tokens[~is_good].sum(),
        }

    def measure_batch(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Add what a batch measures to the evaluation's sums, and keep what the loss is made of."""
        recorder = LogProbRecorder(model)
        inputs = dict(inputs)
        precomputed = self.precompute_ref_logps
        if not precomputed:
            reference = self.model if self.ref_model is None else self.ref_model
            inputs["ref_logps"], inputs["ref_KL_logps"] = self.compute_ref_log_probs(reference, inputs)
        self.precompute_ref_logps = True
        try:
            loss = super().measure_batch(recorder, inputs)
        finally:
            self.precompute_ref_logps = precomputed

        log_ratios = recorder.log_probs[-1] - inputs["ref_logps"]
        kl = torch.zeros_like(log_ratios)
        if self.calculate_KL:  # TRL scores the completions for the KL first
            kl = recorder.log_probs[0] - inputs["ref_KL_logps"]
        share = 1 / self.evaluation_copies
        is_good = torch.as_tensor(inputs["label"], device=kl.device)
        columns = [is_good.float(), log_ratios, kl, torch.full_like(kl, share)]
        self._completion_rows += torch.stack([column.double().cpu() for column in columns], dim=1).tolist()
        return loss

    def summarize_evaluation(self) -> dict[str, float]:
        summary = super().summarize_evaluation()
        rows = torch.tensor(gather_object(self._completion_rows), dtype=torch.float64)  # completions, 4
        is_good, log_ratios, kl_parts, shares = rows.unbind(dim=1)
        kl = (kl_parts @ shares / shares.sum()).clamp(min=0)

        advantage = log_ratios if self.loss_type != "kto" else log_ratios - kl
        losses = torch.where(
            is_good.bool(),
            self.desirable_weight * (1 - torch.sigmoid(self.beta * advantage)),
            self.undesirable_weight * (1 - torch.sigmoid(-self.beta * advantage)),
        )
        summary["loss"] = (losses @ shares / shares.sum()).item()
        summary["kl_per_completion"] = kl.item()
        if {"rewards/chosen", "rewards/rejected"} <= summary.keys():
            summary["rewards/margins"] = summary["rewards/chosen"] - summary["rewards/rejected"]
            errors = [standard_error(log_ratios[label], shares[label]) for label in (is_good.bool(), ~is_good.bool())]
            if all(map(math.isfinite, errors)):
                summary["rewards/margins_error"] = self.beta * math.hypot(*errors)
        return summary


def standard_error(values: torch.Tensor, shares: torch.Tensor) -> float:
    """Return the standard error of the mean of `values` (n,), which count by their `shares`; infinite for one value."""
    count = shares.sum().item()
    if count <= 1:
        return math.inf
    mean = values @ shares / count
    variance = ((values - mean) ** 2 @ shares / (count - 1)).item()
    return math.sqrt(variance / count)


class LogProbRecorder:
    """Call a model as TRL does, and keep the log-probabilities of the completions in each call."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.log_probs: list[torch.Tensor] = []  # (completions,) each

    def __call__(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        width = inputs["input_ids"].shape[1] - 1
        self.log_probs.append(outputs.log_probs[:, -width:].sum(-1))
        return outputs


def check_labels(rows: list[Dataset]) -> None:
    """Raise UserError where all completions of a side (training, evaluation) are good, or all are bad."""
    names = ("to train on", "held out")
    for part, name in zip(rows, names, strict=True):
        labels = set(part["label"])
        if len(labels) > 1:
            continue

        kind, other = ("good", "bad") if labels == {True} else ("bad", "good")
        problem = f"kto: all {len(part):,} answers {name} are {kind}"
        others = sum(label is not (True in labels) for each in rows for label in each["label"])
        if not others:
            raise UserError(f"{problem}; add rows, some of them {other} answers")

        (other_side,) = set(names) - {name}
        raise UserError(
            f"{problem}, since the {others:,} {other} ones answer questions that are {other_side}; add {other} answers "
            "to other questions (all answers to a question are on one side)"
        )
