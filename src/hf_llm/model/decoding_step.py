"""The newest token of each row to the logits of the next: one step of a generation. This file travels with the weights.

A model of a few million parameters spends most of such a step outside of arithmetic: on what is made again for every
token (positions, rotary angles, masks), and on calls of modules. `OwnModelStep` makes the former for many tokens at
once, and calls the functions of the modules instead of the modules where nothing hooks into them (`DirectLayer`). The
operations and their order are those of the modules, so the logits are the same bit for bit.

Shapes at line ends:
    B batch   T tokens   D hidden_size   V vocab_size   H query heads   K key/value heads   A head_dim
    S tokens seen, cached ones too
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .attention import HfLlmAttention
from .configuration_hf_llm import HfLlmConfig
from .cross_entropy import HfLlmHead, soft_cap
from .decoding_cache import TokenRoom
from .feed_forward import HfLlmMLP
from .masks import first_layer, make_masks
from .norms import HfLlmRMSNorm

STEPS_PREPARED = 256  # tokens for which positions, rotary angles and padding masks are made at once


def next_logits_function(
    model: PreTrainedModel, max_length: int, inputs: dict[str, Any]
) -> "AnyModelStep | OwnModelStep":
    """Return a function that takes the newest token of each row, B, and returns the logits of the next, B V.

    `inputs` are those of the pass over the prompt. What wraps the whole model (autocast, hooks) is kept.
    """
    backbone: Any = getattr(model, "model", None)
    is_own = isinstance(model.config, HfLlmConfig) and hasattr(backbone, "run_layers")
    if is_own and not is_hooked(model) and not is_hooked(backbone):
        return OwnModelStep(model, **inputs)
    return AnyModelStep(model, max_length, inputs)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its class's `forward`: it has hooks, or was compiled or wrapped."""
    has_hooks = module._forward_pre_hooks or module._forward_hooks
    return bool(has_hooks or module._compiled_call_impl or "forward" in vars(module))


class AnyModelStep:
    """Runs any model of transformers on one token after the other, with what `generate` would give it."""

    def __init__(self, model: PreTrainedModel, max_length: int, inputs: dict[str, Any]):
        self.model = model
        self.inputs = inputs
        self.position_ids = None
        if inputs.get("position_ids") is not None:
            self.position_ids = inputs["position_ids"][..., -1:]  # B 1, or 1 1
        self.mask = None
        if inputs.get("attention_mask") is not None:
            self.mask = TokenRoom(inputs["attention_mask"], max_length)

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        inputs = dict(self.inputs)
        if self.position_ids is not None:
            self.position_ids = self.position_ids + 1
            inputs["position_ids"] = self.position_ids
        if self.mask is not None:
            self.mask.append(torch.ones_like(chosen))
            inputs["attention_mask"] = self.mask.tokens
        outputs = self.model(input_ids=chosen[:, None], return_dict=True, **inputs)
        return outputs.logits[:, -1]

    def keep_rows(self, is_kept: torch.Tensor) -> None:
        """Drop the rows that are False in `is_kept` (B); the cache has dropped them already."""
        if self.position_ids is not None and len(self.position_ids) == len(is_kept):
            self.position_ids = self.position_ids[is_kept]
        if self.mask is not None:
            self.mask = TokenRoom(self.mask.tokens[is_kept], self.mask.max_length)


class OwnModelStep:
    """Runs HfLlmForCausalLM on one token after the other: its layers, without what wraps a whole forward pass, and with
    positions, rotary angles and masks of many steps made at once."""

    def __init__(
        self,
        model: Any,
        position_ids: torch.Tensor,  # B T, or 1 T where no row is padded
        past_key_values: Cache,
        attention_mask: torch.Tensor | None = None,  # B T
        **kwargs: Any,
    ):
        self.model = model
        self.cache = past_key_values
        self.padding_mask = attention_mask
        # The newest token of the prompt is the last step that is prepared. `num_seen` counts the tokens before these.
        self.position_ids = position_ids[:, -1:]  # B 1
        self.num_seen = position_ids.shape[1] - 1
        self.num_prepared = 1
        self.step = 1

        config = model.config
        # What other attention needs is made for every token: ALiBi's bias, patterns, the form of other kernels.
        self.needs_no_mask = config._attn_implementation == "sdpa" and not config.needs_a_mask
        # Some angles depend on how long the text has become.
        rope_type = (config.rope_parameters or {}).get("rope_type", "default")
        self.has_fixed_angles = config.positions == "rope" and rope_type not in ("dynamic", "longrope")
        self.layers = make_direct_layers(model, past_key_values) if self.needs_no_mask else None
        self.norm = function_of_rows(model.model.norm)
        self.head = function_of_rows(model.lm_head)
        self.is_cast = torch.is_autocast_enabled(model.device.type)
        # Tensors of inference mode are faster, and useless to autograd, so nothing may keep one: no hook, no autocast
        # (which keeps the weights it has cast), no angles that grow with the text.
        self.is_isolated = (
            self.layers is not None
            and (self.has_fixed_angles or config.positions != "rope")
            and not self.is_cast
            and not any(map(is_hooked, model.modules()))
        )

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(self.is_isolated):
            logits = self._compute_logits(chosen)  # B V
            return soft_cap(logits, self.model.config.final_logit_softcapping)

    def _compute_logits(self, chosen: torch.Tensor) -> torch.Tensor:
        backbone = self.model.model
        hidden_states = backbone.embed_tokens(chosen[:, None])  # B 1 D
        if self.step == self.num_prepared:
            self._prepare_steps(hidden_states)
        position_ids = self.position_ids.narrow(1, self.step, 1)  # B 1
        if self.has_fixed_angles:
            angles = (self.cos.narrow(2, self.step, 1), self.sin.narrow(2, self.step, 1))  # B 1 1 A
        else:
            angles = backbone.rotary_angles(hidden_states, position_ids)

        self.step += 1
        padding_mask, masks = self._make_masks(hidden_states, position_ids)
        if self.layers is not None:
            hidden_states = self._run_direct_layers(hidden_states, position_ids, angles, masks)  # B D
            return self.head(hidden_states)

        hidden_states = backbone.run_layers(
            hidden_states,
            position_ids=position_ids,
            position_embeddings=angles,
            masks=masks,
            padding_mask=padding_mask,
            past_key_values=self.cache,
            use_cache=True,
        )  # B 1 D
        return self.model.lm_head(hidden_states)[:, -1]

    def _run_direct_layers(
        self,
        hidden_states: torch.Tensor,  # B 1 D
        position_ids: torch.Tensor,  # B 1
        angles: tuple[torch.Tensor, torch.Tensor] | None,  # B 1 1 A, twice
        masks: dict[str, torch.Tensor | None],  # B 1 1 S, one for each kind of layer
    ) -> torch.Tensor:
        """Return the hidden states after all layers and the final norm, B D, as `run_layers` does."""
        backbone = self.model.model
        if backbone.embed_positions is not None:
            hidden_states = hidden_states + backbone.embed_positions(position_ids)
        if angles is not None and not self.has_fixed_angles:
            angles = (angles[0], signed_sine(angles[1]))

        assert self.layers is not None
        x = hidden_states[:, 0]  # B D
        for kind, layer in zip(self.model.config.layer_types, self.layers, strict=True):
            x = layer(x, angles, masks[kind])
        return self.norm(x)

    def keep_rows(self, is_kept: torch.Tensor) -> None:
        """Drop the rows that are False in `is_kept` (B); the cache has dropped them already."""
        newest = self.position_ids[:, self.step - 1 : self.step]
        self.position_ids = newest[is_kept] if len(newest) == len(is_kept) else newest
        if self.padding_mask is not None:
            self.padding_mask = self.padding_mask[is_kept, : self.num_seen + self.step]
        self.num_seen += self.step - 1
        self.step = 1
        self.num_prepared = 1  # the newest token's; the next step prepares others

    def _prepare_steps(self, hidden_states: torch.Tensor) -> None:
        """Prepare what the next steps need beside their tokens."""
        steps = torch.arange(1, STEPS_PREPARED + 1, device=hidden_states.device)
        self.position_ids = self.position_ids[:, -1:] + steps  # B steps
        if self.has_fixed_angles:
            self.cos, self.sin = self.model.model.rotary_angles(hidden_states, self.position_ids)  # B 1 steps A
            if self.layers is not None:
                self.sin = signed_sine(self.sin)
        if self.padding_mask is not None:
            self.padding_mask = F.pad(self.padding_mask, (0, STEPS_PREPARED), value=1)  # B (S and more)
            self.mask = self.padding_mask.bool()[:, None, None]  # B 1 1 (S and more)
            if not self.is_cast:  # what the kernel makes of it, once for all layers and steps
                hidden = torch.zeros_like(self.mask, dtype=hidden_states.dtype)
                self.mask = hidden.masked_fill_(~self.mask, -torch.inf)
        self.num_seen += self.num_prepared
        self.num_prepared = STEPS_PREPARED
        self.step = 0

    def _make_masks(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor | None]]:
        """Return the padding mask, B S, and the mask of each kind of layer."""
        config = self.model.config
        padding_mask = None
        if self.padding_mask is not None:
            padding_mask = self.padding_mask[:, : self.num_seen + self.step]
        if not self.needs_no_mask:
            return padding_mask, make_masks(config, hidden_states, padding_mask, self.cache, position_ids)

        masks = dict.fromkeys(config.layer_types)
        if padding_mask is not None:
            for kind in masks:
                num_keys, first_key = self.cache.get_mask_sizes(1, first_layer(config, kind))
                masks[kind] = self.mask[..., first_key : first_key + num_keys]
        return padding_mask, masks


# ---- layers without calls of modules

Function = Callable[[torch.Tensor], torch.Tensor]


def make_direct_layers(model: Any, cache: Cache) -> "list[DirectLayer] | None":
    """Return the layers of a model as functions, in their order; None where something hooks into them, they train, or
    processes share their weights (a process then may have some of the heads only)."""
    backbone = model.model
    is_shared = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
    if model.training or is_shared:
        return None
    for layer in backbone.layers:
        if is_hooked(layer) or is_hooked(layer.self_attn) or type(layer.self_attn) is not HfLlmAttention:
            return None

    count = model.config.num_hidden_layers
    modules = [backbone.layers[layer_idx * len(backbone.layers) // count] for layer_idx in range(count)]
    return [DirectLayer(module, cache, layer_idx) for layer_idx, module in enumerate(modules)]


class DirectLayer:
    """One layer on one token of each row, B D, as HfLlmDecoderLayer and HfLlmAttention compute it in evaluation."""

    def __init__(self, layer: Any, cache: Cache, layer_idx: int):
        attention = layer.self_attn
        self.module = attention
        self.head_dim = attention.head_dim
        self.scaling = attention.scaling
        self.cache_layer: Any = cache.layers[layer_idx]
        self.residual = layer.residual

        self.attention_norm = function_of_rows(layer.input_layernorm)
        self.to_query = function_of_rows(attention.q_proj)
        self.to_key = function_of_rows(attention.k_proj)
        self.to_value = function_of_rows(attention.v_proj)
        self.norm_heads = function_of_heads(attention)
        self.to_output = function_of_rows(attention.o_proj)
        self.mlp_norm = function_of_rows(layer.post_attention_layernorm)
        self.mlp = function_of_rows(layer.mlp)

    def __call__(
        self,
        x: torch.Tensor,  # B D
        angles: tuple[torch.Tensor, torch.Tensor] | None,  # B 1 1 A, twice; the second one as `signed_sine` has it
        mask: torch.Tensor | None,  # B 1 1 S
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attend(normed, angles, mask)

        x = self.residual(self.attention_norm, attend, x)  # B D
        return self.residual(self.mlp_norm, self.mlp, x)  # B D

    def attend(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return what each token gathers, B D; arguments as above."""
        batch = x.shape[0]
        by_head = (batch, -1, 1, self.head_dim)
        query = self.to_query(x)  # B (H A)
        value = self.to_value(x).view(by_head)  # B K 1 A
        num_keys = value.shape[1]

        # Queries and keys are normed and rotated together: what takes time here is the number of operations.
        heads = torch.cat((query, self.to_key(x)), dim=1).view(by_head)  # B (H + K) 1 A
        heads = self.norm_heads(heads)
        if angles is not None:
            cos, sin = angles
            swapped_halves = heads.roll(self.head_dim // 2, -1)
            heads = heads * cos + swapped_halves * sin
        num_queries = heads.shape[1] - num_keys
        query = heads.narrow(1, 0, num_queries)  # B H 1 A
        key = heads.narrow(1, num_queries, num_keys)  # B K 1 A

        keys, values = self.cache_layer.update(key, value)  # B K S A
        if num_queries == num_keys:
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scaling)
        else:
            attended, _ = sdpa_attention_forward(self.module, query, keys, values, mask, scaling=self.scaling)
        return self.to_output(attended.reshape(batch, -1))  # B D


def signed_sine(sin: torch.Tensor) -> torch.Tensor:
    """Return the sine, ... A, with its first half negated: instead of half of what it is multiplied with."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def function_of_rows(module: nn.Module) -> Function:
    """Return a function of one token of each row, B D, with the result of a module."""
    function = direct_function(module)
    if function is None:
        return lambda x: module(x[:, None])[:, 0]
    return function


def function_of_heads(attention: Any) -> Function:
    """Return a function that norms queries and keys, B (H + K) 1 A, as `q_norm` and `k_norm` do."""
    num_keys = attention.config.num_key_value_heads
    num_queries = num_keys * attention.num_key_value_groups
    query_norm = attention.q_norm
    key_norm = attention.k_norm
    norms = (query_norm, key_norm)
    if not any(map(is_hooked, norms)):
        if all(type(norm) is nn.Identity for norm in norms):
            return lambda heads: heads
        if all(type(norm) is HfLlmRMSNorm and is_float32_on_cpu(norm.weight) for norm in norms):
            scales = [query_norm.weight.expand(num_queries, 1, -1), key_norm.weight.expand(num_keys, 1, -1)]
            return rms_norm_function(torch.cat(scales), query_norm.eps)

    def norm_each(heads: torch.Tensor) -> torch.Tensor:
        queries, keys = heads.transpose(1, 2).split((num_queries, num_keys), dim=2)  # B 1 H A, B 1 K A
        return torch.cat((query_norm(queries), key_norm(keys)), dim=2).transpose(1, 2)

    return norm_each


def direct_function(module: Any) -> Function | None:
    """Return a function of the same result as calling a module, in fewer and shorter calls; None if none is known."""
    if is_hooked(module):
        return None
    if type(module) in (nn.Linear, HfLlmHead) and type(module.weight) is nn.Parameter:
        return linear_function(module)
    if type(module) is HfLlmRMSNorm and is_float32_on_cpu(module.weight):
        return rms_norm_function(module.weight, module.eps)
    if type(module) is HfLlmMLP:
        return mlp_function(module)
    if type(module) in (HfLlmRMSNorm, nn.LayerNorm, nn.Identity):
        return module.forward
    return None


def is_float32_on_cpu(weight: torch.Tensor) -> bool:
    """Whether a norm has nothing to convert, and takes several operations in any case: GPUs have one for it."""
    is_cast = torch.is_autocast_enabled(weight.device.type)
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not is_cast


def linear_function(module: nn.Linear) -> Function:
    """Return the matrix product that F.linear comes to, without its way there."""
    bias = module.bias
    if torch.is_autocast_enabled(module.weight.device.type):  # it keeps the weights it has cast, but not their views
        return lambda x: F.linear(x, module.weight, bias)
    weight = module.weight.t()
    if bias is None:
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.addmm(bias, x, weight)


def rms_norm_function(weight: torch.Tensor, eps: float) -> Function:
    """Return F.rms_norm over the last dimension by the operations that PyTorch makes of it on a CPU."""
    # As tensors: each number of Python would become one in every call, which takes longer than the division.
    size = torch.tensor(weight.shape[-1], dtype=weight.dtype)
    epsilon = torch.tensor(eps, dtype=weight.dtype)

    def rms_norm(x: torch.Tensor) -> torch.Tensor:
        mean_square = (x * x).sum(-1, keepdim=True).div_(size)
        return x * mean_square.add_(epsilon).rsqrt_() * weight

    return rms_norm


def mlp_function(mlp: HfLlmMLP) -> Function:
    """Return the function of an MLP, as `HfLlmMLP.forward` has it."""
    up = function_of_rows(mlp.up_proj)
    down = function_of_rows(mlp.down_proj)
    activate = function_of_rows(mlp.act_fn) if is_hooked(mlp.act_fn) else mlp.act_fn.forward
    if not mlp.is_gated:
        return lambda x: down(activate(up(x)))
    gate = function_of_rows(mlp.gate_proj)
    return lambda x: down(activate(gate(x)) * up(x))
