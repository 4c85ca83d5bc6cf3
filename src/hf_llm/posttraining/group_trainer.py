"""TRL's GRPO and RLOO trainers, extended to resume bit for bit from any checkpoint.

Both sample a group of completions of each prompt, and train on how the completions of a group compare.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import LogitsProcessor, TrainingArguments
from trl import GRPOTrainer, RLOOTrainer

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import format_row_counts, load_prompts
from hf_llm.data.chat.messages import load_tools
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.pipeline.run import StageOutput
from hf_llm.posttraining.build_trainer import build_trainer
from hf_llm.posttraining.completion_logits import CompletionScores
from hf_llm.posttraining.reward_check import ConstantRewardWarning
from hf_llm.posttraining.reward_functions import (
    check_every_completion_scored,
    load_reward_functions,
    try_reward_functions,
)
from hf_llm.posttraining.rows.overlong_rows import fit_rows, prompt_limit
from hf_llm.posttraining.rows.refused_rows import drop_refused_rows
from hf_llm.posttraining.sections import RolloutSection, default_completion_length
from hf_llm.posttraining.starting_model import load_chat_tokenizer, model_context_length
from hf_llm.posttraining.trl_metrics import TrlEvaluation
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.training.fault_tolerance.determinism import make_generator


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


@dataclass
class ScoredCompletion:
    """What an evaluation logs of one sampled completion."""

    rewards: list[float]
    """By reward function; NaN where it returned None."""
    length: int
    """In tokens."""
    ended: bool
    """Whether it ends with an end token, not at the limit."""
    share: float
    """How much it counts: less than 1 where other processes complete the same prompt again."""


class GroupTrainer(TrlEvaluation, CompletionScores):
    """Base class that makes TRL's GRPO or RLOO trainer resume bit for bit; list it before the trainer.

    A checkpoint holds the completions that are still to be trained on. An evaluation draws its own random numbers, for
    each completion the same each time and in any batch (in this process; vLLM draws them itself). Its rewards and
    lengths are means over all `eval_completions`, KL and entropy over their tokens.
    """

    loss_unit = "completions"
    default_unit = "completions"
    logged_units = ("completions",)
    unit_of_metric: ClassVar = {
        "kl": "tokens",
        "entropy": "tokens",
        "clip_ratio/low_mean": "tokens",
        "clip_ratio/high_mean": "tokens",
        "clip_ratio/region_mean": "tokens",
    }

    _scored: list[ScoredCompletion]  # this process's completions of an evaluation

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.evaluation_group = self.num_generations_eval
        for model in (self.model, getattr(self, "ref_model", None)):
            if model is not None:
                model.register_forward_pre_hook(add_position_ids, with_kwargs=True)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> GroupSampler:
        return GroupSampler(super()._get_train_sampler(dataset), self)

    # ---- checkpoints

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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._row_tools = [load_tools(row) for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list) -> tuple:
        """Tokenize prompts with the tools of their rows; TRL itself knows only tools that it can call."""
        if not any(self._row_tools):
            return super()._tokenize_prompts(prompts)
        prompt_ids = []
        for prompt, tools in zip(prompts, self._row_tools, strict=True):
            ids, _ = encode_chat(self.processing_class, prompt, tools, add_generation_prompt=True)
            prompt_ids.append(ids)
        return prompt_ids, None, {}

    # ---- evaluation

    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments: Any, **keywords: Any) -> tuple:
        """Sample completions; in an evaluation, each with random numbers of its own."""
        generate = super()._generate_single_turn
        samples_here = not (self.use_vllm or getattr(self, "use_transformers_continuous_batching", False))
        if self.model.training or not samples_here:
            return generate(prompt_ids, *arguments, **keywords)

        positions = self._batches.find_positions(self._evaluation_step)
        if len(positions) != len(prompt_ids):  # the next turn of those that have called a tool
            return generate(prompt_ids, *arguments, **keywords)
        generators = [make_generator(self.args.device, self.args.seed, position) for position in positions]
        with sample_by_row(self.accelerator.unwrap_model(self.model), generators):
            return generate(prompt_ids, *arguments, **keywords)

    def evaluation_loop(self, *arguments: Any, **keywords: Any) -> Any:
        self._scored = []
        return super().evaluation_loop(*arguments, **keywords)

    def count_units(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | int]:
        """Return the `completions` of a batch and their `tokens`."""
        mask = inputs["completion_mask"]
        return {"completions": len(mask), "tokens": mask.sum()}

    def _calculate_rewards(self, inputs: Any, prompts: list, completions: list, completion_ids_list: list) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        check_every_completion_scored(rewards.T, self.reward_funcs)  # completions, functions
        if not self.model.training:
            first = self.accelerator.process_index * len(prompts)  # `rewards` are those of all processes
            own_rewards = rewards[first : first + len(prompts)].tolist()
            end_tokens = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            share = 1 / self.evaluation_copies
            for values, ids in zip(own_rewards, completion_ids_list, strict=True):
                self._scored.append(ScoredCompletion(values, len(ids), ids[-1] in end_tokens, share))
        return rewards

    def summarize_evaluation(self) -> dict[str, float]:
        scored = gather_object(self._scored)
        return super().summarize_evaluation() | self._summarize_completions(scored)

    def _summarize_completions(self, scored: list[ScoredCompletion]) -> dict[str, float]:
        """Return what TRL logs of rewards and lengths, of all completions; names without values are dropped."""
        shares = np.array([completion.share for completion in scored])
        lengths = np.array([completion.length for completion in scored], float)
        ended = np.array([completion.ended for completion in scored])
        rewards = np.array([completion.rewards for completion in scored])  # completions, functions

        is_scored = ~np.isnan(rewards).all(axis=1)
        totals = np.nansum(rewards * self.reward_weights.cpu().numpy(), axis=1)

        summary = {
            "completions/mean_length": np.average(lengths, weights=shares),
            "completions/min_length": lengths.min(),
            "completions/max_length": lengths.max(),
            "completions/clipped_ratio": np.average(~ended, weights=shares),
        }
        for name in ("mean", "min", "max"):
            summary[f"completions/{name}_terminated_length"] = 0.0  # as TRL has it where none ended
        if ended.any():
            summary["completions/mean_terminated_length"] = np.average(lengths[ended], weights=shares[ended])
            summary["completions/min_terminated_length"] = lengths[ended].min()
            summary["completions/max_terminated_length"] = lengths[ended].max()

        if is_scored.any():
            mean, deviation = weighted_moments(totals[is_scored], shares[is_scored])
            summary |= {"reward": mean, "reward_std": deviation}
        for name, values in zip(self.reward_func_names, rewards.T, strict=True):
            has_value = ~np.isnan(values)
            if has_value.any():
                mean, deviation = weighted_moments(values[has_value], shares[has_value])
                summary |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": deviation}
        return {name: float(value) for name, value in summary.items()}


def weighted_moments(values: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    """Return the mean and the sample deviation of values that count by their shares; of a single one, 0 deviation."""
    count = shares.sum()
    mean = np.average(values, weights=shares)
    if count <= 1:
        return float(mean), 0.0
    variance = np.average((values - mean) ** 2, weights=shares) * count / (count - 1)
    return float(mean), float(np.sqrt(variance))


class RowSampler(LogitsProcessor):
    """Draw the next token of each row with a generator of its own, and leave a probability to that token alone."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # B T, B V -> B V
        # The largest of p / noise is drawn with probability p: a race of exponential clocks, as in torch.multinomial.
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        drawn = (scores.float().softmax(dim=-1) / noise).argmax(dim=-1, keepdim=True)  # B 1
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


@contextmanager
def sample_by_row(model: torch.nn.Module, generators: list[torch.Generator]) -> Iterator[None]:
    """Let `model.generate` draw each row's tokens with a generator of its own: they do not depend on the other rows.

    transformers puts processors that one gives to `generate` before temperature, top-k and top-p. This one has to come
    after them, so it is added to the list that the model makes.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    make_list = model._get_logits_processor

    def make_longer_list(*arguments: Any, **keywords: Any) -> Any:
        processors = make_list(*arguments, **keywords)
        processors.append(RowSampler(generators))
        return processors

    model._get_logits_processor = make_longer_list
    try:
        yield
    finally:
        del model._get_logits_processor


class ResumableGRPOTrainer(GroupTrainer, GRPOTrainer):
    """Group-relative policy optimisation."""


class ResumableRLOOTrainer(GroupTrainer, RLOOTrainer):
    """REINFORCE with the mean reward of the prompt's other completions as baseline."""

    unit_of_metric: ClassVar = {"kl": "tokens", "entropy": "tokens"}  # its clipping is of whole completions


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


def build_group_trainer(
    trainer_class: type[GroupTrainer],
    arguments_class: type[TrainingArguments],
    section: RolloutSection,
    output: StageOutput,
    seed: int,
    price_per_hour: float | None,
    **defaults: Any,
) -> tuple[GroupTrainer, dict[str, Any]]:
    """Build a trainer of a policy on groups of completions which it samples of each prompt; also return the counts of
    rows.

    `defaults` are training arguments; those of the recipe win. Without a setting in the recipe, a completion has at
    most 256 tokens or half of the context, and each evaluation samples one completion of each held-out prompt, the
    first before training.
    """
    train, evaluation, counts = load_prompts(
        section.data, section.evaluation_share, seed, section.allow_drop, output.path.with_name("corpus")
    )
    print_main(format_row_counts(counts))
    tokenizer = load_chat_tokenizer(output.start, output.path.parent)
    context = model_context_length(output.start)
    completion_length = default_completion_length(section, context)
    limit = prompt_limit(context, completion_length, output.folder)
    rows, counts["refused"] = drop_refused_rows([train, evaluation], (), tokenizer, section.allow_drop)
    rows, too_long = fit_rows(rows, (), tokenizer, limit, section, output.folder)
    counts |= too_long

    functions = load_reward_functions(section.reward_functions, output.sources.get("reward"), tokenizer)
    try_reward_functions(functions, rows[0], tokenizer)

    trainer = build_trainer(
        partial(trainer_class, reward_funcs=functions),
        arguments_class,
        section,
        output,
        seed,
        rows,
        max_completion_length=completion_length,
        num_generations_eval=1,
        eval_on_start=True,
        **defaults,
    )
    check_enough_prompts(trainer, len(rows[0]), output.folder)

    attach_callbacks(trainer, likelihood=False, price_per_hour=price_per_hour)
    trainer.add_callback(ConstantRewardWarning(trainer, functions))
    return trainer, counts


def group_headline(trainer: GroupTrainer) -> str:
    """Return the headline of the manifest, a format string over the metrics of an evaluation."""
    headline = (
        "reward {eval_reward:.3f} on {eval_completions:,} held-out completions "
        "of {eval_completions/mean_length:.0f} tokens"
    )
    if trainer.args.beta:
        headline += ", KL to the reference {eval_kl:.3f} nats per token"
    return headline


def check_enough_prompts(trainer: GroupTrainer, prompts: int, folder: str) -> None:
    """Raise UserError where there are fewer prompts than one sampling takes: TRL would run no step at all."""
    prompts_per_sampling = trainer.args.generation_batch_size // trainer.args.num_generations
    if prompts < prompts_per_sampling:
        raise UserError(
            f"{folder}: {prompts:,} prompts are fewer than the {prompts_per_sampling:,} that are completed at a time; "
            "add data, or lower training.gradient_accumulation_steps or per_device_train_batch_size"
        )
