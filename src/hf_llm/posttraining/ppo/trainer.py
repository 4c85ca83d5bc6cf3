"""Proximal policy optimisation as a `transformers.Trainer`: `_prepare_inputs` samples the completions to train on.

An optimizer step trains on one mini-batch of completions; every `num_ppo_epochs * num_mini_batches` steps a rollout
samples new ones. Logging, checkpoints, resume, accelerate and DeepSpeed work as in any Trainer.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.models import prepare_fsdp

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.data.chat.messages import load_tools
from hf_llm.inference.generate import generation_stop_ids, suppressed_ids
from hf_llm.parallel.gather_parameters import gather_weights, mark_fsdp_root, prepare_sharding
from hf_llm.posttraining.ppo.actor_critic import ActorCritic, completion_log_probs
from hf_llm.posttraining.ppo.config import PPOConfig
from hf_llm.posttraining.ppo.losses import (
    KLController,
    RunningScale,
    advantages_and_returns,
    kl_estimate,
    mean_and_deviation,
    policy_loss,
    sum_moments,
    token_rewards,
    value_loss,
)
from hf_llm.posttraining.ppo.rollouts import (
    Completions,
    PromptBlocks,
    Rollout,
    sample_completions,
    shuffle_into_minibatches,
)
from hf_llm.posttraining.reward_functions import RewardFunction, reward_columns, score_completions
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.training.exact_evaluation import ExactEvaluation
from hf_llm.training.fault_tolerance.determinism import make_generator

# Part of a random generator's seed, so that training and evaluation draw different numbers.
TRAINING = 0
EVALUATION = 1

CRITIC_FILE = "critic.safetensors"
SQUARED_REWARD = "squared_reward"  # is summed up in an evaluation for the deviation of the reward
POLICY_PREFIX = "policy."


class PPOTrainer(ExactEvaluation, Trainer):
    """Train `model` to complete the `prompt` (a message list) of each row so that `reward_functions` give a high sum.

    With `peft_config` the reference is the model with its adapter switched off, without one a frozen copy. `critic` is
    a sequence classifier with one score, trained together with the policy; with None the values come from a value head
    on the policy. Raises UserError where no prompt leaves room for a completion.
    """

    logged_units = ("completions",)
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole mini-batch

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        processing_class: PreTrainedTokenizerBase,
        reward_functions: list[RewardFunction],
        peft_config: PeftConfig | None = None,
        critic: PreTrainedModel | None = None,
        **trainer_arguments: Any,
    ):
        self.reward_functions = reward_functions
        self.stop_token_ids = generation_stop_ids(model, processing_class)
        self.suppressed_ids = suppressed_ids(model, processing_class)

        context = args.max_length or model.config.max_position_embeddings
        max_prompt_length = context - args.max_completion_length
        train_dataset = encode_prompts(train_dataset, processing_class, max_prompt_length)
        eval_dataset = encode_prompts(eval_dataset, processing_class, max_prompt_length)

        # With adapters, the reference is the policy with its adapter switched off (`_score_tokens`).
        if peft_config is None:
            policy = model
            self.reference = deepcopy(model).eval().requires_grad_(False)
        else:
            policy = get_peft_model(model, peft_config)
            self.reference = None

        # The module itself: `self.model` may become a wrapper around it (DDP, FSDP).
        self.actor_critic = ActorCritic(policy, critic)
        super().__init__(
            model=self.actor_critic,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=lambda row_numbers: {"rows": torch.tensor(row_numbers)},
            **trainer_arguments,
        )
        prepare_sharding(self)
        if self.reference is not None and self.accelerator.is_fsdp2:
            self.reference = prepare_fsdp(self.reference, self.accelerator)
        elif self.reference is not None:
            self.reference.to(args.device)

        self.kl = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self.scale = RunningScale(torch.zeros(3, dtype=torch.float64, device=args.device))
        self.rollout: Rollout | None = None
        self._micro_step = 0  # micro-batches since the last optimizer step
        # By name, the sum and the count in this process of a number whose mean goes into training's next log entry.
        self._log_sums: dict[str, torch.Tensor] = {}

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> tuple[torch.nn.Module, DataLoader]:
        prepared = super()._prepare_for_training(*arguments, **keywords)
        mark_fsdp_root(self.model, "do_nothing")
        return prepared

    # ---- data: the loaders yield row numbers, in blocks that belong to one rollout

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        row_numbers = range(len(self.train_dataset))
        block_size = args.completions_per_rollout * args.world_size
        repeats = args.steps_per_rollout * args.gradient_accumulation_steps
        sampler = PromptBlocks(len(row_numbers), block_size, repeats, args.seed, self._current_epoch)
        self._steps_per_epoch = sampler.blocks * args.steps_per_rollout
        return self._get_dataloader(
            row_numbers, "Training", args.completions_per_rollout, lambda _: sampler, is_training=True
        )

    def _current_epoch(self) -> int:
        return self.state.global_step // self._steps_per_epoch

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        return self.load_evaluation_rows(range(len(self.eval_dataset)), self.data_collator)

    # ---- training

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **keywords)
        self._micro_step = (self._micro_step + 1) % self.args.gradient_accumulation_steps
        return loss

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the next micro-batch of the rollout, after sampling a new rollout where the last one is used up.

        An evaluation's inputs are row numbers, which stay as they are.
        """
        if not self.actor_critic.training:
            return inputs

        args = self.args
        step_in_rollout = self.state.global_step % args.steps_per_rollout
        is_used_up = step_in_rollout == 0 and self._micro_step == 0
        if self.rollout is None or is_used_up:
            self.rollout = self._sample_rollout(inputs["rows"].tolist())

        number = step_in_rollout * args.gradient_accumulation_steps + self._micro_step
        return self.rollout.micro_batch(number, args.per_device_train_batch_size, args.gradient_accumulation_steps)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *arguments: Any, **keywords: Any
    ) -> torch.Tensor:
        """Compute clipped policy loss + clipped value loss, each a mean over the mini-batch's completion tokens."""
        args = self.args
        mask = inputs["mask"]
        log_probs, values = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            completion_length=mask.shape[1],
            temperature=args.temperature,
        )

        # Losses of each token (B T), summed over the micro-batch.
        policy_losses, is_clipped = policy_loss(log_probs, inputs["log_probs"], inputs["advantages"], args.cliprange)
        value_losses, is_value_clipped = value_loss(values, inputs["values"], inputs["returns"], args.cliprange_value)
        policy_sum = (policy_losses * mask).sum()
        value_sum = (value_losses * mask).sum()

        with torch.no_grad():
            log_ratio = (inputs["log_probs"] - log_probs) * mask  # of the sampling policy to the present one
            self._add_to_log(
                mask.sum(),
                policy_loss=policy_sum,
                value_loss=value_sum,
                clip_fraction=(is_clipped * mask).sum(),
                value_clip_fraction=(is_value_clipped * mask).sum(),
                update_kl=((log_ratio.exp() - 1 - log_ratio) * mask).sum(),
            )

        # `step_tokens` counts the tokens of all processes, whose gradients are averaged later, not summed: hence the
        # factor `world_size`.
        return (policy_sum + args.vf_coef * value_sum) * (args.world_size / inputs["step_tokens"])

    # ---- rollouts

    @torch.no_grad()
    def _sample_rollout(self, rows: list[int]) -> Rollout:
        """Sample completions of the prompts of `rows`, score them, and compute advantages and returns from the scores.

        `rows` are row numbers of the training set.
        """
        args = self.args
        rollout_number = self.state.global_step // args.steps_per_rollout
        generator = make_generator(args.device, args.seed, TRAINING, rollout_number, args.process_index)
        completions, scores = self._sample_and_score(self.train_dataset[rows], generator)
        mask = completions.mask
        log_probs, values, reference_log_probs = self._score_tokens(completions)

        # Rewards: only k1 works as a penalty. The gradient of a k3 penalty is that of KL(p, q) less that of KL(q, p),
        # which vanishes near the reference, so it does not pull the policy back there (docs/ppo.md has figures).
        penalty = kl_estimate(log_probs, reference_log_probs, "k1")
        completion_rewards = self._combine_scores(scores, completions.ended)
        rewards = token_rewards(completion_rewards, penalty, mask, self.kl.coef)

        # Advantages, normalised over the completions of all processes.
        advantages, returns = advantages_and_returns(rewards, values, mask, args.gamma, args.lam)
        mean, deviation = mean_and_deviation(reduce(sum_moments(advantages, mask), "sum"))
        advantages = (advantages - mean) / (deviation + 1e-8) * mask

        # The mini-batches, and how many tokens each has in all processes.
        order = shuffle_into_minibatches(mask.sum(1), args.num_ppo_epochs, args.num_mini_batches, generator)
        lengths = mask.sum(1)[order].view(args.num_ppo_epochs, args.num_mini_batches, -1)
        tokens_per_step = reduce(lengths.sum(2), "sum")

        # Logs. Tokens per second are computed from `num_input_tokens_seen`.
        kl = kl_estimate(log_probs, reference_log_probs, args.kl_estimator) * mask
        columns = self._describe_completions(completions, scores, kl)
        self._add_to_log(len(completions.mask), **{name: column.sum() for name, column in columns.items()})
        tokens_seen = reduce(completions.query_mask.sum() + mask.sum(), "sum")
        self.state.num_input_tokens_seen += int(tokens_seen)
        return_variance = returns[mask].var()
        unexplained_variance = (returns - values)[mask].var()
        self._add_to_log(
            1,
            return_variance=return_variance,
            unexplained_variance=unexplained_variance,
            kl_coef=self.kl.coef,
        )

        # Steer the KL coefficient by the mean KL of all processes' completions.
        kl_and_count = reduce(torch.stack([kl.sum(), kl.new_tensor(len(kl))]), "sum")
        mean_kl = (kl_and_count[0] / kl_and_count[1]).item()
        self.kl.update(mean_kl, int(kl_and_count[1]))

        return Rollout(
            queries=completions.queries,
            query_mask=completions.query_mask,
            tokens=completions.tokens,
            mask=mask,
            log_probs=log_probs,
            values=values,
            advantages=advantages,
            returns=returns,
            order=order,
            tokens_per_step=tokens_per_step,
        )

    def _sample_and_score(
        self, batch: dict[str, list], generator: torch.Generator | list[torch.Generator]
    ) -> tuple[Completions, torch.Tensor]:
        """Sample a completion of each prompt in `batch` (columns of rows), and score it by each reward function.

        `generator` is one for all prompts, or a list with one for each.

        Returns the completions, and their scores (functions, completions).
        """
        args = self.args
        with self._generation_mode() as policy:
            completions = sample_completions(
                policy,
                batch["prompt_ids"],
                args.max_completion_length,
                args.temperature,
                self.stop_token_ids,
                self.processing_class.pad_token_id,
                generator,
                self.suppressed_ids,
            )

        texts = self.processing_class.batch_decode(completions.token_ids(), skip_special_tokens=True)
        messages = [[{"role": "assistant", "content": text}] for text in texts]
        columns = reward_columns(batch, self.state)
        columns["completion_ids"] = completions.token_ids()
        scores = score_completions(self.reward_functions, batch["prompt"], messages, columns)
        return completions, scores.nan_to_num(0.0).to(args.device)  # where a function does not apply it adds nothing

    @contextmanager
    def _generation_mode(self) -> Iterator[PreTrainedModel]:
        """Yield the policy in evaluation mode, without gradients, in the precision that it is trained in."""
        model = self.actor_critic
        was_training = model.training
        # FSDP2 gathers weights in half precision itself.
        precision = nullcontext() if self.accelerator.is_fsdp2 else self.accelerator.autocast()
        model.eval()  # in training mode, gradient checkpointing would switch the key-value cache off
        try:
            with torch.no_grad(), precision, gather_weights(self, model.policy):
                yield model.policy
        finally:
            model.train(was_training)

    def _score_tokens(
        self, completions: Completions, with_values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probabilities, values and the reference's log-probabilities of the completions' tokens, N T each.

        In float32 the log-probabilities are those that came with the samples. In half precision they are computed
        again, since sampling with a cache and a pass over the whole row round differently. Completions of similar
        length are scored together, `eval_batch_size` at a time.
        """
        args = self.args
        recompute = args.bf16 or args.fp16 or self.actor_critic.policy.dtype != torch.float32
        log_probs = completions.log_probs.clone()
        values = torch.zeros_like(log_probs)
        reference_log_probs = torch.zeros_like(log_probs)

        row_lengths = completions.mask.sum(1) + completions.query_mask.sum(1)
        order = row_lengths.argsort(stable=True)
        with self._generation_mode() as policy:
            reference = policy if self.reference is None else self.reference
            for rows in order.split(args.eval_batch_size):
                ids, attention_mask, width = cut_to_longest(completions, rows)
                if recompute or with_values:
                    temperature = args.temperature if recompute else None
                    batch_log_probs, batch_values = self.actor_critic(ids, attention_mask, width, temperature)
                    values[rows, :width] = batch_values
                    if recompute:
                        log_probs[rows, :width] = batch_log_probs
                with policy.disable_adapter() if self.reference is None else nullcontext():
                    reference_log_probs[rows, :width] = completion_log_probs(
                        reference, ids, attention_mask, width, args.temperature
                    )
        mask = completions.mask
        return log_probs * mask, values * mask, reference_log_probs * mask

    def _combine_scores(self, scores: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        """Combine the scores (functions, completions) into one reward for each completion.

        Scores are summed, normalised and clipped; then the penalty is deducted from completions that did not end.
        """
        args = self.args
        total = scores.sum(0)
        if args.normalize_rewards:
            self.scale.add(reduce(sum_moments(total, torch.ones_like(total)), "sum"))
            total = self.scale.normalize(total)
        if args.reward_clip is not None:
            total = total.clamp(-args.reward_clip, args.reward_clip)
        return total - (args.missing_eos_penalty or 0.0) * ~ended

    # ---- evaluation

    def measure_batch(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Complete held-out prompts, and add their rewards to the evaluation's sums.

        A prompt gets the same random numbers each time and in any batch. The loss is the negative of the objective,
        which is the reward less the KL penalty.
        """
        args = self.args
        rows = inputs["rows"].tolist()
        generators = [make_generator(args.device, args.seed, EVALUATION, row) for row in rows]
        completions, scores = self._sample_and_score(self.eval_dataset[rows], generators)
        log_probs, _, reference_log_probs = self._score_tokens(completions, with_values=False)
        kl = kl_estimate(log_probs, reference_log_probs, args.kl_estimator) * completions.mask

        objective = scores.sum(0) - self.kl.coef * kl.sum(1)
        loss = -objective.mean()
        columns = self._describe_completions(completions, scores, kl)
        for name, column in columns.items():
            self.add_to_evaluation(name, column.mean(), len(rows))
        self.add_to_evaluation(SQUARED_REWARD, columns["reward"].double().square().mean(), len(rows))
        self.add_to_evaluation("loss", loss, len(rows))
        self.add_to_evaluation("completions", 1.0, len(rows))
        return loss

    def summarize_evaluation(self) -> dict[str, float]:
        """Return the means, and the sample deviation of the reward."""
        summary = super().summarize_evaluation()
        count = summary["completions"]
        variance = max(0.0, summary.pop(SQUARED_REWARD) - summary["reward"] ** 2)
        summary["reward_std"] = math.sqrt(variance * count / (count - 1)) if count > 1 else 0.0
        return summary

    # ---- logs

    def _describe_completions(
        self, completions: Completions, scores: torch.Tensor, kl: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return each completion's reward, KL to the reference, length, entropy per token, and whether it ended."""
        lengths = completions.mask.sum(1)
        columns = {
            "reward": scores.sum(0),
            "kl_per_completion": kl.sum(1),
            "length": lengths,
            "entropy": completions.entropy.sum(1) / lengths,
            "ended": completions.ended,
        }
        if len(scores) > 1:
            for function, scores_by_function in zip(self.reward_functions, scores, strict=True):
                name = getattr(function, "__name__", repr(function))
                columns[f"reward/{name}"] = scores_by_function
        return {name: column.float() for name, column in columns.items()}

    def _add_to_log(self, count: torch.Tensor | int, **sums: torch.Tensor | float) -> None:
        """Add sums over `count` tokens or completions; the next log entry holds `sum / count` over all processes."""
        for name, value in sums.items():
            sum_and_count = torch.stack([torch.as_tensor(number, dtype=torch.float64) for number in (value, count)])
            if name in self._log_sums:
                sum_and_count = self._log_sums[name] + sum_and_count
            self._log_sums[name] = sum_and_count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        is_evaluation = "eval_loss" in logs
        if self._log_sums and not is_evaluation:
            sums_and_counts = torch.stack(list(self._log_sums.values())).to(self.args.device)  # names, 2
            totals = reduce(sums_and_counts, "sum").cpu()
            means = (totals[:, 0] / totals[:, 1]).tolist()
            logs.update(zip(self._log_sums, means, strict=True))
            self._log_sums = {}

        if logs.get("return_variance"):
            logs["explained_variance"] = 1 - logs["unexplained_variance"] / logs["return_variance"]
        super().log(logs, start_time)

    # ---- checkpoints: the policy as `from_pretrained` opens it, the critic beside it, and the current rollout

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        engine_saves_all = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.args.should_save and not engine_saves_all:
            critic_weights = {}
            for name, tensor in self.actor_critic.state_dict().items():
                if not name.startswith(POLICY_PREFIX):
                    critic_weights[name] = tensor.contiguous()
            save_file(critic_weights, folder / CRITIC_FILE)

        # The state of this process: running means, KL coefficient, scale of the scores, and the rollout in use.
        state = {f"sums.{name}": sum_and_count for name, sum_and_count in self._log_sums.items()}
        state["kl_coef"] = torch.tensor(self.kl.coef, dtype=torch.float64)
        state["scale"] = self.scale.sums
        is_within_rollout = self.state.global_step % self.args.steps_per_rollout != 0
        if is_within_rollout and self.rollout is not None:
            state |= {f"rollout.{name}": tensor.contiguous() for name, tensor in vars(self.rollout).items()}
        state = {name: tensor.cpu() for name, tensor in state.items()}
        save_file(state, folder / rollout_state_file(self.args.process_index))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        processes_before = len(list(folder.glob(rollout_state_file("*"))))
        if processes_before == self.args.world_size:
            state = load_file(folder / rollout_state_file(self.args.process_index))
        else:
            print_main(
                f"the checkpoint is from {processes_before} processes, this run has {self.args.world_size}: the "
                "rollout is sampled again"
            )
            state = load_file(folder / rollout_state_file(0))
            state = {name: state[name] for name in ("kl_coef", "scale")}

        state = {name: tensor.to(self.args.device) for name, tensor in state.items()}
        self.kl.coef = state["kl_coef"].item()
        self.scale.sums = state["scale"]
        self._log_sums = _strip_prefix(state, "sums.")
        rollout = _strip_prefix(state, "rollout.")
        self.rollout = Rollout(**rollout) if rollout else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._policy_as_model():
            super()._load_from_checkpoint(resume_from_checkpoint, self.actor_critic.policy)
        critic_weights = load_file(Path(resume_from_checkpoint) / CRITIC_FILE)
        result = self.actor_critic.load_state_dict(critic_weights, strict=False)
        assert not result.unexpected_keys, result

    def _load_best_model(self) -> None:
        with nullcontext() if self.is_fsdp_enabled else self._policy_as_model():
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict is not None:
            state_dict = _strip_prefix(state_dict, POLICY_PREFIX)
        with self._policy_as_model():
            super()._save(output_dir, state_dict)

    @contextmanager
    def _policy_as_model(self) -> Iterator[None]:
        """Make the policy the trainer's model for a while, so that Trainer saves and loads it alone."""
        actor_critic = self.model
        self.model = self.actor_critic.policy
        try:
            yield
        finally:
            self.model = actor_critic


def _strip_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose name starts with `prefix`, by their name without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def rollout_state_file(process: int | str) -> str:
    """Return the name of the checkpoint file in which a process keeps its part of the current rollout."""
    return f"rollout_{process}.safetensors"


def cut_to_longest(completions: Completions, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return ids and mask (int) of some completions with their prompts, and the width of the completions.

    Prompts and completions are cut to the longest prompt and the longest completion among `rows`.
    """
    prompt_length = int(completions.query_mask[rows].sum(1).max())
    width = int(completions.mask[rows].sum(1).max())
    ids = torch.cat([completions.queries[rows, -prompt_length:], completions.tokens[rows, :width]], dim=1)
    mask = torch.cat([completions.query_mask[rows, -prompt_length:], completions.mask[rows, :width]], dim=1)
    return ids, mask.long(), width


def encode_prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Dataset:
    """Keep the rows whose prompt has at most `max_tokens` tokens, and add these tokens as `prompt_ids`.

    Prints how many rows were dropped. Raises UserError where no row is left.
    """
    if max_tokens < 1:
        raise UserError("max_completion_length leaves no room for a prompt in the model's context; make it smaller")

    def encode(row: dict) -> dict[str, list[int]]:
        ids, _ = encode_chat(tokenizer, row["prompt"], load_tools(row), add_generation_prompt=True)
        return {"prompt_ids": ids}

    kept = rows.map(encode).filter(lambda row: len(row["prompt_ids"]) <= max_tokens)
    dropped = len(rows) - len(kept)
    if dropped:
        print_main(f"{dropped:,} of {len(rows):,} prompts are longer than {max_tokens} tokens and were dropped")
    if not len(kept):
        raise UserError(
            f"no prompt of {len(rows)} takes at most {max_tokens} tokens; make max_completion_length smaller"
        )
    return kept
