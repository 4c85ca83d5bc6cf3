import pytest
from tiny_models import tiny_config
from transformers import CONFIG_MAPPING

from hf_llm.model.configuration_hf_llm import HfLlmConfig


def test_the_defaults_fill_in_heads_and_rotary_positions():
    config = HfLlmConfig()
    assert config.head_dim == 64 and config.num_key_value_heads == 12
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


def test_keys_are_those_of_transformers_wherever_it_has_one():
    known = {key for name in ("qwen3_moe", "mixtral", "dots1", "gemma2", "glm4_moe", "phi", "albert") for key in fields(name)}
    assert set(HfLlmConfig.__annotations__) - known == {
        *("positions", "sparse_block_size", "sparse_stride", "global_attention_every", "num_sink_tokens"),
        *("use_gated_mlp", "norm_type", "norm_position", "expert_balancing", "mlp_bias"),
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
    ],
)
def test_sizes_that_do_not_fit_are_an_error_that_names_them(wrong, named):
    with pytest.raises(Exception, match=named):
        tiny_config(**wrong)


def test_the_saved_config_names_a_class_for_every_head(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert set(HfLlmConfig.from_pretrained(tmp_path).auto_map) == {
        *("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    }
    assert (tmp_path / "configuration_hf_llm.py").exists()
