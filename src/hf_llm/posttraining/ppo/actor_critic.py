"""A policy and its value function (head or critic) as one module: PPO trains both with one optimizer."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_llm.posttraining.ppo.losses import token_log_probs


class ActorCritic(nn.Module):
    """`policy`, with either a linear value head on its last hidden states or a separate model as `critic`.

    The head starts at zero, so that an untrained head does not disturb the policy. The critic is a sequence classifier
    with one score, of which every position is used.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel | None = None):
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.value_head = None
        if critic is None:
            self.value_head = nn.Linear(policy.config.hidden_size, 1, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

        # The old and the new probability of a token must differ by the update alone.
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if "attention_dropout" in vars(module):
                module.attention_dropout = 0.0

    @property
    def config(self) -> PreTrainedConfig:
        """The policy's config."""
        return self.policy.config

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of both models' layers: what FSDP gathers at a time."""
        names: set[str] = set()
        for model in self._models():
            names.update(model._no_split_modules or ())
        return sorted(names)

    def _models(self) -> list[PreTrainedModel]:
        return [model for model in (self.policy, self.critic) if model is not None]

    def do_nothing(self) -> None:
        """Do nothing: a method for FSDP2 to wrap (`hf_llm.parallel.gather_parameters.mark_fsdp_root`)."""

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute activations of both models in the backward pass."""
        for model in self._models():
            model.activation_checkpointing_enable(**settings)

    def forward(
        self,
        input_ids: torch.LongTensor,  # B P+T, prompts padded on the left, completions on the right
        attention_mask: torch.LongTensor,  # B P+T
        completion_length: int,  # T
        temperature: float | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return log-probabilities of the completions' tokens, and values of the states before them, B T each.

        Without a `temperature` only the values are computed: no logits, and with a critic no pass of the policy at all.
        """
        inputs = model_inputs(input_ids, attention_mask)
        states_before = slice(-completion_length - 1, -1)  # the positions that predict the completion's tokens
        needs_log_probs = temperature is not None
        uses_head = self.critic is None

        if needs_log_probs or uses_head:
            logits_kept = completion_length + 1 if needs_log_probs else 1  # 0 would keep all
            outputs = self.policy(**inputs, logits_to_keep=logits_kept, output_hidden_states=uses_head)

        log_probs = None
        if needs_log_probs:
            tokens = input_ids[:, -completion_length:]
            log_probs = token_log_probs(outputs.logits[:, states_before], tokens, temperature)

        if uses_head:
            states = outputs.hidden_states[-1][:, states_before]  # B T D
            values = self.value_head(states.to(self.value_head.weight.dtype))
        else:
            backbone = getattr(self.critic, self.critic.base_model_prefix)
            states = backbone(**inputs).last_hidden_state[:, states_before]
            values = self.critic.score(states)
        return log_probs, values.squeeze(-1).to(torch.float32, copy=True)  # FSDP2 warns of what may be a view


def model_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    """Return the arguments with which a language model reads whole rows, padded on the left or on the right."""
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids(attention_mask),
        "use_cache": False,
    }


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its row, padding on the left not counted."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def completion_log_probs(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int, temperature: float
) -> torch.Tensor:
    """Return log-probabilities (B T) of the completions' tokens under a plain language model, as the reference is."""
    outputs = model(**model_inputs(input_ids, attention_mask), logits_to_keep=completion_length + 1)
    tokens = input_ids[:, -completion_length:]
    return token_log_probs(outputs.logits[:, -completion_length - 1 : -1], tokens, temperature)
