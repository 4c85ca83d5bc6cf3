"""TRL's GRPO and RLOO trainers, extended to resume bit for bit from any checkpoint.

Both sample a group of completions of each prompt, and train on how the completions of a group compare.
"""

from collections.abc import Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import TrainingArguments
from trl import GRPOTrainer, RLOOTrainer

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import load_prompts
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.pipeline.run import BaseRecipe, Run, StageOutput
from hf_llm.posttraining.build_trainer import build_trainer
from hf_llm.posttraining.completion_logits import CompletionScores
from hf_llm.posttraining.overlong_rows import fit_rows, prompt_limit
from hf_llm.posttraining.reward_check import ConstantRewardWarning
from hf_llm.posttraining.reward_functions import (
    check_every_completion_scored,
    load_reward_functions,
    try_reward_functions,
)
from hf_llm.posttraining.sections import RolloutSection, default_completion_length
from hf_llm.posttraining.start_check import warn_of_no_effect
from hf_llm.posttraining.starting_model import load_chat_tokenizer, model_context_length
from hf_llm.training.train_and_save import train_and_save


class GroupSampler(Sampler[int]):
    """Yield from `sampler` (TRL's RepeatSampler) in an order that depends on the seed and the epoch alone.

    TRL's sampler shuffles the second epoch with the generator state that the first has left, which a resumed run does
    not have.
    """

    def __init__(self, sampler: Any, trainer: "GroupTrainer"):
        self.sampler = sampler
        self.trainer = trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            # Trainer adds up the epoch from fractions, so at an epoch's end it may lie just below the whole number.
            epoch = int((self.trainer.state.epoch or 0) + 1e-6)
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)
        return iter(self.sampler)


class GroupTrainer(CompletionScores):
    """Base class that makes TRL's GRPO or RLOO trainer resume bit for bit; list it before the trainer.

    A checkpoint holds the completions that are still to be trained on. An evaluation draws its own random numbers, the
    same each time.
    """

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        for model in (self.model, getattr(self, "ref_model", None)):
            if model is not None:
                model.register_forward_pre_hook(add_position_ids, with_kwargs=True)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> GroupSampler:
        return GroupSampler(super()._get_train_sampler(dataset), self)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {"step": self._step, "answers": self._unused_completions()}
        torch.save(state, self._completions_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        state = torch.load(self._completions_file(checkpoint), weights_only=True, map_location=self.args.device)
        self._step = state["step"]
        self._buffered_inputs = state["answers"]

    def _unused_completions(self) -> list[dict[str, torch.Tensor]] | None:
        """Return the last sampled completions, one item a micro-batch; None where the next step samples new ones."""
        steps_per_sampling = self.args.steps_per_generation * self.num_iterations
        return self._buffered_inputs if self._step % steps_per_sampling else None

    def _completions_file(self, folder: str) -> Path:
        return Path(folder) / f"answers_{self.args.process_index}.pt"

    def _calculate_rewards(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments, **keywords)  # completions, functions
        check_every_completion_scored(rewards.T, self.reward_funcs)
        return rewards

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        device = self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.args.seed + self.args.process_index)
            return super().evaluate(*arguments, **keywords)


class ResumableGRPOTrainer(GroupTrainer, GRPOTrainer):
    """Group-relative policy optimisation."""


class ResumableRLOOTrainer(GroupTrainer, RLOOTrainer):
    """REINFORCE with the mean reward of the prompt's other completions as baseline."""


def add_position_ids(
    model: torch.nn.Module, arguments: tuple, keywords: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """Add `position_ids` to a forward pass, counted from the first token that is not padding, as `generate` does.

    TRL pads prompts on the left and passes no positions; GPT-2 and models like it would count the padding. This is a
    forward pre-hook (`register_forward_pre_hook(..., with_kwargs=True)`): with None the arguments stay as they are.
    """
    mask = keywords.get("attention_mask")
    has_positions = keywords.get("position_ids") is not None or keywords.get("past_key_values") is not None
    if mask is None or mask.ndim != 2 or has_positions:
        return None
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "position_ids" not in signature(base.forward).parameters:
        return None
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)  # B T
    return arguments, {**keywords, "position_ids": position_ids}


def train_group_policy(
    trainer_class: type[GroupTrainer],
    arguments_class: type[TrainingArguments],
    section: RolloutSection,
    output: StageOutput,
    run: Run,
    recipe: BaseRecipe,
    **defaults: Any,
) -> None:
    """Train the policy on groups of completions which it samples of each prompt, and save the model.

    `defaults` are training arguments; those of the recipe win. Without a setting in the recipe, a completion has at
    most 256 tokens or half of the context, and each evaluation samples one completion of each held-out prompt, the
    first before training.
    """
    train, evaluation, counts = load_prompts(section.data, section.evaluation_share, recipe.seed, section.allow_drop)
    tokenizer = load_chat_tokenizer(output.start, run.root)
    context = model_context_length(output.start)
    completion_length = default_completion_length(section, context)
    limit = prompt_limit(context, completion_length, output.folder)
    rows, too_long = fit_rows([train, evaluation], (), tokenizer, limit, section, output.folder)
    counts |= too_long
    functions = load_reward_functions(section.reward_functions, output.sources.get("reward"), tokenizer)
    try_reward_functions(functions, rows[0], tokenizer)

    trainer = build_trainer(
        partial(trainer_class, reward_funcs=functions),
        arguments_class,
        section,
        output,
        recipe.seed,
        rows,
        max_completion_length=completion_length,
        num_generations_eval=1,
        eval_on_start=True,
        **defaults,
    )
    check_enough_prompts(trainer, len(rows[0]), output.folder)

    attach_callbacks(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
    trainer.add_callback(ConstantRewardWarning(trainer, functions))
    headline = "reward {eval_reward:.3f} on held-out prompts, completions of {eval_completions/mean_length:.0f} tokens"
    if trainer.args.beta:
        headline += ", KL to the reference {eval_kl:.3f} nats per token"
    measure = partial(warn_of_no_effect, trainer)
    train_and_save(trainer, output, run, headline, measure, licenses=section.licenses, rows=counts)


def check_enough_prompts(trainer: GroupTrainer, prompts: int, folder: str) -> None:
    """Raise UserError where there are fewer prompts than one sampling takes: TRL would run no step at all."""
    prompts_per_sampling = trainer.args.generation_batch_size // trainer.args.num_generations
    if prompts < prompts_per_sampling:
        raise UserError(
            f"{folder}: {prompts:,} prompts are fewer than the {prompts_per_sampling:,} that are completed at a time; "
            "add data, or lower training.gradient_accumulation_steps or per_device_train_batch_size"
        )
