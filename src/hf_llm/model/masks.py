"""Who sees whom: the masks of each kind of attention layer, and the caches that these kinds keep.

Full and sliding attention are transformers' own. The others narrow full attention down by a function of where query
and key stand in their document. This file travels with the weights.

Shapes at line ends:
    B batch   T tokens   D hidden_size   H query heads   K key/value heads   A head_dim   S tokens seen, cached ones too
"""

from collections.abc import Callable

import torch
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    STATIC_LAYER_TYPE_MAPPING,
    Cache,
    DynamicLayer,
    StaticLayer,
)
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from .configuration_hf_llm import HfLlmConfig
from .positions import alibi_bias, rotate


def strided(config: HfLlmConfig, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The own block and the one before it, and every n-th block before (https://arxiv.org/abs/1904.10509, by block, as
    its kernels have it: a kernel skips whole blocks that nobody sees)."""
    blocks_back = query // config.sparse_block_size - key // config.sparse_block_size
    return (blocks_back <= 1) | (blocks_back % config.sparse_stride == 0)


def local_global(config: HfLlmConfig, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A window; and global tokens, one in n, which see all and are seen by all (https://arxiv.org/abs/2004.05150)."""
    every = config.global_attention_every
    return (query - key < config.sliding_window) | (query % every == 0) | (key % every == 0)


def sinks(config: HfLlmConfig, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A window, and the first tokens of the document (https://arxiv.org/abs/2309.17453)."""
    return (query - key < config.sliding_window) | (key < config.num_sink_tokens)


PATTERNS = {"strided_attention": strided, "local_global_attention": local_global, "sink_attention": sinks}


def make_masks(
    config: HfLlmConfig,
    inputs_embeds: torch.Tensor,  # B T D
    attention_mask: torch.Tensor | None,  # B S, or B 1 T S ready made
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,  # B T
) -> dict[str, torch.Tensor | None]:
    """The mask of every kind of layer in the model, in the form its attention implementation takes. With ALiBi a mask
    carries the bias too, except FlexAttention's (`flex_position_bias`)."""
    arguments = (config, inputs_embeds, attention_mask, past_key_values, position_ids)
    masks = {kind: make_mask(kind, *arguments) for kind in dict.fromkeys(config.layer_types)}
    if config.positions == "alibi" and config._attn_implementation in ("sdpa", "eager"):
        masks = {kind: add_alibi(mask, kind, *arguments) for kind, mask in masks.items()}
    return masks


def make_mask(kind: str, config, inputs_embeds, attention_mask, past_key_values, position_ids) -> torch.Tensor | None:
    """The mask of layers of one kind."""
    layer_idx = config.layer_types.index(kind)
    cached = past_key_values.layers[layer_idx] if past_key_values is not None and past_key_values.layers else None
    if isinstance(cached, HfLlmSinkLayer) and cached.dropped:
        return mask_after_dropping(config, inputs_embeds, attention_mask, cached)
    arguments = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
        "layer_idx": layer_idx,
        "allow_is_causal_skip": config.positions != "alibi",
    }
    if kind == "sliding_attention":
        return create_sliding_window_causal_mask(**arguments)
    if kind in PATTERNS:
        start = left_padding(attention_mask, inputs_embeds)
        arguments["and_mask_function"] = overlay(PATTERNS[kind], config, start)
    return create_causal_mask(**arguments)


def overlay(pattern: Callable, config: HfLlmConfig, start: torch.Tensor) -> Callable:
    """A pattern as transformers' mask functions have it, positions counted from each row's first token."""

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        return pattern(config, q_idx - start[batch_idx], kv_idx - start[batch_idx])

    return inner_mask


def left_padding(attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """How many tokens of padding come first in each row, B."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return torch.zeros(inputs_embeds.shape[0], dtype=torch.long, device=inputs_embeds.device)
    return (attention_mask.cumsum(dim=-1) == 0).sum(dim=-1).to(inputs_embeds.device)


def places(
    inputs_embeds: torch.Tensor, past_key_values: Cache | None, layer_idx: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of queries (T) and keys (S) in the stream of tokens, as their cache layer counts them."""
    tokens, device = inputs_embeds.shape[1], inputs_embeds.device
    if past_key_values is None:
        seen, (length, offset) = 0, (tokens, 0)
    else:
        seen = past_key_values.get_query_offset(layer_idx)
        length, offset = past_key_values.get_mask_sizes(tokens, layer_idx)
    return torch.arange(tokens, device=device) + seen, torch.arange(length, device=device) + offset


def add_alibi(mask, kind, config, inputs_embeds, attention_mask, past_key_values, position_ids) -> torch.Tensor:
    """One additive mask, B H T S, of who sees whom and by how much less from afar; made once for all layers."""
    query, key = places(inputs_embeds, past_key_values, config.layer_types.index(kind))
    bias = alibi_bias(config.num_attention_heads, query, key).to(inputs_embeds.dtype)
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return mask + bias


def flex_position_bias(kind, config, inputs_embeds, past_key_values) -> torch.Tensor | None:
    """ALiBi's bias for FlexAttention, B H T S, which adds it to the scores itself; None for other positions."""
    if config.positions != "alibi" or config._attn_implementation != "flex_attention":
        return None
    if inputs_embeds.device.type == "cpu":  # PyTorch 2.13 makes C++ of it that does not compile
        raise ValueError("positions=alibi cannot run on flex_attention on a CPU; use sdpa or eager")
    query, key = places(inputs_embeds, past_key_values, config.layer_types.index(kind))
    return alibi_bias(config.num_attention_heads, query, key).expand(inputs_embeds.shape[0], -1, -1, -1)


class HfLlmSinkLayer(DynamicLayer):
    """The cache of a layer with attention sinks: the first tokens and a window, so that a stream of any length takes
    constant memory. `dropped` tokens between the two are gone."""

    _layer_type = "sink_attention"  # transformers finds the class by it
    is_croppable = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = self.dropped = 0

    def update(
        self,
        key_states: torch.Tensor,  # B K T A
        value_states: torch.Tensor,  # B K T A
        num_sinks: int,
        window: int,
        start: torch.Tensor,  # B, tokens of padding before each row's first
        turn: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the new tokens may see, B K S A. `turn` is cosine and sine of the angle by which the first tokens
        have to move up, so that they are never further away than in training."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = torch.cat([self.keys, key_states], dim=-2)
        values = torch.cat([self.values, value_states], dim=-2)
        self.seen += key_states.shape[-2]
        seen_keys = keys
        if self.dropped and turn is not None:
            moved = rotate(keys[:, :, :num_sinks].float(), *turn).to(keys.dtype)
            seen_keys = torch.cat([moved, keys[:, :, num_sinks:]], dim=-2)
        self.keys, self.values = self.kept(keys, values, num_sinks, window, start)
        return seen_keys, values

    def kept(self, keys, values, num_sinks: int, window: int, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sinks and window of `keys` and `values`; all of them while there is nothing to drop."""
        length = keys.shape[-2]
        surplus = length - num_sinks - (window - 1)
        if surplus <= 0:
            return keys, values
        first = torch.zeros_like(start) if self.dropped else start
        if not self.dropped and int(start.max()) + num_sinks > length:
            return keys, values  # a row that is mostly padding has yet to get its first tokens
        rows = first[:, None] + torch.arange(num_sinks, device=first.device)  # B sinks
        self.dropped += surplus

        def with_gap(x: torch.Tensor) -> torch.Tensor:
            sinks = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
            return torch.cat([sinks, x[:, :, length - window + 1 :]], dim=2)

        return with_gap(keys), with_gap(values)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.keys.shape[-2] if self.is_initialized else 0) + query_length, 0

    def reset(self) -> None:
        super().reset()
        self.seen = self.dropped = 0


def mask_after_dropping(
    config: HfLlmConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cached: HfLlmSinkLayer
) -> torch.Tensor:
    """The mask of a cache that holds the first tokens, a gap, and a window."""
    start, num_sinks = left_padding(attention_mask, inputs_embeds), config.num_sink_tokens

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        query, key = q_idx - start[batch_idx], kv_idx + cached_gap - start[batch_idx]
        # A first token still inside the window is in the cache twice; the one among the sinks counts.
        in_window = (key >= num_sinks) & (key <= query) & (query - key < config.sliding_window)
        return (kv_idx < num_sinks) | in_window

    cached_gap, tokens = cached.dropped, inputs_embeds.shape[1]
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=inputs_embeds.shape[0],
        q_length=tokens,
        kv_length=cached.get_mask_sizes(tokens)[0],
        q_offset=cached.seen,
        kv_offset=0,
        mask_function=inner_mask,
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=inputs_embeds.dtype,
        device=inputs_embeds.device,
        config=config,
        use_vmap=True,
    )


# Sparse layers cache what full ones do; a static cache is bounded by its own size, so sinks need no dropping there.
DYNAMIC_LAYER_TYPE_MAPPING.update(strided_attention=DynamicLayer, local_global_attention=DynamicLayer)
STATIC_LAYER_TYPE_MAPPING.update(dict.fromkeys(PATTERNS, StaticLayer))
