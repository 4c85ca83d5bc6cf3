"""Every switch of the model once, as changes to the tiny configuration."""

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GELU = {"norm_type": "layer_norm", "use_gated_mlp": False, "hidden_act": "gelu_new", "use_qk_norm": False}
GPT2 = {**GELU, "positions": "learned", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}

# name -> (changes, what it exports to)
VARIANTS = {
    "default": ({}, "qwen3"),
    "multi_query": ({"num_key_value_heads": 1}, "qwen3"),
    "all_heads": ({"num_key_value_heads": 4, "attention_bias": True}, "qwen3"),
    "no_qk_norm": ({"use_qk_norm": False, "mlp_bias": True, "attention_bias": True}, "llama"),
    "learned": ({"positions": "learned"}, "not exportable"),
    "gpt2": (GPT2, "gpt2"),
    "alibi": ({"positions": "alibi"}, "not exportable"),
    "no_positions": ({"positions": "none", "use_qk_norm": False}, "smollm3"),
    "rope_linear": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "qwen3"),
    "rope_dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "qwen3"),
    "rope_yarn": ({"rope_parameters": YARN}, "qwen3"),
    "rope_llama3": ({"rope_parameters": LLAMA3}, "qwen3"),
    "window": ({"sliding_window": 6, "use_qk_norm": False}, "mistral"),
    "window_and_full": (
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "use_qk_norm": False},
        "qwen2",
    ),
    "window_qk_norm": ({"sliding_window": 6, "layer_types": ["full_attention", "sliding_attention"]}, "qwen3"),
    "strided": (
        {"layer_types": ["strided_attention", "full_attention"], "sparse_block_size": 2, "sparse_stride": 3},
        "not exportable",
    ),
    "local_global": (
        {"layer_types": ["local_global_attention"], "sliding_window": 4, "global_attention_every": 5},
        "not exportable",
    ),
    "sinks": ({"layer_types": ["sink_attention"], "sliding_window": 6, "num_sink_tokens": 2}, "not exportable"),
    "alibi_window": ({"positions": "alibi", "sliding_window": 6}, "not exportable"),
    "gelu_layer_norm": ({**GELU, "mlp_bias": True}, "starcoder2"),
    "geglu": ({"hidden_act": "gelu"}, "qwen3"),
    "relu2": ({"hidden_act": "relu2", "use_gated_mlp": False, "use_qk_norm": False}, "arcee"),
    "post_norm": ({"norm_position": "post"}, "not exportable"),
    "untied": ({"tie_word_embeddings": False}, "qwen3"),
    "shared_layers": ({"num_hidden_layers": 4, "num_hidden_groups": 2}, "qwen3"),
    "soft_cap": ({"final_logit_softcapping": 3.0}, "not exportable"),
    "dropout": ({"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attention_dropout": 0.1}, "qwen3"),
    "experts": (EXPERTS, "qwen3_moe"),
    "experts_no_qk_norm": ({**EXPERTS, "use_qk_norm": False}, "mixtral"),
    "experts_by_bias": ({**EXPERTS, "expert_balancing": "bias", "n_shared_experts": 1}, "dots1"),
    "experts_shared": ({**EXPERTS, "n_shared_experts": 2}, "not exportable"),
}
CHANGES = {name: changes for name, (changes, _) in VARIANTS.items()}
