"""Attention: each token gathers from itself and the tokens before it. This file travels with the weights.

Shapes at line ends:
    B batch   T tokens   D hidden_size   H query heads   K key/value heads   A head_dim   S tokens seen, cached ones too
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hf_llm import HfLlmConfig
from .norms import NORMS
from .positions import apply_rotary


def eager_attention_forward(
    module: "HfLlmAttention",
    query: torch.Tensor,  # B H T A
    key: torch.Tensor,  # B K S A
    value: torch.Tensor,  # B K S A
    attention_mask: torch.Tensor | None,  # B 1 T S, added to the scores
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention step by step, for `attn_implementation="eager"`: the one that also returns the attention weights."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # B H S A
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # B H S A
    scores = query @ key.transpose(2, 3) * scaling  # B H T S
    if attention_mask is not None:
        scores = scores + attention_mask

    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)  # B H T S
    weights = F.dropout(weights, p=dropout, training=module.training)
    attended = (weights @ value).transpose(1, 2).contiguous()  # B T H A
    return attended, weights


class HfLlmAttention(nn.Module):
    """Each token looks at itself and the tokens before it (https://arxiv.org/abs/1706.03762, grouped: 2305.13245)."""

    def __init__(self, config: HfLlmConfig, layer_idx: int):
        super().__init__()
        assert config.head_dim is not None and config.num_key_value_heads is not None  # the config has filled them in
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
        self.o_proj.initializer_scale = config.residual_scale  # pyright: ignore[reportArgumentType] - as in HfLlmMLP

        # Normed queries and keys keep the scores bounded, so that large learning rates stay stable (2302.05442).
        if config.use_qk_norm:
            norm = NORMS[config.norm_type]
            self.q_norm = norm(self.head_dim, config.rms_norm_eps)
            self.k_norm = norm(self.head_dim, config.rms_norm_eps)
        else:
            self.q_norm = nn.Identity()
            self.k_norm = nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,  # B T D
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,  # B 1 T A, twice; None if nothing is rotated
        attention_mask: torch.Tensor | None,
        layer_idx: int,  # among all layers, which may share this module
        past_key_values: Cache | None = None,
        cache_arguments: dict | None = None,
        **kwargs: Any,  # what the attention kernel reads: sliding_window, position_bias, cu_seq_lens_q ...
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what each token gathers, B T D, and the attention weights, B H T S, where the kernel gives them."""
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(by_head)  # B T H A
        key = self.k_proj(hidden_states).view(by_head)  # B T K A
        value = self.v_proj(hidden_states).view(by_head)  # B T K A

        query = self.q_norm(query).transpose(1, 2)  # B H T A
        key = self.k_norm(key).transpose(1, 2)  # B K T A
        value = value.transpose(1, 2)  # B K T A
        if position_embeddings is not None:
            cos, sin = position_embeddings
            query = apply_rotary(query, cos, sin)
            key = apply_rotary(key, cos, sin)

        if past_key_values is not None:
            cache_arguments = cache_arguments or {}
            key, value = past_key_values.update(key, value, layer_idx, **cache_arguments)  # B K S A

        implementation = self.config._attn_implementation or "eager"  # None only outside of a model
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attended, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # B T H A, B H T S
        return self.o_proj(attended.flatten(2)), weights  # B T D
