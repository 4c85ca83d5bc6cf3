"""Check before the first update that the model equals its reference, and after the last that it has changed.

Both measure one batch of held-out rows, or the last evaluation, and leave the training's random numbers as they are.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError
from hf_llm.posttraining.gain_check import describe_no_gain
from hf_llm.training.train_and_save import ROWS_FOLDER

# The largest difference between a model and its reference before the first update: log-probabilities of whole
# completions relative to their size, and KL per token in nats. Half precision rounds.
LOG_PROB_TOLERANCE = 1e-3
KL_TOLERANCE = 1e-4
HALF_PRECISION_LOG_PROB_TOLERANCE = 5e-2
HALF_PRECISION_KL_TOLERANCE = 2e-2

# A stage that changes less than this has changed nothing measurable: the loss, or the log-probability of held-out
# completions, by a share of it; or the KL to the reference in nats per token.
MIN_LOSS_CHANGE = 1e-3
MIN_LOG_PROB_CHANGE = 1e-3
MIN_KL = 1e-5

START_FILE = "start.json"  # keeps the loss before the first update for a training that is resumed


class StartCheck(TrainerCallback):
    """Stop a training whose reference is another model than the one it starts from; elsewhere note the loss at the
    start.

    `stage` is the recipe's section; `has_reference` says whether the stage compares the model with a reference.
    """

    def __init__(self, trainer: Trainer, stage: str, has_reference: bool):
        self.trainer = trainer
        self.stage = stage
        self.has_reference = has_reference
        self.loss_file = Path(trainer.args.output_dir) / ROWS_FOLDER / START_FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        if state.global_step > 0:
            return
        metrics = measure_first_batch(self.trainer)
        if self.has_reference:
            check_reference(metrics, self.stage, getattr(args, "beta", 1.0), args.bf16 or args.fp16)
        elif is_main_process():
            self.loss_file.parent.mkdir(parents=True, exist_ok=True)
            self.loss_file.write_text(json.dumps({"loss": metrics["loss"]}), encoding="utf-8")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        if self.has_reference or state.global_step == 0:
            return
        loss = measure_first_batch(self.trainer)["loss"]
        if is_main_process() and self.loss_file.exists():
            start = json.loads(self.loss_file.read_text(encoding="utf-8"))["loss"]
            self.trainer.loss_change = abs(loss - start) / max(abs(start), 1e-12)


def measure_first_batch(trainer: Trainer) -> dict[str, float]:
    """Evaluate the model on the first batch of held-out rows; return the means by name, the `loss` among them.

    Nothing is logged, and the training draws the random numbers that it would have drawn.
    """
    device = trainer.args.device
    all_rows = trainer.eval_dataset
    count = min(len(all_rows), trainer.args.eval_batch_size * trainer.args.world_size)
    was_training = trainer.model.training
    trainer.eval_dataset = all_rows.select(range(count))
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            loader = trainer.get_eval_dataloader()
            output = trainer.evaluation_loop(loader, "Check", prediction_loss_only=True)
    finally:
        trainer.eval_dataset = all_rows
        trainer.model.train(was_training)
    trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, output.metrics)  # ends its bar

    means = {name.removeprefix("eval_"): value for name, value in output.metrics.items()}
    return means | take_collected_metrics(trainer)


def take_collected_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the means that a trainer has collected for its next evaluation's log entry, and forget them."""
    collected = getattr(trainer, "_metrics", {}).get("eval", {})
    means = {name: sum(values) / len(values) for name, values in collected.items() if values}
    collected.clear()
    return means


def check_reference(metrics: dict[str, float], stage: str, beta: float, half_precision: bool) -> None:
    """Raise UserError unless a model that has not been trained yet equals its reference.

    `metrics` are those of a batch: rewards (`beta` times the log-ratio to the reference) and log-probabilities (DPO,
    KTO), or the KL to the reference.
    """
    log_prob_tolerance = HALF_PRECISION_LOG_PROB_TOLERANCE if half_precision else LOG_PROB_TOLERANCE
    kl_tolerance = HALF_PRECISION_KL_TOLERANCE if half_precision else KL_TOLERANCE

    gaps = []
    for name in ("chosen", "rejected"):
        if f"rewards/{name}" in metrics:
            limit = log_prob_tolerance * max(1.0, abs(metrics[f"logps/{name}"]))
            log_ratio = metrics[f"rewards/{name}"] / (beta or 1.0)
            gaps.append((f"log-ratio of {name} answers to the reference", log_ratio, limit))
    if not gaps and "kl" in metrics:
        gaps.append(("KL per token to the reference", metrics["kl"], kl_tolerance))
    if not gaps and "kl_per_completion" in metrics:
        limit = kl_tolerance * max(1.0, metrics["length"])
        gaps.append(("KL per completion to the reference", metrics["kl_per_completion"], limit))

    for name, value, limit in gaps:
        if not abs(value) <= limit:  # NaN is not
            raise UserError(
                f"{stage}: before the first update the {name} is {value:.4g} nats where it must be 0: the reference is "
                "not the model that the stage starts from. Leave unusual keys of the lora section out "
                "(init_lora_weights, bias), or train without lora"
            )


def describe_no_change(trainer: Trainer, metrics: dict[str, Any]) -> str | None:
    """Return a warning where the training has changed nothing measurable; None where it has, or it is not known.

    `metrics` are those of the last evaluation.
    """
    change = None
    if "eval_rewards/margins" in metrics:
        beta = trainer.args.beta or 1.0
        shares = []
        for name in ("chosen", "rejected"):
            log_prob = metrics.get(f"eval_logps/{name}")
            if log_prob:
                shares.append(abs(metrics[f"eval_rewards/{name}"] / beta / log_prob))
        if shares and max(shares) < MIN_LOG_PROB_CHANGE:
            change = f"the log-probability of held-out answers by at most {max(shares):.2%}"
    elif "eval_kl" in metrics or "eval_kl_per_completion" in metrics:
        kl = metrics.get("eval_kl")
        if kl is None:
            kl = metrics["eval_kl_per_completion"] / max(metrics.get("eval_length", 1.0), 1.0)
        if abs(kl) < MIN_KL:
            change = f"the model by {kl:.1g} nats per token"
    elif getattr(trainer, "loss_change", None) is not None and trainer.loss_change < MIN_LOSS_CHANGE:
        change = f"the loss of held-out rows by {trainer.loss_change:.2%}"
    if change is None:
        return None
    return (
        f"this training changed {change}, which is nothing measurable: {trainer.state.global_step} steps at a learning "
        f"rate of {trainer.args.learning_rate:g} are too few, or the rate is too low; raise training.learning_rate "
        "(docs/alignment.md lists usual ones) or train longer"
    )


def warn_of_no_effect(trainer: Trainer, metrics: dict[str, Any]) -> dict[str, Any]:
    """Print a warning where the training has changed nothing measurable, its rewards were all the same, or the model is
    no better on held-out rows than before.

    Returns the warnings for the manifest; this is a `measure` of `train_and_save`.
    """
    warnings = {}
    reward_warning = getattr(trainer, "reward_warning", None)  # was printed when training ended
    if reward_warning:
        warnings["reward_warning"] = reward_warning
    change_warning = describe_no_change(trainer, metrics)
    if change_warning:
        warnings["change_warning"] = change_warning
        print_main(f"\n*** WARNING: {change_warning}\n")
    gain_warning = describe_no_gain(trainer, metrics)
    if gain_warning and not warnings:  # the others say why
        warnings["gain_warning"] = gain_warning
        print_main(f"\n*** WARNING: {gain_warning}\n")
    return warnings
