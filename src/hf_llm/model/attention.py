"""Attention: each token gathers from itself and the tokens before it. This file travels with the weights.

Shapes at line ends:
    B batch   T tokens   D hidden_size   H query heads   K key/value heads   A head_dim   S tokens seen, cached ones too
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_hf_llm import HfLlmConfig
from .norms import NORMS
from .positions import rotate


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention step by step, for `attn_implementation="eager"`: the one that also returns the attention weights."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # B H S A
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # B H S A
    scores = query @ key.transpose(2, 3) * scaling  # B H T S
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # B T H A, B H T S


class HfLlmAttention(nn.Module):
    """Each token looks at itself and the tokens before it (https://arxiv.org/abs/1706.03762, grouped: 2305.13245)."""

    def __init__(self, config: HfLlmConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True

        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.o_proj.initializer_scale = config.residual_scale
        # Normed queries and keys keep the scores bounded, so that large learning rates stay stable (2302.05442).
        norm = NORMS[config.norm_type]
        self.q_norm = norm(self.head_dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,  # B T D
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,  # B 1 T A, twice; None if nothing is turned
        attention_mask: torch.Tensor | None,
        layer_idx: int,  # among all layers, which may share this module
        past_key_values: Cache | None = None,
        cache_arguments: dict | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(by_head)).transpose(1, 2)  # B H T A
        key = self.k_norm(self.k_proj(hidden_states).view(by_head)).transpose(1, 2)  # B K T A
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)  # B K T A
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, layer_idx, **(cache_arguments or {}))  # B K S A

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # B T H A
        return self.o_proj(attended.flatten(2)), weights  # B T D
