"""TRL's metrics as means over tokens, pairs or completions, where TRL takes the mean of the batches' means."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.training.exact_evaluation import EvaluationSums, ExactEvaluation


class TrlEvaluation(ExactEvaluation):
    """Base class that makes the evaluation of one of TRL's trainers exact; list it before the trainer.

    A subclass says what a batch has (`count_units`), and of what the loss and TRL's metrics are means.
    """

    loss_unit = "tokens"
    """What the loss is a mean over, a key of `count_units`."""
    default_unit = "tokens"
    """What a metric is a mean over, if `unit_of_metric` does not say otherwise."""
    unit_of_metric: ClassVar[Mapping[str, str]] = {}
    """What the other metrics are means over."""

    def count_units(self, inputs: Any) -> dict[str, torch.Tensor | int]:
        """Return how many of each unit a batch has: by default, the `tokens` that have a label and one before them."""
        labels = inputs.get("shift_labels")
        if labels is None:
            labels = inputs["labels"][:, 1:]
        return {"tokens": (labels != IGNORE_INDEX).sum()}

    def measure_batch(self, model: torch.nn.Module, inputs: Any) -> torch.Tensor:
        """Add the loss, TRL's metrics and the counts of a batch to the evaluation's sums."""
        loss = self.compute_loss(model, inputs)
        counts = self.count_units(inputs)
        self.add_to_evaluation("loss", loss, counts[self.loss_unit])
        for unit in self.logged_units:
            self.add_to_evaluation(unit, 1.0, counts[unit])
        for name, value in self.take_metrics("eval").items():
            self.add_to_evaluation(name, value, counts[self.unit_of_metric.get(name, self.default_unit)])
        return loss

    def take_metrics(self, mode: str) -> dict[str, float]:
        """Take what TRL has collected for its next log entry, except for totals; it would log the mean of batches."""
        collected = {name: values for name, values in self._metrics[mode].items() if name != "num_tokens"}
        for name in collected:
            del self._metrics[mode][name]
        return {name: values[-1] for name, values in collected.items()}


class TrlMetrics(TrlEvaluation):
    """Base class that makes the metrics in the log entries of a training exact as well."""

    def __init__(self, *arguments: Any, **keywords: Any):
        self._training_sums = EvaluationSums()  # since the last log entry, in this process
        super().__init__(*arguments, **keywords)

    def compute_loss(self, model: torch.nn.Module, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
        """Compute TRL's loss; in training, keep the metrics of the batch with their counts."""
        loss = super().compute_loss(model, inputs, *arguments, **keywords)
        if self.model.training:
            counts = self.count_units(inputs)
            for name, value in self.take_metrics("train").items():
                self._training_sums.add(name, value, counts[self.unit_of_metric.get(name, self.default_unit)])
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with the means over all processes' units in the entries of a training."""
        if self.model.training:
            logs |= {name: mean for name, (mean, _) in self._training_sums.reduce().items()}
            self._training_sums = EvaluationSums()
        super().log(logs, start_time)
