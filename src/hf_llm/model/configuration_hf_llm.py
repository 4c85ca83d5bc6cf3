"""The shape of an hf_llm model: a decoder with grouped-query attention, rotary positions, RMS norms and SwiGLU.

This file travels with the weights, so it imports nothing but transformers and huggingface_hub.
"""

# ruff: noqa: RUF012 - class attributes in the form that transformers reads

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters


@strict
class HfLlmConfig(PreTrainedConfig):
    """Names are Qwen3Config's, whose architecture this is weight for weight; defaults are those of a 125M model.

    Raises ValueError where the sizes do not fit together.
    """

    model_type = "hf_llm"
    keys_to_ignore_at_inference = ["past_key_values"]
    _auto_class = "AutoConfig"  # makes save_pretrained copy this file beside the weights

    # How the layers split over tensor-parallel devices and over pipeline stages.
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
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None  # as many as attention heads
    head_dim: int | None = None  # hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: RopeParameters | dict | None = None  # theta 10000
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} does not divide into num_attention_heads="
                    f"{self.num_attention_heads}; change one of them or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
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
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions turn pairs of numbers")


__all__ = ["HfLlmConfig"]
