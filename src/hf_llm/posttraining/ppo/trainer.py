"""Proximal policy optimisation as a `transformers.Trainer`: answers are sampled where a Trainer prepares its inputs.

An optimizer step learns from one mini-batch of answers; every `num_ppo_epochs * num_mini_batches` steps a rollout makes
new ones. Logging, checkpoints, resume, accelerate and DeepSpeed work as in any Trainer.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import reduce
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl.models import prepare_fsdp

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.inference.generate import stop_tokens
from hf_llm.parallel.gather_parameters import make_root, prepare_sharding, whole_weights
from hf_llm.posttraining.ppo.actor_critic import ActorCritic, answer_log_probs
from hf_llm.posttraining.ppo.losses import (
    KLController,
    RunningScale,
    advantages_and_returns,
    kl_estimate,
    mean_and_deviation,
    moments,
    policy_loss,
    token_rewards,
    value_loss,
)
from hf_llm.posttraining.ppo.rollouts import Answers, PromptBlocks, Rollout, deal, generator_for, sample_answers
from hf_llm.posttraining.reward_functions import RewardFunction, scores_of
from hf_llm.tokenization.chat_encoding import encode_chat

TRAINING, EVALUATION = 0, 1  # what random numbers are for
CRITIC = "critic.safetensors"


@dataclass
class PPOConfig(TrainingArguments):
    """TrainingArguments, and what PPO needs beside them.

    A rollout makes `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` answers in each
    process, and is learnt from in `num_ppo_epochs * num_mini_batches` optimizer steps.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "of policy and critic"})
    num_ppo_epochs: int = field(default=4, metadata={"help": "passes over the answers of a rollout"})
    num_mini_batches: int = field(default=1, metadata={"help": "optimizer steps in each pass"})
    max_completion_length: int = field(default=128, metadata={"help": "tokens an answer may have"})
    max_length: int | None = field(default=None, metadata={"help": "tokens of prompt and answer; the model's context"})
    temperature: float = field(default=1.0, metadata={"help": "that answers are sampled and judged at"})
    kl_coef: float = field(default=0.05, metadata={"help": "reward taken for each nat away from the reference"})
    kl_target: float | None = field(default=None, metadata={"help": "nats per answer that kl_coef is steered towards"})
    kl_horizon: int = field(default=10_000, metadata={"help": "answers in which kl_coef changes by at most a fifth"})
    kl_estimator: Literal["k1", "k3"] = field(
        default="k1", metadata={"help": "of the KL that is logged and steered by (k3 is never negative)"}
    )
    gamma: float = field(default=1.0, metadata={"help": "discount of a token's reward for each token before it"})
    lam: float = field(default=0.95, metadata={"help": "lambda of generalised advantage estimation"})
    cliprange: float = field(default=0.2, metadata={"help": "how far the probability ratio may move and still gain"})
    cliprange_value: float = field(default=0.2, metadata={"help": "the same for values, in units of the reward"})
    vf_coef: float = field(default=0.1, metadata={"help": "weight of the value loss"})
    critic: Literal["head", "separate"] | None = field(
        default=None,
        metadata={
            "help": "separate: values from a copy of the reward model; head: from the policy's own hidden states, in "
            "less memory; left out: separate, but head where adapters are trained"
        },
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "taken from the score of an answer that does not end by itself"}
    )
    reward_clip: float | None = field(default=None, metadata={"help": "scores are kept within plus and minus this"})
    normalize_rewards: bool = field(
        default=False, metadata={"help": "scores less their running mean, over their running deviation"}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "reward functions see every column"})
    eval_on_start: bool = field(default=True, metadata={"help": "measure the reward before training too"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_ppo_epochs", "num_mini_batches", "max_completion_length", "kl_horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is counted from 1")
        for name in ("temperature", "cliprange", "cliprange_value"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is above 0")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies between 0 and 1")
        for name in ("kl_coef", "vf_coef", "missing_eos_penalty"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is not negative")
        for name in ("kl_target", "reward_clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is above 0, or left out")

    @property
    def answers_per_rollout(self) -> int:
        """Of one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps."""
        return self.num_ppo_epochs * self.num_mini_batches


class PPOTrainer(Trainer):
    """Trains `model` to answer the rows' `prompt` (message lists) as the sum of `reward_functions` likes it.

    With `peft_config` the reference is the model with its adapter switched off, without one a frozen copy. `critic` is
    a sequence classifier with one score, trained beside the policy; None for a value head. Raises UserError where no
    prompt leaves room for an answer.
    """

    loss_is_scaled_for_ga = True  # by the tokens of the whole mini-batch

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
        **others: Any,
    ):
        self.reward_functions = reward_functions
        self.reference = None if peft_config is not None else deepcopy(model).eval().requires_grad_(False)
        self.stops = stop_tokens(model, processing_class)
        room = (args.max_length or model.config.max_position_embeddings) - args.max_completion_length
        train_dataset, eval_dataset = (with_ids(part, processing_class, room) for part in (train_dataset, eval_dataset))
        policy = get_peft_model(model, peft_config) if peft_config is not None else model
        self.actor_critic = ActorCritic(policy, critic)  # as a Trainer's `model` is, before anything wraps it
        super().__init__(
            model=self.actor_critic,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=lambda rows: {"rows": torch.tensor(rows)},
            **others,
        )
        prepare_sharding(self)
        if self.accelerator.is_fsdp2 and self.reference is not None:
            self.reference = prepare_fsdp(self.reference, self.accelerator)
        elif self.reference is not None:
            self.reference.to(args.device)
        self.kl = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self.scale = RunningScale(torch.zeros(3, dtype=torch.float64, device=args.device))
        self.rollout: Rollout | None = None
        self._substep = 0  # micro-batches since the last optimizer step
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}  # name: sum and count, this process

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> tuple[torch.nn.Module, DataLoader]:
        prepared = super()._prepare_for_training(*arguments, **keywords)
        make_root(self.model, "no_pass")
        return prepared

    # ---- data: row numbers, in blocks that belong to one rollout

    def get_train_dataloader(self) -> DataLoader:
        args, rows = self.args, range(len(self.train_dataset))
        repeats = args.steps_per_rollout * args.gradient_accumulation_steps
        blocks = PromptBlocks(len(rows), args.answers_per_rollout * args.world_size, repeats, args.seed, self._epoch)
        steps = len(blocks) // repeats // (args.answers_per_rollout * args.world_size) * args.steps_per_rollout
        self._steps_per_epoch = steps
        return self._get_dataloader(rows, "Training", args.answers_per_rollout, lambda _: blocks, is_training=True)

    def _epoch(self) -> int:
        return self.state.global_step // self._steps_per_epoch

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        rows = range(len(self.eval_dataset))
        return self._get_dataloader(rows, "Evaluation", self.args.eval_batch_size, self._get_eval_sampler)

    # ---- learning

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **keywords)
        self._substep = (self._substep + 1) % self.args.gradient_accumulation_steps
        return loss

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A micro-batch of the rollout under way; a new rollout is made where that one has been learnt from."""
        args, step = self.args, self.state.global_step % self.args.steps_per_rollout
        if self.rollout is None or step == self._substep == 0:
            self.rollout = self._roll_out(inputs["rows"].tolist())
        number = step * args.gradient_accumulation_steps + self._substep
        return self.rollout.micro_batch(number, args.per_device_train_batch_size, args.gradient_accumulation_steps)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *arguments: Any, **keywords: Any
    ) -> torch.Tensor:
        """Clipped policy loss and clipped value loss, each a mean over the answer tokens of the whole mini-batch."""
        args, mask = self.args, inputs["mask"]
        log_probs, values = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            answer_length=mask.shape[1],
            temperature=args.temperature,
        )
        surrogate, clipped = policy_loss(log_probs, inputs["log_probs"], inputs["advantages"], args.cliprange)
        errors, values_clipped = value_loss(values, inputs["values"], inputs["returns"], args.cliprange_value)
        policy, value = (surrogate * mask).sum(), (errors * mask).sum()
        with torch.no_grad():
            drift = (inputs["log_probs"] - log_probs) * mask
            self._note(
                "train",
                mask.sum(),
                policy_loss=policy,
                value_loss=value,
                clip_fraction=(clipped * mask).sum(),
                value_clip_fraction=(values_clipped * mask).sum(),
                update_kl=((drift.exp() - 1 - drift) * mask).sum(),
            )
        # Processes average their gradients: what is divided by the tokens of all of them is taken times their number.
        return (policy + args.vf_coef * value) * (args.world_size / inputs["step_tokens"])

    # ---- rollouts

    @torch.no_grad()
    def _roll_out(self, rows: list[int]) -> Rollout:
        args, device = self.args, self.args.device
        number = self.state.global_step // args.steps_per_rollout
        generator = generator_for(device, args.seed, TRAINING, number, args.process_index)
        answers, scores = self._answer_and_score(self.train_dataset[rows], generator)
        log_probs, values, reference = self._judge(answers)
        # As a reward only k1 leads back: the gradient of a k3 penalty is that of KL(p, q) less that of KL(q, p), which
        # is nothing near the reference (docs/ppo.md has figures).
        penalty = kl_estimate(log_probs, reference, "k1")
        rewards = token_rewards(self._shaped(scores, answers.ended), penalty, answers.mask, self.kl.coef)
        advantages, returns = advantages_and_returns(rewards, values, answers.mask, args.gamma, args.lam)
        mean, deviation = mean_and_deviation(reduce(moments(advantages, answers.mask), "sum"))
        advantages = (advantages - mean) / (deviation + 1e-8) * answers.mask

        order = deal(answers.mask.sum(1), args.num_ppo_epochs, args.num_mini_batches, generator)
        lengths = answers.mask.sum(1)[order].view(args.num_ppo_epochs, args.num_mini_batches, -1)
        step_tokens = reduce(lengths.sum(2), "sum")
        kl = kl_estimate(log_probs, reference, args.kl_estimator) * answers.mask
        self._note_answers("train", answers, scores, kl)
        tokens = reduce(answers.query_mask.sum() + answers.mask.sum(), "sum")
        self.state.num_input_tokens_seen += int(tokens)  # what tokens per second are reckoned by
        learnt, missed = returns[answers.mask].var(), (returns - values)[answers.mask].var()
        self._note("train", 1, return_variance=learnt, unexplained_variance=missed, kl_coef=self.kl.coef)
        total_kl = reduce(torch.stack([kl.sum(), kl.new_tensor(len(kl))]), "sum")
        self.kl.update((total_kl[0] / total_kl[1]).item(), int(total_kl[1]))
        kept = (answers.queries, answers.query_mask, answers.tokens, answers.mask)
        return Rollout(*kept, log_probs, values, advantages, returns, order, step_tokens)

    def _answer_and_score(self, batch: dict[str, list], generator: torch.Generator) -> tuple[Answers, torch.Tensor]:
        """Sampled answers to the prompts of a batch of rows (columns), and their scores (functions, answers)."""
        args = self.args
        with self._generating() as policy:
            answers = sample_answers(
                policy,
                batch["prompt_ids"],
                args.max_completion_length,
                args.temperature,
                self.stops,
                self.processing_class.pad_token_id,
                generator,
            )
        texts = self.processing_class.batch_decode(answers.ids(), skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {name: values for name, values in batch.items() if name not in ("prompt", "prompt_ids")}
        columns["completion_ids"] = answers.ids()
        return answers, scores_of(self.reward_functions, batch["prompt"], completions, columns).to(args.device)

    @contextmanager
    def _generating(self) -> Iterator[PreTrainedModel]:
        """The policy, to be called without gradients in whatever precision it is trained in."""
        whole, training, accelerator = self.actor_critic, self.actor_critic.training, self.accelerator
        # FSDP2 gathers weights in half precision itself.
        precision = nullcontext() if accelerator.is_fsdp2 else accelerator.autocast()
        whole.eval()  # with gradient checkpointing a model in training keeps no cache
        try:
            with torch.no_grad(), precision, whole_weights(self, whole.policy):
                yield whole.policy
        finally:
            whole.train(training)

    def _judge(self, answers: Answers, with_values: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, values and the reference's log-probabilities of the answers' tokens, N T each.

        The log-probabilities are those that came with the samples, but computed anew in half precision, where a step
        with a cache and a pass over the whole answer round differently. In passes of the evaluation's batch size,
        answers of like length together.
        """
        anew = self.args.bf16 or self.args.fp16 or self.actor_critic.policy.dtype != torch.float32
        temperature = self.args.temperature
        found = torch.zeros(3, *answers.tokens.shape, device=answers.tokens.device)
        found[0] = answers.log_probs
        order = (answers.mask.sum(1) + answers.query_mask.sum(1)).argsort(stable=True)
        with self._generating() as policy:
            for rows in order.split(self.args.eval_batch_size):
                ids, mask, width = cut(answers, rows)
                if anew or with_values:
                    log_probs, values = self.actor_critic(ids, mask, width, temperature if anew else None)
                    found[1, rows, :width] = values
                    found[0, rows, :width] = log_probs if anew else found[0, rows, :width]
                with policy.disable_adapter() if self.reference is None else nullcontext():
                    reference = policy if self.reference is None else self.reference
                    found[2, rows, :width] = answer_log_probs(reference, ids, mask, width, temperature)
        return tuple(found * answers.mask)

    def _shaped(self, scores: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        """The reward of each answer, of what each function says (functions, answers): summed, normalised, clipped, and
        less the penalty for an answer that did not end."""
        total = scores.sum(0)
        if self.args.normalize_rewards:
            self.scale.add(reduce(moments(total, torch.ones_like(total)), "sum"))
            total = self.scale.normalised(total)
        if self.args.reward_clip is not None:
            total = total.clamp(-self.args.reward_clip, self.args.reward_clip)
        return total - (self.args.missing_eos_penalty or 0.0) * ~ended

    # ---- evaluation

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *others: Any, **more: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Answers held-out prompts, with the same random numbers each time. The loss is the negative of what is sought:
        the reward less the KL penalty."""
        rows = inputs["rows"].tolist()
        generator = generator_for(self.args.device, self.args.seed, EVALUATION, rows[0])
        answers, scores = self._answer_and_score(self.eval_dataset[rows], generator)
        log_probs, _, reference = self._judge(answers, with_values=False)
        kl = kl_estimate(log_probs, reference, self.args.kl_estimator) * answers.mask
        self._note_answers("eval", answers, scores, kl)
        return -(scores.sum(0) - self.kl.coef * kl.sum(1)).mean(), None, None

    # ---- logs

    def _note_answers(self, mode: str, answers: Answers, scores: torch.Tensor, kl: torch.Tensor) -> None:
        """Take note of the answers' mean reward, KL to the reference, length, entropy and share that ended."""
        lengths = answers.mask.sum(1)
        named = {
            "reward": scores.sum(0),
            "kl": kl.sum(1),
            "length": lengths,
            "entropy": answers.entropy.sum(1) / lengths,
            "ended": answers.ended,
        }
        if len(scores) > 1:
            names = [getattr(function, "__name__", repr(function)) for function in self.reward_functions]
            named |= {f"reward/{name}": own for name, own in zip(names, scores, strict=True)}
        table = torch.stack([column.float() for column in named.values()], dim=1)  # answers, names
        if mode == "eval":  # where the last batch is filled up with rows that have been counted
            table = self.accelerator.gather_for_metrics(table)
        self._note(mode, len(table), **dict(zip(named, table.sum(0), strict=True)))

    def _note(self, mode: str, count: torch.Tensor | int, **sums: torch.Tensor | float) -> None:
        """Add to what the next log entry gives the means of."""
        for name, value in sums.items():
            pair = torch.stack([torch.as_tensor(part, dtype=torch.float64) for part in (value, count)])
            before = self._sums[mode].get(name)
            self._sums[mode][name] = pair if before is None else before + pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode, prefix = ("eval", "eval_") if "eval_loss" in logs else ("train", "")
        if self._sums[mode]:
            totals = reduce(torch.stack(list(self._sums[mode].values())).to(self.args.device), "sum").cpu()  # names, 2
            means = (totals[:, 0] / totals[:, 1]).tolist()
            logs |= {prefix + name: mean for name, mean in zip(self._sums[mode], means, strict=True)}
            self._sums[mode] = {}
        if logs.get("return_variance"):
            logs["explained_variance"] = 1 - logs["unexplained_variance"] / logs["return_variance"]
        super().log(logs, start_time)

    # ---- checkpoints: the policy as `from_pretrained` opens it, the critic beside it, and the rollout under way

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # which save all weights
            whole = self.actor_critic.state_dict()
            critic = {name: part.contiguous() for name, part in whole.items() if not name.startswith("policy.")}
            save_file(critic, folder / CRITIC)
        kept = {f"sums.{name}": pair for name, pair in self._sums["train"].items()}
        kept |= {"kl_coef": torch.tensor(self.kl.coef, dtype=torch.float64), "scale": self.scale.sums}
        if self.state.global_step % self.args.steps_per_rollout and self.rollout is not None:
            kept |= {f"rollout.{name}": part.contiguous() for name, part in vars(self.rollout).items()}
        save_file({name: part.cpu() for name, part in kept.items()}, folder / state_file(self.args.process_index))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        own = Path(checkpoint) / state_file(self.args.process_index)
        if len(list(Path(checkpoint).glob(state_file("*")))) != self.args.world_size:
            print_main("another number of processes than before: the rollout under way is made anew")
            kept = load_file(Path(checkpoint) / state_file(0))
            kept = {name: kept[name] for name in ("kl_coef", "scale")}
        else:
            kept = load_file(own)
        kept = {name: part.to(self.args.device) for name, part in kept.items()}
        self.kl.coef, self.scale.sums = kept.pop("kl_coef").item(), kept.pop("scale")
        self._sums["train"] = {name.removeprefix("sums."): kept[name] for name in kept if name.startswith("sums.")}
        parts = {name.removeprefix("rollout."): kept[name] for name in kept if name.startswith("rollout.")}
        self.rollout = Rollout(**parts) if parts else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with self._policy_alone():
            super()._load_from_checkpoint(resume_from_checkpoint, self.actor_critic.policy)
        lacking = self.actor_critic.load_state_dict(load_file(Path(resume_from_checkpoint) / CRITIC), strict=False)
        assert not lacking.unexpected_keys, lacking

    def _load_best_model(self) -> None:
        with nullcontext() if self.is_fsdp_enabled else self._policy_alone():
            super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict is not None:
            own = "policy."
            state_dict = {name[len(own) :]: part for name, part in state_dict.items() if name.startswith(own)}
        with self._policy_alone():
            super()._save(output_dir, state_dict)

    @contextmanager
    def _policy_alone(self) -> Iterator[None]:
        """Trainer's own ways of saving and loading, which know one model, on the policy."""
        whole, self.model = self.model, self.actor_critic.policy
        try:
            yield
        finally:
            self.model = whole


def state_file(process: int | str) -> str:
    """Where a process keeps its part of the rollout under way, in a checkpoint."""
    return f"rollout_{process}.safetensors"


def cut(answers: Answers, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids and mask (int) of some answers with their prompts, cut to the longest prompt and answer among them, and the
    width of the answers."""
    prompt, width = int(answers.query_mask[rows].sum(1).max()), int(answers.mask[rows].sum(1).max())
    ids = torch.cat([answers.queries[rows, -prompt:], answers.tokens[rows, :width]], dim=1)
    mask = torch.cat([answers.query_mask[rows, -prompt:], answers.mask[rows, :width]], dim=1)
    return ids, mask.long(), width


def with_ids(rows: Dataset, tokenizer: PreTrainedTokenizerBase, room: int) -> Dataset:
    """The rows whose prompt takes at most `room` tokens, and these as `prompt_ids`. UserError where there are none."""
    if room < 1:
        raise UserError("max_completion_length leaves no room for a prompt in the model's context; make it smaller")

    def encode(row: dict) -> dict[str, list[int]]:
        return {"prompt_ids": encode_chat(tokenizer, row["prompt"], add_generation_prompt=True)[0]}

    kept = rows.map(encode).filter(lambda row: len(row["prompt_ids"]) <= room)
    if len(kept) < len(rows):
        print_main(f"{len(rows) - len(kept):,} of {len(rows):,} prompts are longer than {room} tokens and left out")
    if not len(kept):
        raise UserError(f"no prompt of {len(rows)} takes at most {room} tokens; make max_completion_length smaller")
    return kept
