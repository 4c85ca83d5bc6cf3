"""The hf_llm model, in the order a token travels: embedding, layers of attention and MLP, norm, head, loss.

Weight for weight a Qwen3 (https://arxiv.org/abs/2505.09388). This file travels with the weights, so it imports nothing
but torch, transformers and the configuration beside it.

Shapes at line ends:
    B batch   T tokens   D hidden_size   I intermediate_size   V vocab_size
    H query heads   K key/value heads   A head_dim   S tokens seen, cached ones too   N = B * T   C tokens of a chunk
"""

# ruff: noqa: RUF012 - class attributes in the form that transformers reads

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_llm import HfLlmConfig


class HfLlmRMSNorm(nn.Module):
    """Divide by the root mean square, in float32 whatever comes in (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class HfLlmRotaryEmbedding(nn.Module):
    """Cosine and sine by which queries and keys are turned according to their position (https://arxiv.org/abs/2104.09864)."""

    def __init__(self, config: HfLlmConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = compute(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)  # A/2
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: HfLlmConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """The inverse frequencies of plain rotary positions and a scale of one (transformers calls this by name)."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Angles stay float32 whatever the model's dtype: bfloat16 cannot tell position 1000 from 1003.
        angles = position_ids[..., None].float() * self.inv_freq.float()  # B T A/2
        angles = torch.cat((angles, angles), dim=-1)  # B T A
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x[i], x[i + A/2]) of every head by its position's angle; the shape of `x` stays."""
    first, second = x.chunk(2, dim=-1)  # B H T A/2
    return x * cos + torch.cat((-second, first), dim=-1) * sin


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
        self.o_proj.initializer_scale = residual_scale(config)
        # Normed queries and keys keep the scores bounded, so that large learning rates stay stable (2302.05442).
        self.q_norm = HfLlmRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = HfLlmRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,  # B T D
        position_embeddings: tuple[torch.Tensor, torch.Tensor],  # B 1 T A, twice
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(by_head)).transpose(1, 2)  # B H T A
        key = self.k_norm(self.k_proj(hidden_states).view(by_head)).transpose(1, 2)  # B K T A
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)  # B K T A
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # B K S A

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


class HfLlmMLP(nn.Module):
    """What a token makes of what it has gathered: SwiGLU (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: HfLlmConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.down_proj.initializer_scale = residual_scale(config)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # B T D, through B T I


class HfLlmDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP, each reading a normed copy of the residual stream and adding to it."""

    def __init__(self, config: HfLlmConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = HfLlmRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = HfLlmAttention(config, layer_idx)
        self.post_attention_layernorm = HfLlmRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = HfLlmMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended  # B T D
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))  # B T D


def residual_scale(config: HfLlmConfig) -> float:
    """By how much smaller the projections into the residual stream start, so that the sum over all layers keeps the
    size of one (GPT-2 paper, section 2.3: two of them in every layer)."""
    return (2 * config.num_hidden_layers) ** -0.5


class HfLlmPreTrainedModel(PreTrainedModel):
    config: HfLlmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HfLlmDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": HfLlmDecoderLayer, "attentions": HfLlmAttention}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        scale = getattr(module, "initializer_scale", None)
        if scale is not None:
            init.normal_(module.weight, std=self.config.initializer_range * scale)


class HfLlmModel(HfLlmPreTrainedModel):
    """Token ids to hidden states. `last_hidden_state` has passed the final norm."""

    _auto_class = "AutoModel"  # makes save_pretrained copy this file and the configuration beside the weights

    def __init__(self, config: HfLlmConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([HfLlmDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = HfLlmRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = HfLlmRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # B T
        attention_mask: torch.Tensor | None = None,  # B S, or B 1 T S ready made
        position_ids: torch.LongTensor | None = None,  # B T
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,  # B T D
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Exactly one of `input_ids` and `inputs_embeds`, else ValueError.

        Documents packed into one row are kept apart where `position_ids` start again at 0 and no `attention_mask` is
        given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # B T D

        # Only the caller's own position_ids and cache may speak here: with an empty cache transformers no longer looks
        # for packed documents, and with positions we counted ourselves a compiled model gets a T x T mask in place of
        # the attention kernel's own causal flag.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + seen)[None]  # 1 T
        cos, sin = self.rotary_emb(hidden_states, position_ids)  # B T A
        position_embeddings = cos[:, None], sin[:, None]  # B 1 T A

        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of `cross_entropy(hidden @ weight.T, labels)` without ever holding the N x V logits.

    The forward pass goes over the tokens chunk by chunk and leaves behind the finished gradients, N x D and V x D; the
    backward pass only scales them. On two CPU cores this takes 0.7 to 0.9 of plain cross-entropy's time and a sixth of
    its memory (2048x768x32768 in benchmarks/cross_entropy.py); computing each chunk again in the backward pass instead
    took 1.1 times plain's time.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,  # N D
        weight: torch.Tensor,  # V D
        labels: torch.Tensor,  # N, -100 where there is none
        chunk: int,
        needs_gradient: bool,
    ) -> torch.Tensor:
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # Many chunks add up in the gradient of the weight, one in that of a token: bfloat16 does for the second only.
        grad_hidden = torch.empty_like(hidden) if needs_gradient and ctx.needs_input_grad[0] else None
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if needs_gradient and ctx.needs_input_grad[1] else None
        )
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            tokens, has_label = hidden[rows], (labels[rows] != -100)[:, None]  # C D, C 1
            target = labels[rows].clamp(min=0)[:, None]  # C 1
            log_probs = torch.log_softmax(tokens @ matrix.T, dim=-1, dtype=torch.float32)  # C V
            total -= (log_probs.gather(1, target) * has_label).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad_logits = log_probs.exp_()  # C V, softmax minus one at the target
            grad_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ matrix) * has_label
            if grad_weight is not None:
                add_product(grad_weight, grad_logits.T, tokens * has_label)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place: nothing else holds them, and a second backward pass through them fails loudly in autograd.
        grad_hidden = grad_hidden.mul_(grad_total) if grad_hidden is not None else None
        grad_weight = grad_weight.mul_(grad_total).to(ctx.weight_dtype) if grad_weight is not None else None
        return grad_hidden, grad_weight, None, None, None


@torch.compiler.disable
def uncompiled_cross_entropy(*arguments: torch.Tensor | int | bool) -> torch.Tensor:
    """The same, kept from the compiler: it unrolls the loop, which took two more seconds a chunk on a CPU."""
    return ChunkedCrossEntropy.apply(*arguments)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right`, without a temporary where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


# 2^23 logits fit a CPU's last cache (32 MB of float32); a GPU needs more at a time to be busy (512 MB).
LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}


class HfLlmHead(nn.Linear):
    """Hidden states to logits; with labels, to the loss.

    The loss is computed inside this module, not from its weight outside, so that what gathers a sharded weight before a
    module runs (ZeRO-3, FSDP) gathers this one too.
    """

    def forward(self, hidden_states: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, B T V; or with `labels` (B T, shifted already, -100 where there is none) the summed loss, float32."""
        if labels is None:
            return super().forward(hidden_states)
        device = hidden_states.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.weight.dtype
        hidden = hidden_states.flatten(0, -2).to(dtype)  # N D
        labels = labels.flatten().to(hidden.device)  # N
        chunk = max(1, LOGITS_AT_ONCE["cpu" if device == "cpu" else "cuda"] // self.out_features)
        chunked = uncompiled_cross_entropy if hidden.shape[0] > 8 * chunk else ChunkedCrossEntropy.apply
        return chunked(hidden, self.weight, labels, chunk, torch.is_grad_enabled())


class HfLlmForCausalLM(HfLlmPreTrainedModel, GenerationMixin):
    """The language model: what comes next after each token."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    accepts_loss_kwargs = True  # the loss honours num_items_in_batch, so Trainer must not divide it again

    def __init__(self, config: HfLlmConfig):
        super().__init__(config)
        self.model = HfLlmModel(config)
        self.lm_head = HfLlmHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,  # B T
        attention_mask: torch.Tensor | None = None,  # B S
        position_ids: torch.LongTensor | None = None,  # B T
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,  # B T D
        labels: torch.LongTensor | None = None,  # B T
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits; or, with labels, the loss and no logits.

        `labels` (B T) are the tokens themselves, shifted here, -100 where one does not count; `shift_labels` (B T, by
        keyword) are labels the caller has shifted. The loss is the mean over the tokens that count, or their sum over
        `num_items_in_batch` (by keyword); with no such token it is zero.

        `logits_to_keep` asks for logits beside the loss: 0 for all positions, n for the last n, a tensor of indices for
        chosen ones. A Trainer with `compute_metrics` needs it in its batches; one without, TRL and lm_eval do not.
        Without labels the default is 0.
        """
        # Not in the signature: Trainer takes every parameter with "label" in its name for one that batches must have.
        shift_labels = kwargs.pop("shift_labels", None)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        has_labels = labels is not None or shift_labels is not None
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if has_labels and use_cache is None else use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # B T D

        loss = logits = None
        if has_labels:
            shift_labels = F.pad(labels, (0, 1), value=-100)[:, 1:] if shift_labels is None else shift_labels
            loss = self.next_token_loss(hidden_states, shift_labels, num_items_in_batch)
        if logits_to_keep is not None or not has_labels:
            kept = logits_to_keep if isinstance(logits_to_keep, torch.Tensor) else slice(-(logits_to_keep or 0), None)
            logits = self.lm_head(hidden_states[:, kept])  # B T V
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def next_token_loss(
        self,
        hidden_states: torch.Tensor,  # B T D
        shift_labels: torch.Tensor,  # B T
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Cross-entropy in nats as transformers' ForCausalLMLoss has it, but zero, not NaN, where no token counts."""
        if isinstance(self.lm_head, HfLlmHead):
            total = self.lm_head(hidden_states, shift_labels)
        else:  # an adapter or a quantiser has put its own head in place
            logits = self.lm_head(hidden_states).float().flatten(0, 1)
            total = F.cross_entropy(logits, shift_labels.flatten().to(logits.device), reduction="sum")
        count = (shift_labels != -100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return total / count.to(total.device).clamp(min=1)


class HfLlmForSequenceClassification(GenericForSequenceClassification, HfLlmPreTrainedModel):
    """One row of scores per text, read off its last token: the head of reward models."""

    _auto_class = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False  # its loss is a mean over texts, which Trainer divides by the accumulation steps

    def __init__(self, config: HfLlmConfig):
        # The parent's own __init__ asks AutoModel for the backbone, which knows nothing of code that came with weights.
        HfLlmPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = HfLlmModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


__all__ = ["HfLlmForCausalLM", "HfLlmForSequenceClassification", "HfLlmModel", "HfLlmPreTrainedModel"]
