"""The hf_llm model, in the order a token travels: embedding, layers of attention and MLP, norm, head, loss.

By default weight for weight a Qwen3 (https://arxiv.org/abs/2505.09388). This file and those it imports travel with the
weights, so they import nothing but torch, transformers and each other.

Shapes at line ends:
    B batch   T tokens   D hidden_size   V vocab_size   A head_dim   S tokens seen, cached ones too   N = B * T
"""

# ruff: noqa: RUF012 - class attributes in the form that transformers reads

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import HfLlmAttention
from .configuration_hf_llm import HfLlmConfig
from .cross_entropy import IGNORE_INDEX, NO_TERMS, HfLlmHead, LossTerms, soft_cap, training_objective
from .decoding import decode
from .feed_forward import HfLlmExperts, HfLlmMixtureOfExperts, HfLlmMLP, HfLlmRouter, balancing_loss
from .masks import flex_position_bias, is_padding_mask, left_padding, make_masks
from .norms import NORMS
from .positions import HfLlmRotaryEmbedding


def add_to_residual(norm: nn.Module, sublayer: Callable, hidden_states: torch.Tensor) -> torch.Tensor:
    """Let the sublayer read a normed copy of the residual stream, and add its result to the stream: gradients reach the
    first layer undamped (https://arxiv.org/abs/2002.04745)."""
    return hidden_states + sublayer(norm(hidden_states))


def norm_the_sum(norm: nn.Module, sublayer: Callable, hidden_states: torch.Tensor) -> torch.Tensor:
    """Add the sublayer's result to the residual stream, then norm the sum, as the first Transformer did; needs a slow
    warm-up."""
    return norm(hidden_states + sublayer(hidden_states))


RESIDUALS = {"pre": add_to_residual, "post": norm_the_sum}


def dropout(probability: float) -> nn.Module:
    """Return dropout, or the identity, which takes no time, where there is none."""
    return nn.Dropout(probability) if probability else nn.Identity()


class HfLlmDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP, each adding to the residual stream."""

    def __init__(self, config: HfLlmConfig, layer_idx: int):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = HfLlmAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = HfLlmMixtureOfExperts(config) if config.num_experts else HfLlmMLP(config)
        self.dropout = dropout(config.resid_pdrop)
        self.residual = RESIDUALS[config.norm_position]

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        def attention(x: torch.Tensor) -> torch.Tensor:
            attended, _ = self.self_attn(x, **kwargs)
            return self.dropout(attended)

        def mlp(x: torch.Tensor) -> torch.Tensor:
            return self.dropout(self.mlp(x))

        hidden_states = self.residual(self.input_layernorm, attention, hidden_states)  # B T D
        return self.residual(self.post_attention_layernorm, mlp, hidden_states)  # B T D


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
    _can_record_outputs = {
        "hidden_states": HfLlmDecoderLayer,
        "attentions": HfLlmAttention,
        "router_logits": OutputRecorder(HfLlmRouter, index=0),
    }

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        scale = getattr(module, "initializer_scale", None)  # of projections into the residual stream
        if isinstance(module, HfLlmExperts):  # for type checkers a plain Module, because of its decorator
            init.normal_(module.get_parameter("gate_up_proj"), std=std)
            init.normal_(module.get_parameter("down_proj"), std=std * self.config.residual_scale)
        elif isinstance(module, HfLlmRouter):
            init.normal_(module.weight, std=std)
            if module.is_biased:
                init.zeros_(module.e_score_correction_bias)
        elif scale and isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std * scale)

    @property
    def supports_context_parallel(self) -> bool:
        # Context parallelism drops the mask.
        return super().supports_context_parallel and not self.config.needs_a_mask

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for the decorator of the experts in this file; they are in feed_forward.py

    def _flash_attn_can_dispatch(self, flash_attn_version: int, is_init_check: bool = False) -> bool:
        switch = self.config.needs_a_mask
        if switch:
            raise ValueError(f"{switch} cannot run on flash attention; use sdpa, flex_attention or eager")
        return super()._flash_attn_can_dispatch(flash_attn_version, is_init_check)

    def create_masks_for_generate(
        self,
        config: HfLlmConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor | None]:
        """Make the masks of a step before a compiled forward pass (transformers calls this by name)."""
        return make_masks(config, inputs_embeds, attention_mask, past_key_values, position_ids)


class HfLlmModel(HfLlmPreTrainedModel):
    """Token ids to hidden states. `last_hidden_state` has passed the final norm."""

    _auto_class = "AutoModel"  # makes save_pretrained copy this file and what it imports beside the weights

    def __init__(self, config: HfLlmConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

        num_layers = config.num_hidden_groups or config.num_hidden_layers  # those with weights of their own
        self.layers = nn.ModuleList([HfLlmDecoderLayer(config, layer_idx) for layer_idx in range(num_layers)])
        if config.norm_position == "post":
            self.norm = nn.Identity()  # the last layer has normed its sum
        else:
            self.norm = NORMS[config.norm_type](config.hidden_size, config.rms_norm_eps)

        self.rotary_emb = HfLlmRotaryEmbedding(config) if config.positions == "rope" else None
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = dropout(config.embd_pdrop)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # B T
        attention_mask: torch.Tensor | dict | None = None,  # B S, or ready made: B 1 T S, or one for each kind of layer
        position_ids: torch.Tensor | None = None,  # B T
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # B T D
        use_cache: bool | None = None,
        **kwargs: Any,  # for the attention kernel
    ) -> MoeModelOutputWithPast:
        """Return the hidden states after the last layer.

        Documents packed into one row do not see each other where `position_ids` start again at 0 and no
        `attention_mask` is given. Raises ValueError unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # B T D

        # The masks come first, from the caller's own position_ids and cache: with an empty cache transformers no longer
        # looks for packed documents, and with positions we counted ourselves a compiled model gets a T x T mask in
        # place of the attention kernel's own causal flag.
        if isinstance(attention_mask, dict):
            masks = attention_mask
        else:
            masks = make_masks(self.config, hidden_states, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        if position_ids is None:
            position_ids = self.count_positions(hidden_states, attention_mask, past_key_values)  # B T
        hidden_states = self.run_layers(
            hidden_states,
            position_ids=position_ids,
            position_embeddings=self.rotary_angles(hidden_states, position_ids),
            masks=masks,
            padding_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )  # B T D
        return MoeModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
        )

    def rotary_angles(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return cosine and sine, B 1 T A, of positions (B T) in the dtype of the hidden states; None where nothing is
        rotated."""
        if self.rotary_emb is None:
            return None
        cos, sin = self.rotary_emb(hidden_states, position_ids)  # B T A
        return cos[:, None], sin[:, None]

    def run_layers(
        self,
        hidden_states: torch.Tensor,  # B T D
        position_ids: torch.Tensor,  # B T
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,  # B 1 T A, twice
        masks: dict[str, torch.Tensor | None],  # one for each kind of layer
        padding_mask: torch.Tensor | dict | None,  # B S
        past_key_values: Cache | None,
        **kwargs: Any,  # for the layers
    ) -> torch.Tensor:
        """Return the hidden states after all layers and the final norm, B T D, of embedded tokens."""
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(position_ids)
        hidden_states = self.dropout(hidden_states)

        kwargs_of_kind = {kind: self.layer_kwargs(kind, hidden_states, padding_mask, past_key_values) for kind in masks}
        assert self.config.layer_types is not None  # the config has filled them in
        for layer_idx in range(self.config.num_hidden_layers):
            kind = self.config.layer_types[layer_idx]
            layer = self.layers[layer_idx * len(self.layers) // self.config.num_hidden_layers]
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=masks[kind],
                position_ids=position_ids,
                layer_idx=layer_idx,
                past_key_values=past_key_values,
                **kwargs_of_kind[kind],
                **kwargs,
            )  # B T D
        return self.norm(hidden_states)

    def count_positions(
        self,
        hidden_states: torch.Tensor,  # B T D
        attention_mask: torch.Tensor | dict | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Return the positions of the new tokens, B T or 1 T, counted from the first in the cache.

        Learned positions are counted from each row's first token instead; of the others only distances count.
        """
        num_tokens = hidden_states.shape[1]
        if self.embed_positions is not None and is_padding_mask(attention_mask):
            positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)  # B S
            return positions[:, -num_tokens:]
        num_seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(num_tokens, device=hidden_states.device) + num_seen  # T
        return positions[None]

    def layer_kwargs(
        self,
        kind: str,
        hidden_states: torch.Tensor,  # B T D
        attention_mask: torch.Tensor | dict | None,
        past_key_values: Cache | None,
    ) -> dict:
        """Return the arguments that layers of one kind take beside those of all layers."""
        config = self.config
        kwargs = {}
        if kind == "sliding_attention":
            kwargs["sliding_window"] = config.sliding_window  # for flash attention, which takes no mask
        position_bias = flex_position_bias(kind, config, hidden_states, past_key_values)
        if position_bias is not None:
            kwargs["position_bias"] = position_bias
        if kind == "sink_attention" and past_key_values is not None:
            kwargs["cache_arguments"] = {
                "num_sinks": config.num_sink_tokens,
                "window": config.sliding_window,
                "start": left_padding(attention_mask, hidden_states),
                "sink_rotation": self.sink_rotation(hidden_states, past_key_values),
            }
        return kwargs

    def sink_rotation(
        self, hidden_states: torch.Tensor, past_key_values: Cache
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return cosine and sine, A, that move the first tokens of a long stream up to the distance of the longest text
        in training: a stream has no end, and rotary positions mean nothing beyond what training has seen."""
        num_tokens = past_key_values.get_seq_length() + hidden_states.shape[1]
        surplus = num_tokens - self.config.max_position_embeddings
        if self.rotary_emb is None or surplus <= 0:
            return None
        return self.rotary_emb.angles(torch.tensor(surplus, device=hidden_states.device))


@dataclass
class HfLlmCausalLMOutput(MoeCausalLMOutputWithPast):
    """`objective` is the value that training lowers, where label smoothing or z-loss make it another than `loss`."""

    objective: torch.Tensor | None = None


class HfLlmForCausalLM(HfLlmPreTrainedModel, GenerationMixin):
    """The language model: logits of the token after each token."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # transformers declares strings where all of its models have lists.
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # pyright: ignore[reportAssignmentType]
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    accepts_loss_kwargs = True  # the loss honours num_items_in_batch, so Trainer must not divide it again

    def __init__(self, config: HfLlmConfig):
        super().__init__(config)
        self.model = HfLlmModel(config)
        self.lm_head = HfLlmHead(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.softcap = config.final_logit_softcapping
        self.post_init()

    def _sample(self, input_ids: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        """Generate tokens (transformers calls this by name, from `generate`)."""
        return decode(self, input_ids, *arguments, **keywords)

    def init_continuous_batching(self, *arguments: Any, **keywords: Any):
        """Do as transformers (`generate_batch` calls this); raise ValueError where its paged cache would give other
        completions."""
        switch = self.config.cannot_be_paged
        if switch:
            raise ValueError(
                f"{switch} has no continuous batching; use generate, which takes a batch padded on the left"
            )
        return super().init_continuous_batching(*arguments, **keywords)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # B T
        attention_mask: torch.Tensor | None = None,  # B S
        position_ids: torch.Tensor | None = None,  # B T
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # B T D
        labels: torch.Tensor | None = None,  # B T
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        **kwargs: Any,  # those named below, and what the attention kernel reads
    ) -> HfLlmCausalLMOutput:
        """Return logits; or, with labels, the loss and no logits.

        `labels` (B T) are the tokens themselves, shifted here, -100 where one does not count; `shift_labels` (B T, by
        keyword) are labels the caller has shifted. The loss is the mean over the tokens that count, or their sum over
        `num_items_in_batch` (by keyword); with no such token it is zero.

        `logits_to_keep` asks for logits beside the loss: 0 for all positions, n for the last n, a tensor of indices for
        chosen ones. A Trainer with `compute_metrics` needs it in its batches; one without, TRL and lm_eval do not.
        Without labels the default is 0.

        `label_smoothing` and `z_loss` (by keyword, see `training_objective`) change the gradient alone: the loss stays
        plain cross-entropy, and the value that training lowers is the output's `objective`.

        A mixture of experts is balanced whenever it trains: the gradient of the balancing loss is added, the loss
        stays that of the tokens. `output_router_logits` asks for the former, as `aux_loss`.
        """
        # Not in the signature: Trainer takes every parameter with "label" in its name for one that batches must have.
        shift_labels = kwargs.pop("shift_labels", None)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        terms = LossTerms(**{name: kwargs.pop(name) for name in LossTerms._fields if name in kwargs})

        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]  # B T
        has_labels = shift_labels is not None
        if has_labels and use_cache is None:
            use_cache = False
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        is_balanced = bool(self.config.num_experts) and (output_router_logits or (self.training and has_labels))

        outputs: MoeModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=is_balanced,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # B T D
        assert hidden_states is not None

        aux_loss = None
        if is_balanced:
            assert outputs.router_logits is not None
            real = real_tokens(attention_mask, hidden_states)  # N
            aux_loss = balancing_loss(outputs.router_logits, self.config, real)

        loss = None
        objective = None
        if has_labels:
            loss, objective = self.next_token_loss(hidden_states, shift_labels, num_items_in_batch, aux_loss, terms)

        logits = None
        if logits_to_keep is not None or not has_labels:
            positions = logits_to_keep
            if not isinstance(positions, torch.Tensor):
                positions = slice(-(logits_to_keep or 0), None)
            logits = self.lm_head(hidden_states[:, positions])  # B T V, of the positions asked for
            logits = soft_cap(logits, self.config.final_logit_softcapping)

        return HfLlmCausalLMOutput(
            loss=loss,
            objective=objective if any(terms) else None,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def next_token_loss(
        self,
        hidden_states: torch.Tensor,  # B T D
        shift_labels: torch.Tensor,  # B T
        num_items_in_batch: torch.Tensor | int | None,
        aux_loss: torch.Tensor | None = None,
        terms: LossTerms = NO_TERMS,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cross-entropy in nats with the gradient of the objective, and the objective's value beside it.

        The loss is that of transformers' ForCausalLMLoss, but zero, not NaN, where no token counts.
        """
        if isinstance(self.lm_head, HfLlmHead):
            objective, plain = self.lm_head(hidden_states, shift_labels, terms)
        else:  # an adapter or a quantiser has put its own head in place
            logits = self.lm_head(hidden_states).float().flatten(0, 1)  # N V
            logits = soft_cap(logits, self.config.final_logit_softcapping)
            labels = shift_labels.flatten().to(logits.device)  # N
            objective, plain = training_objective(logits, labels, terms)
        total = plain.detach() + (objective - objective.detach())  # the value of one, the gradient of the other

        num_tokens = (shift_labels != IGNORE_INDEX).sum()
        if aux_loss is not None:
            coefficient = self.config.router_aux_loss_coef if self.config.expert_balancing == "loss" else 1.0
            # A micro-batch counts by its tokens, and in the gradient alone: the loss reported stays nats per token.
            total = total + coefficient * num_tokens.to(total.device) * (aux_loss - aux_loss.detach())

        count = num_tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        count = count.to(total.device).clamp(min=1)
        return total / count, objective.detach() / count


def real_tokens(attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Return 1 for each token and 0 for padding, N; None where no mask tells them apart."""
    if not is_padding_mask(attention_mask):
        return None
    num_tokens = hidden_states.shape[1]
    return attention_mask[:, -num_tokens:].flatten()


class HfLlmForSequenceClassification(GenericForSequenceClassification, HfLlmPreTrainedModel):
    """One row of scores per text, read off its last token: the head of reward models."""

    _auto_class = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False  # its loss is a mean over texts, which Trainer divides by the accumulation steps

    def __init__(self, config: HfLlmConfig):
        # The parent's own __init__ asks AutoModel for the backbone, which knows nothing of code that came with weights.
        HfLlmPreTrainedModel.__init__(self, config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = HfLlmModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


__all__ = ["HfLlmForCausalLM", "HfLlmForSequenceClassification", "HfLlmModel", "HfLlmPreTrainedModel"]
