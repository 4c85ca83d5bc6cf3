"""TRL's KTOTrainer, which scores only the completions; and a check of the labels it is given."""

from datasets import Dataset
from trl import KTOTrainer

from hf_llm.core.errors import UserError
from hf_llm.posttraining.completion_logits import CompletionScores


class CompletionKTOTrainer(CompletionScores, KTOTrainer):
    """KTOTrainer with the same losses, without prompts and padding in the vocabulary head.

    Its `kl` is summed over a completion, and logged under a name that says so.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        if "kl" in metrics:
            metrics["kl_per_completion"] = metrics.pop("kl")
        super().log(logs, start_time)


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
