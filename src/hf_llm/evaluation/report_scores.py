"""Log the scores of an evaluation to TensorBoard and Weights & Biases, as `evaluate.report_to` asks for."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from hf_llm.core.console import print_main
from hf_llm.evaluation.benchmark_scores import list_benchmark_scores, list_group_scores

Tracker = Literal["tensorboard", "wandb"]

LOGS = "logs"  # in the evaluation's folder, not in its digest
DEFAULT_PROJECT = "huggingface"  # as Trainer's, where WANDB_PROJECT does not say otherwise


def flatten_scores(models: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores of results.json by one name each: `dpo/bits_per_byte`, `dpo/hellaswag/acc_norm`.

    The ends of an interval are `dpo/hellaswag/acc_norm_low` and `dpo/hellaswag/acc_norm_high`.
    """
    flat: dict[str, float] = {}
    for model, scores in models.items():
        for key, value in _flatten_model(scores).items():
            flat[f"{model}/{key}"] = value
    return flat


def _flatten_model(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of one model by name."""
    flat: dict[str, float] = {}
    for key, value in scores.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            flat[key] = value
    for domain, values in scores.get("domains", {}).items():
        flat[f"domains/{domain}/bits_per_byte"] = values["bits_per_byte"]
    for row in [*list_group_scores(scores), *list_benchmark_scores(scores)]:
        key = f"{row.benchmark}/{row.score.metric}"
        flat[key] = row.score.value
        if row.score.low is not None and row.score.high is not None:
            flat[f"{key}_low"] = row.score.low
            flat[f"{key}_high"] = row.score.high
    aggregate = scores.get("aggregate")
    if aggregate:
        flat[aggregate["name"]] = aggregate["value"]
    return flat


def report_scores(
    trackers: Iterable[Tracker], name: str, folder: Path, models: Mapping[str, Mapping[str, Any]]
) -> None:
    """Log the scores of the evaluation of the run `name` in `folder`. A tracker that fails is named, and costs nothing
    else."""
    flat = flatten_scores(models)
    for tracker in trackers:
        try:
            if tracker == "tensorboard":
                _report_to_tensorboard(folder / LOGS, flat)
            else:
                _report_to_wandb(name, folder, flat)
        except Exception as error:  # a network, an account, a disk: the scores are in results.json already
            print_main(f"evaluate.report_to: {tracker} has not taken the scores: {type(error).__name__}: {error}")


def _report_to_tensorboard(folder: Path, scores: Mapping[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for key, value in scores.items():
            writer.add_scalar(key, value, global_step=0)


def _report_to_wandb(name: str, folder: Path, scores: Mapping[str, float]) -> None:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
        name=f"{name}/evaluation",
        job_type="evaluation",
        dir=os.environ.get("WANDB_DIR", str(folder / LOGS)),
    )
    run.log(dict(scores))
    run.finish()
