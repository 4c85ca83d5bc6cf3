"""A policy together with what values its states, as one module: PPO trains both with one optimizer."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_llm.posttraining.ppo.losses import token_log_probs


class ActorCritic(nn.Module):
    """`policy`, and either a linear value head on its last hidden states or a `critic` of its own.

    The head starts at zero, so that the policy is not disturbed by what it does not know yet. The critic is a sequence
    classifier with one score, of which every position is used.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel | None = None):
        super().__init__()
        self.policy, self.critic = policy, critic
        self.value_head = None
        if critic is None:
            self.value_head = nn.Linear(policy.config.hidden_size, 1, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        for module in self.modules():  # the old and the new probability of a token must differ by the update alone
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.0

    @property
    def config(self) -> PreTrainedConfig:
        """The policy's."""
        return self.policy.config

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of both models' layers: what FSDP gathers at a time."""
        models = filter(None, (self.policy, self.critic))
        return sorted({name for model in models for name in model._no_split_modules or ()})

    def no_pass(self) -> None:
        """Nothing (`whole_weights.make_root`)."""

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute activations of both in the backward pass."""
        for model in filter(None, (self.policy, self.critic)):
            model.activation_checkpointing_enable(**settings)

    def forward(
        self,
        input_ids: torch.LongTensor,  # B P+T, prompts padded on the left, answers on the right
        attention_mask: torch.LongTensor,  # B P+T
        answer_length: int,  # T
        temperature: float | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Log-probabilities of the answers' tokens and the values of the states before them, B T each.

        Without a `temperature` the values alone, which spares the vocabulary's logits, or the policy altogether.
        """
        inputs = model_inputs(input_ids, attention_mask)
        before = slice(-answer_length - 1, -1)  # the positions that the answer's tokens are predicted at
        log_probs = states = None
        if temperature is not None or self.critic is None:
            kept = answer_length + 1 if temperature is not None else 1
            outputs = self.policy(**inputs, logits_to_keep=kept, output_hidden_states=self.critic is None)
            states = outputs.hidden_states[-1] if self.critic is None else None
        if temperature is not None:
            log_probs = token_log_probs(outputs.logits[:, before], input_ids[:, -answer_length:], temperature)
        if self.critic is None:
            values = self.value_head(states[:, before].to(self.value_head.weight.dtype))
        else:
            backbone = getattr(self.critic, self.critic.base_model_prefix)
            values = self.critic.score(backbone(**inputs).last_hidden_state[:, before])
        return log_probs, values.squeeze(-1).to(torch.float32, copy=True)  # FSDP2 warns of what may be a view


def model_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    """What a language model takes to read whole rows, padded on the left or on the right."""
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": positions(attention_mask),
        "use_cache": False,
    }


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position of each token in its row, padding on the left not counted."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def answer_log_probs(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, answer_length: int, temperature: float
) -> torch.Tensor:
    """Log-probabilities (B T) of the answers' tokens under a plain language model, such as the reference."""
    outputs = model(**model_inputs(input_ids, attention_mask), logits_to_keep=answer_length + 1)
    return token_log_probs(outputs.logits[:, -answer_length - 1 : -1], input_ids[:, -answer_length:], temperature)
