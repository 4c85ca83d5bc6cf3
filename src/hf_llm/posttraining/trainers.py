"""What the stages that align a chat model share: rows that fit its context, and what their trainers lack of TRL's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import load_prompts
from hf_llm.monitoring.attach import watch
from hf_llm.pipeline.run import Run, StageOutput
from hf_llm.posttraining.build_trainer import Tuning, chat_tokenizer, context_length, tuning_trainer
from hf_llm.posttraining.completion_logits import AnswerScores
from hf_llm.posttraining.reward_functions import reward_functions
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.training.train_and_save import finish


@dataclass
class AnswerTuning(Tuning):
    """What sections have in common whose stages let the model answer and learn from what is said of the answers."""

    reward_model: str | None = field(
        default=None,
        metadata={"help": "a reward model's folder or Hub id; left out: the run's own, where no function is named"},
    )
    reward_functions: list[str] = field(
        default_factory=list, metadata={"help": "module:function, called as TRL calls reward functions"}
    )

    def judge(self, run: Run) -> Path | str | None:
        """The reward model to ask: the one named, or that of the run where nothing is named; None for none."""
        if self.reward_model or self.reward_functions or not run.is_requested("reward"):
            return run.resolve_source(self.reward_model)
        return run.ensure_stage("reward")


def fitting(
    rows: list[Dataset],
    answers: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    section: Tuning,
) -> tuple[list[Dataset], int]:
    """The rows of which the prompt with each of the `answers` (columns) has at most `limit` tokens, and how many had
    more. Without `answers`, those whose prompt has.

    An answer that is cut off would teach never to end. Raises UserError where none are left on a side, or more than
    the share `section.allow_drop` do not fit.
    """

    def fits(row: dict[str, Any]) -> bool:
        if not answers:
            return len(encode_chat(tokenizer, row["prompt"], add_generation_prompt=True)[0]) <= limit
        return all(len(encode_chat(tokenizer, row["prompt"] + row[name])[0]) <= limit for name in answers)

    kept = [part.select([number for number, row in enumerate(part) if fits(row)]) for part in rows]
    total, left = sum(map(len, rows)), sum(map(len, kept))
    if total - left > section.allow_drop * total or not all(map(len, kept)):
        what = "rows with their answers" if answers else "prompts"
        raise UserError(
            f"{total - left:,} of {total:,} {what} are longer than {limit} tokens; start from a model of a longer "
            f"context, or write `allow_drop: {math.ceil(100 * (total - left) / total) / 100}` to go on without them"
        )
    return kept, total - left


class PairTrainer(AnswerScores, DPOTrainer):
    """TRL's trainer, which also logs how many tokens the chosen and the rejected answers have.

    Where the chosen ones are much longer, length is what is learnt.
    """

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        metrics = self._metrics["train" if self.model.training else "eval"]
        lengths = inputs["completion_mask"].sum(dim=1).float().chunk(2)  # pairs, chosen first
        for name, length in zip(("chosen", "rejected"), lengths, strict=True):
            metrics[f"lengths/{name}"].append(self.accelerator.gather_for_metrics(length).mean().item())
        return super()._compute_loss(model, inputs, return_outputs)


class LabelTrainer(AnswerScores, KTOTrainer):
    """Kahneman-Tversky optimisation."""


class GroupSampler(Sampler[int]):
    """`sampler` (TRL's RepeatSampler), which draws the order of an epoch from the seed and the epoch alone.

    TRL's own order of the second epoch depends on the first having been gone through, which a resumed run has not done.
    """

    def __init__(self, sampler: Any, trainer: "GroupTrainer"):
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            epoch = int((self.trainer.state.epoch or 0) + 1e-6)  # a sum of fractions in the middle, whole at the ends
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)
        return iter(self.sampler)


def with_positions(
    model: torch.nn.Module, arguments: tuple, keywords: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """Before a forward pass: positions counted from the first token that is no padding, as `generate` counts them.

    TRL pads prompts on the left and gives none; GPT-2 and its kin would count the padding.
    """
    mask = keywords.get("attention_mask")
    if keywords.get("position_ids") is not None or keywords.get("past_key_values") is not None or mask is None:
        return None
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if mask.ndim != 2 or "position_ids" not in signature(base.forward).parameters:
        return None
    return arguments, {**keywords, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


class GroupTrainer(AnswerScores):
    """What TRL's trainers that sample groups of answers lack to go on bit for bit from any checkpoint.

    A checkpoint holds the answers that are still to be learnt from, and evaluation draws its own random numbers, the
    same each time. Stands before a trainer class of TRL's.
    """

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        for model in (self.model, getattr(self, "ref_model", None)):
            if model is not None:
                model.register_forward_pre_hook(with_positions, with_kwargs=True)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> GroupSampler:
        return GroupSampler(super()._get_train_sampler(dataset), self)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save({"step": self._step, "answers": self._answers_left()}, self._answers_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            saved = torch.load(self._answers_file(checkpoint), weights_only=True, map_location=self.args.device)
            self._step, self._buffered_inputs = saved["step"], saved["answers"]

    def _answers_left(self) -> list[dict[str, torch.Tensor]] | None:
        """The answers sampled last, a micro-batch each; None where the next step samples new ones."""
        every = self.args.steps_per_generation * self.num_iterations
        return self._buffered_inputs if self._step % every else None

    def _answers_file(self, folder: str) -> Path:
        return Path(folder) / f"answers_{self.args.process_index}.pt"

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.args.seed + self.args.process_index)
            return super().evaluate(*arguments, **keywords)


class GroupRelativeTrainer(GroupTrainer, GRPOTrainer):
    """Group relative policy optimisation."""


class LeaveOneOutTrainer(GroupTrainer, RLOOTrainer):
    """REINFORCE with the other answers' mean reward as baseline."""


def learn_from_groups(
    trainer_class: type[GroupTrainer],
    arguments_class: type[TrainingArguments],
    section: AnswerTuning,
    making: StageOutput,
    run: Run,
    seed: int,
    start: Path | str,
    judge: Path | str | None,
    price_per_hour: float | None = None,
    **defaults: Any,
) -> None:
    """Let the model at `start` answer prompts several times over, learn from which answers are better, and finish.

    `judge` is the reward model; `defaults` are training arguments that yield to the recipe's. Where it says nothing,
    answers have at most 256 tokens or half of the context, and held-out prompts are answered once, before training
    too.
    """
    *rows, counts = load_prompts(section.data, section.evaluation_share, seed, section.allow_drop)
    tokenizer, context = chat_tokenizer(start, run.root), context_length(start)
    longest = section.training.get("max_completion_length") or min(256, context // 2)
    rows, counts["too_long"] = fitting(rows, (), tokenizer, context - longest, section)
    functions = reward_functions(section.reward_functions, judge, tokenizer)
    trainer = tuning_trainer(
        partial(trainer_class, reward_funcs=functions),
        arguments_class,
        section,
        making,
        seed,
        start,
        rows,
        max_completion_length=longest,
        num_generations_eval=1,
        eval_on_start=True,
        **defaults,
    )
    together = trainer.args.generation_batch_size // trainer.args.num_generations
    if len(rows[0]) < together:
        raise UserError(
            f"{making.folder}: {len(rows[0]):,} prompts are fewer than the {together:,} that are answered at a time; "
            "add data, or lower training.gradient_accumulation_steps or per_device_train_batch_size"
        )
    watch(trainer, likelihood=False, price_per_hour=price_per_hour)
    headline = "reward {eval_reward:.3f} on held-out prompts, answers of {eval_completions/mean_length:.0f} tokens"
    if trainer.args.beta:
        headline += ", {eval_kl:.3f} nats per token away from the model before"
    finish(trainer, making, run, headline, licenses=section.licenses, rows=counts)
