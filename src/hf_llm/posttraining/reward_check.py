"""Notice rewards that do not tell completions apart: there is nothing to train on, and every step changes nothing."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.posttraining.reward_functions import CheckedReward, RewardFunction

LOGS_BEFORE_WARNING = 5  # log entries of training in a row in which no reward differed


class ConstantRewardWarning(TrainerCallback):
    """Warn where the rewards of all completions that are compared are the same.

    In GRPO and RLOO the completions of one prompt are compared, in PPO all completions. `trainer.reward_warning` holds
    the warning where no step of the training had different rewards.
    """

    def __init__(self, trainer: Trainer, functions: list[RewardFunction]):
        self.trainer = trainer
        self.functions = functions
        self.entries = 0
        self.constant_entries = 0
        self.constant_in_a_row = 0
        self.has_warned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        if not logs or "reward" not in logs:  # an entry of an evaluation, or of the whole training
            return
        is_constant = self._is_constant(logs)
        self.entries += 1
        self.constant_entries += is_constant
        self.constant_in_a_row = self.constant_in_a_row + 1 if is_constant else 0
        if self.constant_in_a_row == LOGS_BEFORE_WARNING and not self.has_warned:
            self.has_warned = True
            print_main(f"\n*** WARNING: {self._describe(self.constant_in_a_row)}\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        if self.entries and self.constant_entries == self.entries:
            self.trainer.reward_warning = self._describe(self.entries)
            if not self.has_warned:
                print_main(f"\n*** WARNING: {self.trainer.reward_warning}\n")

    def _is_constant(self, logs: dict[str, float]) -> bool:
        """Whether no completions that are compared had different rewards since the last entry of the log."""
        if "frac_reward_zero_std" in logs:  # GRPO, RLOO: the share of prompts whose completions have one reward
            return logs["frac_reward_zero_std"] >= 1
        is_constant = all(
            isinstance(function, CheckedReward) and function.lowest == function.highest for function in self.functions
        )
        for function in self.functions:
            if isinstance(function, CheckedReward):
                function.forget()
        return is_constant

    def _describe(self, entries: int) -> str:
        names = ", ".join(function.__name__ for function in self.functions)
        return (
            f"in {entries} log entries the reward ({names}) was the same for all completions that are compared, so "
            "there was nothing to train on; see what the function returns for completions like the model's, raise "
            "temperature, or start from a model that is sometimes right"
        )
