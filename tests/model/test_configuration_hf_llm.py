import json

import pytest
from transformers import CONFIG_MAPPING

from hf_llm.model.configuration_hf_llm import HfLlmConfig
from tests.tiny_models import tiny_config
from tests.variants import CHANGES, VARIANTS


def test_the_defaults_fill_in_heads_and_rotary_positions():
    config = HfLlmConfig()
    assert config.head_dim == 64 and config.num_key_value_heads == 12
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


def test_keys_are_those_of_transformers_wherever_it_has_one():
    known = set().union(*map(fields, ("qwen3_moe", "dots1", "gemma2", "glm4_moe", "phi", "albert", "llama")))
    assert set(HfLlmConfig.__annotations__) - known == {
        *("positions", "sparse_block_size", "sparse_stride", "global_attention_every", "num_sink_tokens"),
        *("use_gated_mlp", "norm_type", "norm_position", "expert_balancing"),
    }


def fields(model_type: str) -> set[str]:
    return set(CONFIG_MAPPING[model_type].__dataclass_fields__)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"hidden_size": 33, "head_dim": None}, "hidden_size=33"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"positions": "absolute"}, "positions"),
        ({"sliding_window": 1}, "sliding_window=1"),
        ({"layer_types": ["chunked_attention"]}, "chunked_attention"),
        ({"layer_types": ["full_attention"] * 3}, "3 entries.*num_hidden_layers=2"),
        ({"layer_types": ["strided_attention"]}, "strided_attention needs sparse_"),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, "sliding_window=8.*full_attention"),
        ({"num_sink_tokens": 4}, "num_sink_tokens=4.*full_attention"),
        ({"layer_types": ["sink_attention"], "sliding_window": 4, "num_sink_tokens": 0}, "num_sink_tokens=0"),
        ({"num_hidden_groups": 3}, "num_hidden_groups=3.*num_hidden_layers=2"),
        (
            {"num_hidden_groups": 1, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
            "num_hidden_groups=1.*layer_types",
        ),
        (
            {"positions": "alibi", "layer_types": ["sink_attention"], "sliding_window": 4, "num_sink_tokens": 2},
            "positions=alibi.*sink_attention",
        ),
        (
            {"positions": "none", "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
            "none.*rope_parameters",
        ),
        ({"num_experts": 4, "use_gated_mlp": False}, "use_gated_mlp=False.*num_experts=4"),
        ({"num_experts": 4, "mlp_bias": True}, "mlp_bias=True.*num_experts=4"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3.*num_experts=2"),
        ({"n_shared_experts": 1}, "n_shared_experts=1.*num_experts"),
    ],
)
def test_what_does_not_fit_together_is_an_error_that_names_it(wrong, named):
    with pytest.raises(Exception, match=named):
        tiny_config(**wrong)


def test_the_saved_config_names_a_class_for_every_head(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert set(HfLlmConfig.from_pretrained(tmp_path).auto_map) == {
        *("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    }
    assert (tmp_path / "configuration_hf_llm.py").exists()


def test_a_pattern_of_layers_is_repeated_to_the_last_layer():
    pattern = ["sliding_attention", "sliding_attention", "full_attention"]
    config = tiny_config(num_hidden_layers=5, layer_types=pattern, sliding_window=8)
    assert config.layer_types == [*pattern, *pattern[:2]]
    assert tiny_config(sliding_window=8).layer_types == ["sliding_attention"] * 2
    assert tiny_config().layer_types == ["full_attention"] * 2


def test_a_checkpoint_from_before_the_switches_still_loads():
    saved = {"model_type": "hf_llm", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 8}
    config = HfLlmConfig.from_dict(saved)
    assert config.exports_to == "qwen3" and config.positions == "rope"


def test_every_field_survives_saving_and_loading(tmp_path):
    for name, changes in CHANGES.items():
        config = tiny_config(**changes)
        config.save_pretrained(tmp_path / name)
        loaded = HfLlmConfig.from_pretrained(tmp_path / name)
        ours = {key: getattr(config, key) for key in HfLlmConfig.__annotations__}
        assert {key: getattr(loaded, key) for key in ours} == ours, name
        assert json.loads((tmp_path / name / "config.json").read_text())["exports_to"] == VARIANTS[name][1]
