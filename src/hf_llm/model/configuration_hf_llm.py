"""The configuration of an hf_llm model: a decoder whose parts are switches, by default a Qwen3.

This file travels with the weights, so it imports nothing but transformers and huggingface_hub.
docs/architecture.md lists the switches with their papers.
"""

# ruff: noqa: RUF012 - class attributes in the form that transformers reads

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Kind of attention layer -> the fields it reads.
LAYER_TYPES = {
    "full_attention": (),
    "sliding_attention": ("sliding_window",),
    "strided_attention": ("sparse_block_size", "sparse_stride"),
    "local_global_attention": ("sliding_window", "global_attention_every"),
    "sink_attention": ("sliding_window", "num_sink_tokens"),
}

MASKLESS = ("full_attention", "sliding_attention")  # attention kernels implement these without a mask

# Which class of transformers has the same weights (`exports_to`, hf_llm.export)? Every field of the configuration
# stands in exactly one of the two lists below; while a field stands in neither, no model is exported.

# Fields that an export keeps: a stock class takes any value of them, unless its row in STOCK_CLASSES names the values
# that it takes. It has the field too, or drops it and computes the same (dropout and initialisation act in training
# only, layers that share weights are written as copies).
KEPT_AT_EXPORT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_hidden_groups",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "use_cache",
    "tie_word_embeddings",
    "rope_parameters",
    "sliding_window",
    "attention_bias",
    "attention_dropout",
    "hidden_act",
    "rms_norm_eps",
    "embd_pdrop",
    "resid_pdrop",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "router_aux_loss_coef",
    "output_router_logits",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)

FULL = "full_attention"
SLIDING = "sliding_attention"
FULL_AND_SLIDING = "full_attention+sliding_attention"
ONE_OR_MORE = "one or more"
SAME_WIDTH = "as many as attention heads, together as wide as the hidden states"

# Fields that an export does not keep: a stock class takes one value of them only, that given here, unless its row in
# STOCK_CLASSES names others. Most classes have no such switch, and behave as with this value.
FIXED_AT_EXPORT = {
    "positions": "rope",
    "norm_type": "rms_norm",
    "use_gated_mlp": True,
    "num_experts": None,
    "use_qk_norm": True,
    "mlp_bias": False,
    "layer_types": FULL,
    "sparse_block_size": None,
    "sparse_stride": None,
    "global_attention_every": None,
    "num_sink_tokens": None,
    "norm_position": "pre",
    "final_logit_softcapping": None,
    "expert_balancing": "loss",
    "n_shared_experts": 0,
}

# model_type of transformers -> field -> the values that the class takes, where they are not those of the two lists
# above. A model exports to the first class that takes all of its values.
DENSE = {"expert_balancing": ["loss", "bias"]}  # without experts nothing is balanced
EXPERTS = {"num_experts": [ONE_OR_MORE]}
NO_QK_NORM = {"use_qk_norm": [False]}
NO_ATTENTION_BIAS = {"attention_bias": [False]}
ANY_MLP_BIAS = {"mlp_bias": [False, True]}
GELU_MLP = {"norm_type": ["layer_norm"], "use_gated_mlp": [False], **NO_QK_NORM, **ANY_MLP_BIAS}
FULL_OR_SLIDING = {"layer_types": [FULL, SLIDING]}
FULL_OR_SLIDING_OR_BOTH = {"layer_types": [FULL, SLIDING, FULL_AND_SLIDING]}
STOCK_CLASSES = {
    "qwen3": {**DENSE, **FULL_OR_SLIDING_OR_BOTH},
    "llama": {**DENSE, **NO_QK_NORM, **ANY_MLP_BIAS},
    "mistral": {**DENSE, **NO_QK_NORM, **NO_ATTENTION_BIAS, **FULL_OR_SLIDING},
    "qwen2": {**DENSE, **NO_QK_NORM, **NO_ATTENTION_BIAS, **FULL_OR_SLIDING_OR_BOTH},
    "arcee": {**DENSE, **NO_QK_NORM, **ANY_MLP_BIAS, "use_gated_mlp": [False]},
    "smollm3": {**DENSE, **NO_QK_NORM, **ANY_MLP_BIAS, "positions": ["none"]},
    "starcoder2": {**DENSE, **GELU_MLP, **FULL_OR_SLIDING},
    "gpt2": {**DENSE, **GELU_MLP, "positions": ["learned"], "num_key_value_heads": [SAME_WIDTH]},
    "qwen3_moe": {**EXPERTS, **FULL_OR_SLIDING},
    "mixtral": {**EXPERTS, **NO_QK_NORM, **NO_ATTENTION_BIAS, **FULL_OR_SLIDING, "norm_topk_prob": [True]},
    "dots1": {
        **EXPERTS,
        **FULL_OR_SLIDING_OR_BOTH,
        "expert_balancing": ["bias"],
        "n_shared_experts": [ONE_OR_MORE],
    },
}
NOT_EXPORTABLE = "not exportable"


@strict
class HfLlmConfig(PreTrainedConfig):
    """Names are transformers' own wherever it has one; defaults are those of a Qwen3 of 125M parameters.

    Raises ValueError where sizes or switches contradict each other.
    """

    model_type = "hf_llm"
    keys_to_ignore_at_inference = ["past_key_values"]
    _auto_class = "AutoConfig"  # makes save_pretrained copy this file beside the weights

    # How the layers split over tensor-parallel devices, over expert-parallel ones and over pipeline stages.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.shared_experts.gate_proj": "colwise",
        "layers.*.mlp.shared_experts.up_proj": "colwise",
        "layers.*.mlp.shared_experts.down_proj": "rowwise",
    }
    base_model_ep_plan = {  # pyright: ignore[reportAssignmentType] - declared as a plan for pipelines, by mistake
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    # Sizes

    vocab_size: int = 32768
    """Rows of the embedding and of the head."""
    hidden_size: int = 768
    """Width of the residual stream."""
    intermediate_size: int = 2048
    """Width of the MLP."""
    num_hidden_layers: int = 12
    """Layers that a token passes."""
    num_hidden_groups: int | None = None
    """Layers with weights of their own, each used several times in a row; by default every layer has its own."""
    num_attention_heads: int = 12
    """Query heads."""
    num_key_value_heads: int | None = None
    """Key and value heads; by default as many as query heads."""
    head_dim: int | None = None
    """Width of a head; by default hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    """Tokens of the longest text."""
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    use_cache: bool = True
    """Whether generation keeps keys and values."""
    tie_word_embeddings: bool = True
    """Whether embedding and head are one matrix."""

    # Positions

    positions: Literal["rope", "learned", "alibi", "none"] = "rope"
    """How a token knows its position: rotary angles, a table, a bias that grows with distance, or the mask alone."""
    rope_parameters: dict | None = None
    """transformers' own settings of rotary positions; by default rope_theta 10000."""

    # Attention

    layer_types: list[str] | None = None
    """The kind of each layer (`LAYER_TYPES`); a shorter list is repeated until there is one per layer."""
    sliding_window: int | None = None
    """Tokens that a local layer sees, the present one included."""
    sparse_block_size: int | None = None
    """Tokens of a block of strided attention."""
    sparse_stride: int | None = None
    """Strided attention sees every n-th block before, in blocks."""
    global_attention_every: int | None = None
    """One token in so many sees all and is seen by all, in local-global attention."""
    num_sink_tokens: int | None = None
    """First tokens of a text that sink attention sees beside its window."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases."""
    attention_dropout: float | int = 0.0
    """Dropout of the attention weights."""
    use_qk_norm: bool = True
    """Whether queries and keys are normed."""

    # MLP

    hidden_act: str = "silu"
    """The nonlinearity, by its name in transformers."""
    use_gated_mlp: bool = True
    """Whether a third matrix gates the MLP."""
    mlp_bias: bool = False
    """Whether the matrices of the MLP have biases."""

    # Norms, dropout, logits

    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    """The kind of norm."""
    norm_position: Literal["pre", "post"] = "pre"
    """Whether attention and MLP read a normed copy of the residual stream, or the sum with it is normed."""
    rms_norm_eps: float = 1e-6
    """Epsilon of either kind of norm."""
    embd_pdrop: float | int = 0.0
    """Dropout of the embeddings."""
    resid_pdrop: float | int = 0.0
    """Dropout of what attention and MLP add to the residual stream."""
    final_logit_softcapping: float | None = None
    """The bound of the logits; by default none."""

    # Mixture of experts

    num_experts: int | None = None
    """Experts of a layer; by default an MLP in their place."""
    num_experts_per_tok: int = 2
    """Experts that each token goes to."""
    moe_intermediate_size: int | None = None
    """Width of one expert; by default intermediate_size."""
    n_shared_experts: int = 0
    """Experts that every token uses beside those chosen for it."""
    norm_topk_prob: bool = True
    """Whether the weights of the chosen experts sum to one."""
    expert_balancing: Literal["loss", "bias"] = "loss"
    """How experts get equal shares of the tokens: by a loss, or by a bias for the choice alone."""
    router_aux_loss_coef: float = 0.01
    """Coefficient of the balancing loss; 0 turns it off."""
    output_router_logits: bool = False
    """Whether outputs hold the router's logits and the balancing loss."""

    # Special tokens

    pad_token_id: int | None = None
    """Padding."""
    bos_token_id: int | None = None
    """Beginning of a text."""
    eos_token_id: int | list[int] | None = None
    """End of a text, or of a turn."""

    def __post_init__(self, **kwargs):
        kwargs.pop("exports_to", None)  # written for readers of config.json, derived again here
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} does not divide into num_attention_heads="
                    f"{self.num_attention_heads}; change one of them or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads

        if not self.layer_types:
            self.layer_types = ["full_attention" if self.sliding_window is None else "sliding_attention"]
        repeats = math.ceil(self.num_hidden_layers / len(self.layer_types))
        entries = max(self.num_hidden_layers, len(self.layer_types))  # a list that is too long is an error later
        self.layer_types = (self.layer_types * repeats)[:entries]

        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if not self.num_experts or self.expert_balancing == "bias":
            self.router_aux_loss_coef = 0.0  # TRL takes any other value for that of a model with a balancing loss

        if self.positions != "rope" and self.rope_parameters:
            raise ValueError(f"positions={self.positions} does not read rope_parameters; leave them out")
        super().__post_init__(**kwargs)
        if self.positions != "rope":
            self.rope_parameters = None  # transformers has filled in its default

        # save_pretrained adds only the class being saved; every head must load from any checkpoint.
        self.auto_map = {
            "AutoConfig": "configuration_hf_llm.HfLlmConfig",
            "AutoModel": "modeling_hf_llm.HfLlmModel",
            "AutoModelForCausalLM": "modeling_hf_llm.HfLlmForCausalLM",
            "AutoModelForSequenceClassification": "modeling_hf_llm.HfLlmForSequenceClassification",
        }

    def validate_architecture(self):
        """Check the sizes, as part of the strict dataclass's validation, so that none crashes a forward pass later."""
        super().validate_architecture()
        assert self.num_key_value_heads is not None and self.head_dim is not None  # __post_init__ has filled them in
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of num_key_value_heads="
                f"{self.num_key_value_heads}; every key/value head serves equally many query heads"
            )
        if self.head_dim % 2 and self.positions == "rope":
            raise ValueError(f"head_dim={self.head_dim} is odd; positions=rope rotates pairs of numbers")
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type not in ("default", *ROPE_INIT_FUNCTIONS):
            known = ", ".join(["default", *ROPE_INIT_FUNCTIONS])
            raise ValueError(f"rope_parameters: rope_type {rope_type!r} is unknown; one of {known}")
        for key in ("sparse_block_size", "sparse_stride", "global_attention_every", "num_sink_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} is less than 1")
        if self.sliding_window is not None and self.sliding_window < 2:
            raise ValueError(f"sliding_window={self.sliding_window} is less than 2, a token and the one before it")

    def validate_layer_type(self):
        """Check that each layer's kind exists and has the fields it reads, and that no other such field is set."""
        assert self.layer_types is not None  # __post_init__ has filled them in
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(f"layer_types={unknown[0]} is unknown; one of {', '.join(LAYER_TYPES)}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries and num_hidden_layers={self.num_hidden_layers}"
            )

        kind_that_reads = {}
        for kind in self.layer_types:
            for key in LAYER_TYPES[kind]:
                kind_that_reads[key] = kind
        optional_keys = {key for keys in LAYER_TYPES.values() for key in keys}
        for key in sorted(optional_keys):
            value = getattr(self, key)
            if key in kind_that_reads and value is None:
                raise ValueError(f"layer_types={kind_that_reads[key]} needs {key}")
            if key not in kind_that_reads and value is not None:
                raise ValueError(f"{key}={value} is read by none of layer_types={sorted(set(self.layer_types))}")

    def validate_switches(self):
        """Check that no two switches contradict each other, as part of the strict dataclass's validation; the error
        names both."""
        assert self.layer_types is not None  # __post_init__ has filled them in
        self.check_groups()
        if self.positions == "alibi" and "sink_attention" in self.layer_types:
            raise ValueError("positions=alibi fades the first tokens out, layer_types=sink_attention keeps them")
        self.check_experts()

    def check_groups(self):
        """Raise ValueError unless the layers that share weights are alike."""
        groups = self.num_hidden_groups
        layers = self.num_hidden_layers
        if groups is None:
            return
        assert self.layer_types is not None
        if groups < 1 or layers % groups:
            raise ValueError(f"num_hidden_groups={groups} does not divide num_hidden_layers={layers}")
        group_size = layers // groups
        for layer, kind in enumerate(self.layer_types):
            first_of_group = layer // group_size * group_size
            if kind != self.layer_types[first_of_group]:
                raise ValueError(f"num_hidden_groups={groups} lets layers share weights whose layer_types differ")

    def check_experts(self):
        """Raise ValueError for switches that contradict a mixture of experts, or the lack of one."""
        if not self.num_experts:
            if self.n_shared_experts:
                raise ValueError(
                    f"n_shared_experts={self.n_shared_experts} stand beside others, and num_experts is not set"
                )
            return
        if not self.use_gated_mlp or self.mlp_bias:
            switch = "mlp_bias=True" if self.use_gated_mlp else "use_gated_mlp=False"
            raise ValueError(
                f"{switch} does not go with num_experts={self.num_experts}: experts are gated and have no biases"
            )
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} is not between 1 and num_experts={self.num_experts}"
            )

    @property
    def residual_scale(self) -> float:
        """By how much smaller the projections into the residual stream start, so that the sum over all layers keeps the
        size of one (GPT-2 paper, section 2.3: two of them in every layer)."""
        return (2 * self.num_hidden_layers) ** -0.5

    @property
    def needs_a_mask(self) -> str | None:
        """The switch, as key=value, for which attention has to look at a mask or a bias of every pair of tokens."""
        if self.positions == "alibi":
            return "positions=alibi"
        assert self.layer_types is not None  # __post_init__ has filled them in
        masked_kinds = [kind for kind in self.layer_types if kind not in MASKLESS]
        return f"layer_types={masked_kinds[0]}" if masked_kinds else None

    @property
    def cannot_be_paged(self) -> str | None:
        """The switch, as key=value, that transformers' continuous batching does not support."""
        if self.needs_a_mask:
            return self.needs_a_mask
        return None if self.num_hidden_groups is None else f"num_hidden_groups={self.num_hidden_groups}"

    @property
    def cannot_be_piped(self) -> str | None:
        """The switch, as key=value, that pipeline stages would get wrong: each stage would apply again what belongs to
        the embedding, or lack the other stages' layers at the end."""
        if self.positions == "learned":
            return "positions=learned"
        if self.embd_pdrop:
            return f"embd_pdrop={self.embd_pdrop}"
        return f"num_experts={self.num_experts}" if self.num_experts else None

    @property
    def cannot_be_sliced(self) -> str | None:
        """The switch, as key=value, that needs all heads in one place; tensor parallelism splits them."""
        return "positions=alibi" if self.positions == "alibi" else None

    @property
    def exports_to(self) -> str:
        """The model_type of transformers that is this architecture weight for weight, or "not exportable"."""
        for model_type in STOCK_CLASSES:
            if not self.export_obstacles(model_type):
                return model_type
        return NOT_EXPORTABLE

    def export_obstacles(self, model_type: str | None = None) -> list[str]:
        """The switches, as key=value, that keep this model from being a `model_type` of transformers; by default of the
        class that comes nearest."""
        if model_type is None:
            candidates = [self.export_obstacles(name) for name in STOCK_CLASSES if self._has_experts_as(name)]
            return min(candidates, key=len)
        if not self._has_experts_as(model_type):
            return [f"num_experts={self.num_experts}"]
        fields = HfLlmConfig.__annotations__
        return [self._written(field) for field in fields if not self._can_export(field, model_type)]

    def _has_experts_as(self, model_type: str) -> bool:
        """Whether both this model and a stock class have experts, or neither."""
        return bool(self.num_experts) == ("num_experts" in STOCK_CLASSES[model_type])

    def _can_export(self, field: str, model_type: str) -> bool:
        """Whether a stock class takes this model's value of a field."""
        row = STOCK_CLASSES[model_type]
        if field in FIXED_AT_EXPORT:
            allowed = row.get(field, [FIXED_AT_EXPORT[field]])
        elif field in KEPT_AT_EXPORT:
            allowed = row.get(field)
        else:
            return False  # a new field that is in neither list yet
        return allowed is None or self._summary(field) in allowed

    def _summary(self, field: str) -> Any:
        """The value of a field in the form that the rows of `STOCK_CLASSES` have."""
        value = getattr(self, field)
        if field == "layer_types":
            return "+".join(sorted(set(value)))
        if field in ("num_experts", "n_shared_experts") and value:
            return ONE_OR_MORE
        if field == "num_key_value_heads":
            is_same_width = value * self.head_dim == self.hidden_size
            return SAME_WIDTH if is_same_width and value == self.num_attention_heads else value
        return value

    def _written(self, field: str) -> str:
        """A field as key=value, for messages."""
        value = self._summary(field) if field == "layer_types" else getattr(self, field)
        return f"{field}={value}"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as config.json has it, with the stock class that it exports to."""
        return {**super().to_dict(), "exports_to": self.exports_to}


__all__ = ["HfLlmConfig"]
