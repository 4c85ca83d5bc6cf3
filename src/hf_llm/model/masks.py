"""Who sees whom: the masks of each kind of attention layer, and the cache of sink attention.

Full and sliding attention are transformers' own. The other kinds are full attention with a pattern on top. This file
travels with the weights.

Order: the patterns; the mask of a kind; ALiBi, which adds a bias to masks; sink attention's cache and the mask over it.

Shapes at line ends:
    B batch   T tokens   D hidden_size   H query heads   K key/value heads   A head_dim   S tokens seen, cached ones too
"""

from collections.abc import Callable
from typing import TypeGuard

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
from .positions import alibi_bias, apply_rotary

# A pattern says which keys a query sees, by the positions of both in their document. The keys after the query are
# hidden by transformers' causal mask. One row per query, one column per key:
#
#     strided                   local-global              sink
#     blocks of 2, every 3rd    window 3, every 6th       window 3, 2 sinks
#
#     ■ · · · · · · · · ·       ■ · · · · · · · · ·       ■ · · · · · · · · ·
#     ■ ■ · · · · · · · ·       ■ ■ · · · · · · · ·       ■ ■ · · · · · · · ·
#     ■ ■ ■ · · · · · · ·       ■ ■ ■ · · · · · · ·       ■ ■ ■ · · · · · · ·
#     ■ ■ ■ ■ · · · · · ·       ■ ■ ■ ■ · · · · · ·       ■ ■ ■ ■ · · · · · ·
#     · · ■ ■ ■ · · · · ·       ■ · ■ ■ ■ · · · · ·       ■ ■ ■ ■ ■ · · · · ·
#     · · ■ ■ ■ ■ · · · ·       ■ · · ■ ■ ■ · · · ·       ■ ■ · ■ ■ ■ · · · ·
#     ■ ■ · · ■ ■ ■ · · ·       ■ ■ ■ ■ ■ ■ ■ · · ·       ■ ■ · · ■ ■ ■ · · ·
#     ■ ■ · · ■ ■ ■ ■ · ·       ■ · · · · ■ ■ ■ · ·       ■ ■ · · · ■ ■ ■ · ·
#     · · ■ ■ · · ■ ■ ■ ·       ■ · · · · · ■ ■ ■ ·       ■ ■ · · · · ■ ■ ■ ·
#     · · ■ ■ · · ■ ■ ■ ■       ■ · · · · · ■ ■ ■ ■       ■ ■ · · · · · ■ ■ ■


def strided_mask(config: HfLlmConfig, query_position: torch.Tensor, key_position: torch.Tensor) -> torch.Tensor:
    """See the query's own block, the one before it, and every n-th block before (https://arxiv.org/abs/1904.10509).

    The paper counts tokens; blocks of them are what its kernels work on, which skip a block that nobody sees.
    """
    assert config.sparse_block_size is not None and config.sparse_stride is not None  # the config has checked it
    blocks_back = query_position // config.sparse_block_size - key_position // config.sparse_block_size
    return (blocks_back <= 1) | (blocks_back % config.sparse_stride == 0)


def local_global_mask(config: HfLlmConfig, query_position: torch.Tensor, key_position: torch.Tensor) -> torch.Tensor:
    """See a window; and let one token in n see all and be seen by all (https://arxiv.org/abs/2004.05150)."""
    every = config.global_attention_every
    assert every is not None and config.sliding_window is not None
    is_in_window = query_position - key_position < config.sliding_window
    return is_in_window | (query_position % every == 0) | (key_position % every == 0)


def sink_mask(config: HfLlmConfig, query_position: torch.Tensor, key_position: torch.Tensor) -> torch.Tensor:
    """See a window, and the first tokens of the document (https://arxiv.org/abs/2309.17453)."""
    assert config.sliding_window is not None and config.num_sink_tokens is not None
    is_in_window = query_position - key_position < config.sliding_window
    return is_in_window | (key_position < config.num_sink_tokens)


# Kind of layer -> its pattern.
PATTERNS = {
    "strided_attention": strided_mask,
    "local_global_attention": local_global_mask,
    "sink_attention": sink_mask,
}


def make_masks(
    config: HfLlmConfig,
    inputs_embeds: torch.Tensor,  # B T D
    attention_mask: torch.Tensor | None,  # B S, or B 1 T S ready made
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,  # B T
) -> dict[str, torch.Tensor | None]:
    """Make the mask of every kind of layer in the model, in the form that its attention implementation takes.

    With ALiBi a mask carries the bias too, except FlexAttention's (`flex_position_bias`).
    """
    has_alibi_in_mask = config.positions == "alibi" and config._attn_implementation in ("sdpa", "eager")

    assert config.layer_types is not None  # the config has filled them in
    masks = {}
    for kind in dict.fromkeys(config.layer_types):
        mask = make_mask(kind, config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if has_alibi_in_mask:
            assert mask is not None  # make_mask lets no mask be skipped then
            mask = add_alibi(mask, kind, config, inputs_embeds, past_key_values)
        masks[kind] = mask
    return masks


def make_mask(
    kind: str,
    config: HfLlmConfig,
    inputs_embeds: torch.Tensor,  # B T D
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,  # B T
) -> torch.Tensor | None:
    """Make the mask of layers of one kind; None where the attention kernel needs none."""
    layer_idx = first_layer(config, kind)

    # A cache that has dropped tokens holds a token at another place than its position.
    if past_key_values is not None and past_key_values.layers:
        cache_layer = past_key_values.layers[layer_idx]
        if isinstance(cache_layer, HfLlmSinkLayer) and cache_layer.dropped:
            return mask_after_dropping(config, inputs_embeds, attention_mask, cache_layer)

    arguments = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
        "layer_idx": layer_idx,
        "allow_is_causal_skip": config.positions != "alibi",  # None is plain causal; ALiBi needs a mask to add to
    }
    if kind == "sliding_attention":
        return create_sliding_window_causal_mask(**arguments)
    if kind in PATTERNS:
        start = left_padding(attention_mask, inputs_embeds)
        arguments["and_mask_function"] = pattern_from_start(PATTERNS[kind], config, start)
    return create_causal_mask(**arguments)


def first_layer(config: HfLlmConfig, kind: str) -> int:
    """Return the first layer of a kind, whose cache stands for those of all."""
    assert config.layer_types is not None  # the config has filled them in
    return config.layer_types.index(kind)


def pattern_from_start(pattern: Callable, config: HfLlmConfig, start: torch.Tensor) -> Callable:
    """Return a pattern as one of transformers' mask functions, positions counted from each row's first token.

    `start`, B, is the padding before it.
    """

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        return pattern(config, q_idx - start[batch_idx], kv_idx - start[batch_idx])

    return inner_mask


def is_padding_mask(attention_mask: torch.Tensor | dict | None) -> TypeGuard[torch.Tensor]:
    """Whether a mask is B S, 1 for tokens and 0 for padding, rather than ready made."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def left_padding(attention_mask: torch.Tensor | dict | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Count the tokens of padding that come first in each row, B."""
    if not is_padding_mask(attention_mask):
        return torch.zeros(inputs_embeds.shape[0], dtype=torch.long, device=inputs_embeds.device)
    is_padding = attention_mask.cumsum(dim=-1) == 0  # B S
    return is_padding.sum(dim=-1).to(inputs_embeds.device)


def stream_positions(
    inputs_embeds: torch.Tensor, past_key_values: Cache | None, layer_idx: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of queries (T) and keys (S) in the stream of tokens, as their cache layer counts them."""
    num_queries = inputs_embeds.shape[1]
    num_keys = num_queries
    first_query = 0
    first_key = 0
    if past_key_values is not None:
        first_query = past_key_values.get_query_offset(layer_idx)
        num_keys, first_key = past_key_values.get_mask_sizes(num_queries, layer_idx)

    device = inputs_embeds.device
    queries = torch.arange(num_queries, device=device) + first_query
    keys = torch.arange(num_keys, device=device) + first_key
    return queries, keys


def add_alibi(
    mask: torch.Tensor,  # B 1 T S
    kind: str,
    config: HfLlmConfig,
    inputs_embeds: torch.Tensor,  # B T D
    past_key_values: Cache | None,
) -> torch.Tensor:
    """Return one additive mask, B H T S, of who sees whom and by how much less from afar; made once for all layers."""
    queries, keys = stream_positions(inputs_embeds, past_key_values, first_layer(config, kind))
    bias = alibi_bias(config.num_attention_heads, queries, keys).to(inputs_embeds.dtype)  # 1 H T S
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return mask + bias


def flex_position_bias(
    kind: str,
    config: HfLlmConfig,
    inputs_embeds: torch.Tensor,  # B T D
    past_key_values: Cache | None,
) -> torch.Tensor | None:
    """Return ALiBi's bias for FlexAttention, B H T S, which adds it to the scores itself; None for other positions.

    Raises ValueError on a CPU.
    """
    if config.positions != "alibi" or config._attn_implementation != "flex_attention":
        return None
    if inputs_embeds.device.type == "cpu":  # PyTorch 2.13 makes C++ of it that does not compile
        raise ValueError("positions=alibi cannot run on flex_attention on a CPU; use sdpa or eager")

    queries, keys = stream_positions(inputs_embeds, past_key_values, first_layer(config, kind))
    bias = alibi_bias(config.num_attention_heads, queries, keys)  # 1 H T S
    return bias.expand(inputs_embeds.shape[0], -1, -1, -1)


class HfLlmSinkLayer(DynamicLayer):
    """The cache of a layer with attention sinks: the first tokens and a window, so that a stream of any length takes
    constant memory. `seen` counts all tokens, `dropped` those between the two, which are gone."""

    _layer_type = "sink_attention"  # transformers finds the class by it
    is_croppable = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = 0
        self.dropped = 0

    def update(
        self,
        key_states: torch.Tensor,  # B K T A
        value_states: torch.Tensor,  # B K T A
        num_sinks: int,
        window: int,
        start: torch.Tensor,  # B, tokens of padding before each row's first
        sink_rotation: tuple[torch.Tensor, torch.Tensor] | None = None,  # A, twice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, and return all that the new tokens may see, B K S A.

        `sink_rotation` is cosine and sine of the angle by which the first tokens have to move up, so that they are
        never further away than in training.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        keys = torch.cat([self.keys, key_states], dim=-2)  # B K S A
        values = torch.cat([self.values, value_states], dim=-2)  # B K S A
        self.seen += key_states.shape[-2]

        seen_keys = keys
        if self.dropped and sink_rotation is not None:
            cos, sin = sink_rotation
            sinks = apply_rotary(keys[:, :, :num_sinks].float(), cos, sin).to(keys.dtype)
            seen_keys = torch.cat([sinks, keys[:, :, num_sinks:]], dim=-2)

        self.keys, self.values = self.drop_middle(keys, values, num_sinks, window, start)
        return seen_keys, values

    def drop_middle(
        self, keys: torch.Tensor, values: torch.Tensor, num_sinks: int, window: int, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sinks and window of `keys` and `values`, and count what was dropped between them; return all while
        there is nothing to drop."""
        length = keys.shape[-2]
        kept_window = window - 1  # the next token is the window's last
        surplus = length - num_sinks - kept_window
        if surplus <= 0:
            return keys, values

        first_sink = start  # B
        if self.dropped:
            first_sink = torch.zeros_like(start)  # the padding was dropped, too
        elif int(start.max()) + num_sinks > length:
            return keys, values  # a row that is mostly padding has yet to get its first tokens
        sink_rows = first_sink[:, None] + torch.arange(num_sinks, device=start.device)  # B sinks
        self.dropped += surplus

        def drop_from(x: torch.Tensor) -> torch.Tensor:
            index = sink_rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])  # B K sinks A
            return torch.cat([x.gather(2, index), x[:, :, length - kept_window :]], dim=2)

        return drop_from(keys), drop_from(values)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        cached = 0 if self.keys is None else self.keys.shape[-2]
        return cached + query_length, 0

    def reset(self) -> None:
        super().reset()
        self.seen = 0
        self.dropped = 0


def mask_after_dropping(
    config: HfLlmConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache_layer: HfLlmSinkLayer
) -> torch.Tensor:
    """Make the mask of a cache that holds the first tokens, a gap, and a window."""
    start = left_padding(attention_mask, inputs_embeds)  # B
    num_sinks = config.num_sink_tokens
    window = config.sliding_window
    assert num_sinks is not None and window is not None  # the config has checked it
    dropped = cache_layer.dropped
    num_queries = inputs_embeds.shape[1]

    def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
        query_position = q_idx - start[batch_idx]
        key_position = kv_idx + dropped - start[batch_idx]  # of a key of the window
        # A first token still inside the window is in the cache twice; the one among the sinks counts.
        is_in_window = (key_position <= query_position) & (query_position - key_position < window)
        return (kv_idx < num_sinks) | (is_in_window & (key_position >= num_sinks))

    make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
    return make(
        batch_size=inputs_embeds.shape[0],
        q_length=num_queries,
        kv_length=cache_layer.get_mask_sizes(num_queries)[0],
        q_offset=cache_layer.seen,
        kv_offset=0,
        mask_function=inner_mask,
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=inputs_embeds.dtype,
        device=inputs_embeds.device,
        config=config,
        use_vmap=True,
    )


# Strided and local-global layers cache what full ones do; a static cache is bounded by its own size, so sinks need no
# dropping there.
DYNAMIC_LAYER_TYPE_MAPPING.update(strided_attention=DynamicLayer, local_global_attention=DynamicLayer)
STATIC_LAYER_TYPE_MAPPING.update(dict.fromkeys(PATTERNS, StaticLayer))
