import pytest
from tiny_models import tiny_config
from transformers import Qwen3Config

from hf_llm.model.configuration_hf_llm import HfLlmConfig


def test_the_defaults_fill_in_heads_and_rotary_positions():
    config = HfLlmConfig()
    assert config.head_dim == 64 and config.num_key_value_heads == 12
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


def test_every_key_of_ours_is_one_of_qwen3():
    assert set(HfLlmConfig.__annotations__) <= set(Qwen3Config.__dataclass_fields__)


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
