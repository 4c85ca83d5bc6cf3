"""How a token knows its position: rotary angles and ALiBi's slopes. This file travels with the weights.

Shapes at line ends:
    B batch   T tokens   H query heads   A head_dim   S tokens seen, cached ones too
"""

import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration_hf_llm import HfLlmConfig


class HfLlmRotaryEmbedding(nn.Module):
    """Cosine and sine by which queries and keys are rotated according to their position
    (https://arxiv.org/abs/2104.09864).

    `rope_parameters` scales them: linear (https://arxiv.org/abs/2306.15595), dynamic, yarn
    (https://arxiv.org/abs/2309.00071), llama3, and whatever else transformers has.
    """

    def __init__(self, config: HfLlmConfig):
        super().__init__()
        assert config.rope_parameters is not None  # the config has filled them in
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings

        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = compute(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)  # A/2
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)  # A/2

    @staticmethod
    def compute_default_rope_parameters(config: HfLlmConfig, **kwargs: Any) -> tuple[torch.Tensor, float]:
        """Return the inverse frequencies of plain rotary positions and a scale of one (transformers calls this by
        name)."""
        assert config.head_dim is not None and config.rope_parameters is not None
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim  # A/2
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine, B T A, of `position_ids` (B T), in the dtype of `x`."""
        cos, sin = self.angles(position_ids)  # B T A
        cos = cos * self.attention_scaling
        sin = sin * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of the angles at `positions` (any shape, an A added at its end), in float32."""
        # Angles stay float32 whatever the model's dtype: bfloat16 cannot tell position 1000 from 1003.
        angles = positions[..., None].float() * self.inv_freq.float()  # B T A/2
        angles = torch.cat((angles, angles), dim=-1)  # B T A
        return angles.cos(), angles.sin()


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x[i], x[i + A/2]) of every head by its position's angle; the shape of `x` stays."""
    first, second = x.chunk(2, dim=-1)  # B H T A/2
    quarter_turn = torch.cat((-second, first), dim=-1)  # B H T A
    return x * cos + quarter_turn * sin


def alibi_slopes(heads: int) -> torch.Tensor:
    """Return by how much each head's score falls per token of distance (https://arxiv.org/abs/2108.12409, section 3).

    That is a geometric series from 2^(-8/n). Where the number of heads is not a power of two, every other slope of
    twice as many heads is added.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 / power * torch.arange(1, power + 1))
    slopes_between = 2.0 ** (-4 / power * torch.arange(1, 2 * (heads - power) + 1, 2))
    return torch.cat([slopes, slopes_between])  # H


def alibi_bias(heads: int, query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
    """Return what ALiBi adds to the attention scores, 1 H T S, in float32.

    Only distances count, so places in the cache (T of queries, S of keys) serve as positions, whatever is padded or
    packed.
    """
    distances = (query_positions[:, None] - key_positions).float()  # T S
    slopes = alibi_slopes(heads).to(distances.device)  # H
    return -slopes[None, :, None, None] * distances
