"""The settings of PPO: those of a Trainer, and its own."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class PPOConfig(TrainingArguments):
    """TrainingArguments with the settings of PPO.

    A rollout samples `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` completions in each
    process, and is trained on in `num_ppo_epochs * num_mini_batches` optimizer steps.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The learning rate of policy and critic."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over the completions of a rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in each pass."})
    max_completion_length: int = field(default=128, metadata={"help": "The largest number of tokens of a completion."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "The largest number of tokens of prompt and completion; left out, the model's context."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "The temperature at which completions are sampled and scored."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "Reward deducted for each nat of KL to the reference."})
    kl_target: float | None = field(
        default=None, metadata={"help": "KL in nats per completion that kl_coef is steered towards."}
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Number of completions in which kl_coef changes by at most a fifth."}
    )
    kl_estimator: Literal["k1", "k3"] = field(
        default="k1",
        metadata={"help": "Estimator of the KL that is logged and that steers kl_coef (k3 is never negative)."},
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of a token's reward for each token before it."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    cliprange: float = field(
        default=0.2, metadata={"help": "How far the probability ratio may move and still lower the loss."}
    )
    cliprange_value: float = field(
        default=0.2, metadata={"help": "How far a value may move and still lower the loss, in units of the reward."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    critic: Literal["head", "separate"] | None = field(
        default=None,
        metadata={
            "help": "separate: values from a copy of the reward model; head: from the policy's own hidden states, in "
            "less memory; left out: separate, but head where adapters are trained."
        },
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Deducted from the score of a completion without an end token."}
    )
    reward_clip: float | None = field(default=None, metadata={"help": "Scores are clipped to plus and minus this."})
    normalize_rewards: bool = field(
        default=False,
        metadata={"help": "Subtract the running mean of all scores from each, and divide by their running deviation."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep this false: reward functions see every column."}
    )
    eval_on_start: bool = field(default=True, metadata={"help": "Measure the reward before training too."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_ppo_epochs", "num_mini_batches", "max_completion_length", "kl_horizon"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("temperature", "cliprange", "cliprange_value"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("gamma", "lam"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1")
        for name in ("kl_coef", "vf_coef", "missing_eos_penalty"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        for name in ("kl_target", "reward_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0, or left out")

    @property
    def completions_per_rollout(self) -> int:
        """Completions of a rollout, in one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps on one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches
