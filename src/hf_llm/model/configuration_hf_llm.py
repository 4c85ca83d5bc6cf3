"""The shape of an hf_llm model: a decoder whose parts are switches, by default a Qwen3.

This file travels with the weights, so it imports nothing but transformers and huggingface_hub.
docs/architecture.md lists the switches with their papers.
"""

# ruff: noqa: RUF012 - class attributes in the form that transformers reads

from collections import Counter
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

# What each kind of attention layer needs to be told.
LAYER_TYPES = {
    "full_attention": (),
    "sliding_attention": ("sliding_window",),
    "strided_attention": ("sparse_block_size", "sparse_stride"),
    "local_global_attention": ("sliding_window", "global_attention_every"),
    "sink_attention": ("sliding_window", "num_sink_tokens"),
}

MASKLESS = ("full_attention", "sliding_attention")  # kernels know these by themselves

# transformers' own classes, and what each of them fixes; the first that fits is the one a model exports to.
ROPE = {"positions": ["rope"], "norm_type": ["rms_norm"], "use_gated_mlp": [True]}
DENSE = {"num_experts": [None]}
WHOLE, ALIKE, MIXED = ["full"], ["full", "sliding"], ["full", "sliding", "mixed"]
NO_BIAS = {"attention_bias": [False], "mlp_bias": [False]}
GELU_MLP = {"norm_type": ["layer_norm"], "use_gated_mlp": [False], "use_qk_norm": [False]}
STOCK = {
    "qwen3": {**ROPE, **DENSE, "use_qk_norm": [True], "mlp_bias": [False], "attention": MIXED},
    "llama": {**ROPE, **DENSE, "use_qk_norm": [False], "attention": WHOLE},
    "mistral": {**ROPE, **DENSE, **NO_BIAS, "use_qk_norm": [False], "attention": ALIKE},
    "qwen2": {**ROPE, **DENSE, **NO_BIAS, "use_qk_norm": [False], "attention": MIXED},
    "arcee": {**ROPE, **DENSE, "use_gated_mlp": [False], "use_qk_norm": [False], "attention": WHOLE},
    "smollm3": {**ROPE, **DENSE, "positions": ["none"], "use_qk_norm": [False], "attention": WHOLE},
    "starcoder2": {**GELU_MLP, **DENSE, "positions": ["rope"], "attention": ALIKE},
    "gpt2": {**GELU_MLP, **DENSE, "positions": ["learned"], "attention": WHOLE, "square_attention": [True]},
    "qwen3_moe": {
        **{**ROPE, **NO_BIAS, "attention_bias": [True, False], "use_qk_norm": [True], "attention": ALIKE},
        **{"expert_balancing": ["loss"], "n_shared_experts": [0]},
    },
    "mixtral": {
        **{**ROPE, **NO_BIAS, "use_qk_norm": [False], "attention": ALIKE},
        **{"expert_balancing": ["loss"], "n_shared_experts": [0], "norm_topk_prob": [True]},
    },
    "dots1": {
        **{**ROPE, **NO_BIAS, "attention_bias": [True, False], "use_qk_norm": [True], "attention": MIXED},
        **{"expert_balancing": ["bias"], "shared_expert": [True]},
    },
}
EVERYWHERE = {"norm_position": ["pre"], "final_logit_softcapping": [None]}


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
    base_model_ep_plan = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32768
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_hidden_groups: int | None = None  # layers with weights of their own, used again by the rest; all of them
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None  # as many as attention heads
    head_dim: int | None = None  # hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True

    positions: Literal["rope", "learned", "alibi", "none"] = "rope"
    rope_parameters: dict | None = None  # transformers' own; theta 10000

    layer_types: list[str] | None = None  # repeated until there is one per layer
    sliding_window: int | None = None  # tokens a local layer sees, the present one counted
    sparse_block_size: int | None = None  # tokens
    sparse_stride: int | None = None  # blocks
    global_attention_every: int | None = None  # tokens
    num_sink_tokens: int | None = None

    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    use_qk_norm: bool = True

    hidden_act: str = "silu"
    use_gated_mlp: bool = True
    mlp_bias: bool = False

    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    norm_position: Literal["pre", "post"] = "pre"
    rms_norm_eps: float = 1e-6  # of either type
    embd_pdrop: float | int = 0.0
    resid_pdrop: float | int = 0.0
    final_logit_softcapping: float | None = None

    num_experts: int | None = None
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None  # intermediate_size
    n_shared_experts: int = 0
    norm_topk_prob: bool = True
    expert_balancing: Literal["loss", "bias"] = "loss"
    router_aux_loss_coef: float = 0.01  # of the balancing loss; 0 turns it off
    output_router_logits: bool = False

    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        kwargs.pop("exports_to", None)  # written for readers of config.json, worked out anew here
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
        repeats = -(-self.num_hidden_layers // len(self.layer_types))
        self.layer_types = (self.layer_types * repeats)[: max(self.num_hidden_layers, len(self.layer_types))]
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if not self.num_experts or self.expert_balancing == "bias":
            self.router_aux_loss_coef = 0.0  # TRL takes any other value for that of a model with a balancing loss
        if self.positions != "rope" and self.rope_parameters:
            raise ValueError(f"positions={self.positions} leaves nothing for rope_parameters to say")
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
        """Part of the strict dataclass's validation: sizes that do not fit are an error here, not a crash later."""
        super().validate_architecture()
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of num_key_value_heads="
                f"{self.num_key_value_heads}; every key/value head serves equally many query heads"
            )
        if self.head_dim % 2 and self.positions == "rope":
            raise ValueError(f"head_dim={self.head_dim} is odd; positions=rope turns pairs of numbers")
        for key in ("sparse_block_size", "sparse_stride", "global_attention_every", "num_sink_tokens"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} is less than 1")
        if self.sliding_window is not None and self.sliding_window < 2:
            raise ValueError(f"sliding_window={self.sliding_window} is less than 2, a token and the one before it")

    def validate_layer_type(self):
        """Every layer's attention is known, and told what it needs; nothing is told in vain."""
        if unknown := sorted(set(self.layer_types) - set(LAYER_TYPES)):
            raise ValueError(f"layer_types={unknown[0]} is unknown; there are {', '.join(LAYER_TYPES)}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries and num_hidden_layers={self.num_hidden_layers}"
            )
        needed = {key: kind for kind in self.layer_types for key in LAYER_TYPES[kind]}
        for key in sorted({key for keys in LAYER_TYPES.values() for key in keys}):
            value = getattr(self, key)
            if key in needed and value is None:
                raise ValueError(f"layer_types={needed[key]} needs {key}")
            if key not in needed and value is not None:
                raise ValueError(f"{key}={value} is read by none of layer_types={sorted(set(self.layer_types))}")

    def validate_switches(self):
        """Part of the strict dataclass's validation: two switches that contradict each other are both named."""
        groups, layers = self.num_hidden_groups, self.num_hidden_layers
        if groups is not None and (groups < 1 or layers % groups):
            raise ValueError(f"num_hidden_groups={groups} does not divide num_hidden_layers={layers}")
        if groups is not None and any(
            kind != self.layer_types[layer // (layers // groups) * (layers // groups)]
            for layer, kind in enumerate(self.layer_types)
        ):
            raise ValueError(f"num_hidden_groups={groups} lets layers share weights whose layer_types differ")
        if self.positions == "alibi" and "sink_attention" in self.layer_types:
            raise ValueError("positions=alibi fades the first tokens out, layer_types=sink_attention keeps them")
        if self.num_experts:
            self.check_experts()
        elif self.n_shared_experts:
            raise ValueError(
                f"n_shared_experts={self.n_shared_experts} stand beside others, and num_experts is not set"
            )

    def check_experts(self):
        """The switches that contradict a mixture of experts."""
        if not self.use_gated_mlp or self.mlp_bias:
            key = "mlp_bias=True" if self.use_gated_mlp else "use_gated_mlp=False"
            raise ValueError(f"{key} is not for num_experts={self.num_experts}: experts are gated and have no biases")
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
        return next((f"layer_types={kind}" for kind in self.layer_types if kind not in MASKLESS), None)

    @property
    def cannot_be_paged(self) -> str | None:
        """The switch, as key=value, that transformers' continuous batching knows nothing of."""
        shared = None if self.num_hidden_groups is None else f"num_hidden_groups={self.num_hidden_groups}"
        return self.needs_a_mask or shared

    @property
    def cannot_be_piped(self) -> str | None:
        """The switch, as key=value, that pipeline stages would get wrong: what each adds again to what it is given, and
        what needs all layers at the end."""
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
        return next((name for name in STOCK if not self.obstacles(name)), "not exportable")

    def obstacles(self, name: str | None = None) -> list[str]:
        """The switches, as key=value, that keep this model from being a `name` of transformers; by default of the
        class that comes nearest."""
        if name is None:
            return min((self.obstacles(name) for name in STOCK if self._is_as_dense(name)), key=len)
        if not self._is_as_dense(name):
            return [f"num_experts={self.num_experts}"]
        found = {key: getattr(self, key, None) for key in {**STOCK[name], **EVERYWHERE}} | self._derived()
        wrong = [key for key, allowed in {**STOCK[name], **EVERYWHERE}.items() if found[key] not in allowed]
        return [self._as_written(key) for key in wrong]

    def _is_as_dense(self, name: str) -> bool:
        return ("num_experts" in STOCK[name]) != bool(self.num_experts)

    def _derived(self) -> dict[str, Any]:
        """What stock classes fix that is no key of ours."""
        kinds = set(self.layer_types)
        names = {"full_attention": "full", "sliding_attention": "sliding"}
        special = sorted(kinds - set(names))
        return {
            "attention": special[0] if special else "mixed" if len(kinds) > 1 else names[kinds.pop()],
            "square_attention": self.num_key_value_heads * self.head_dim == self.hidden_size
            and self.num_key_value_heads == self.num_attention_heads,
            "shared_expert": self.n_shared_experts > 0,
        }

    def _as_written(self, key: str) -> str:
        written = {
            "attention": ("layer_types", "+".join(sorted(Counter(self.layer_types)))),
            "square_attention": ("num_key_value_heads", self.num_key_value_heads),
            "shared_expert": ("n_shared_experts", self.n_shared_experts),
        }
        name, value = written.get(key, (key, getattr(self, key, None)))
        return f"{name}={value}"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "exports_to": self.exports_to}


__all__ = ["HfLlmConfig"]
