"""Every causal class of transformers is trained for two steps, or refused in words."""

from functools import cache

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_llm.core.errors import UserError
from hf_llm.model.load import build_config, build_model, build_without_weights, config_class
from hf_llm.model.summary import flops_per_token, summarize_model
from tests.tiny_models import tiny_tokenizer

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "max_position_embeddings": 512,
}  # fmt: skip
MAX_PARAMETERS = 30_000_000  # of a class whose size does not follow from these keys, it is only counted
CONTEXT = 32


@cache
def tokenizer():
    return tiny_tokenizer()


def tiny_section(model_type: str) -> dict:
    cls = config_class({"model_type": model_type})
    known = {*cls.__dataclass_fields__, *cls.attribute_map}
    names = {cls.attribute_map.get(key, key) for key in SIZES}
    sizes = {key: value for key, value in SIZES.items() if key in known and cls.attribute_map.get(key, key) in names}
    return {"model_type": model_type, **sizes}


def train_two_steps(model: torch.nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        tokens = torch.randint(5, 100, (2, 16))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def outcome(model_type: str) -> str:
    """What becomes of a model type: trained, counted or refused. Any other error than a UserError is raised."""
    try:
        section = tiny_section(model_type)
        model = build_without_weights(build_config(section, tokenizer(), CONTEXT))
        is_small = model.num_parameters() < MAX_PARAMETERS
        if is_small:
            model = build_model(section, tokenizer(), CONTEXT)
    except UserError as error:
        assert "model" in str(error) or "context" in str(error)
        return "refused"

    assert summarize_model(model)
    assert flops_per_token(model, CONTEXT) > 0
    if not is_small:
        return "counted"
    assert all(map(torch.isfinite, map(torch.tensor, train_two_steps(model))))
    return "trained"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_causal_class_is_trained_counted_or_refused_in_words(model_type):
    assert outcome(model_type) in ("trained", "counted", "refused")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "gemma4_text", "aria_text", "mamba", "xlnet"])
def test_common_classes_are_not_refused(model_type):
    assert outcome(model_type) in ("trained", "counted")


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("gemma3", "its part for texts is model_type: gemma3_text"),
        ("got_ocr2", "made of several"),
        ("llama4", "llama4_text"),
    ],
)
def test_a_class_of_several_models_is_refused(model_type, words):
    with pytest.raises(UserError, match=words):
        config_class({"model_type": model_type})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"model_type": "olmoe", "num_experts": 4}, "olmoe with these settings cannot be built"),
        ({"model_type": "gptj", "rotary_dim": 64}, "compare them with the defaults of GPTJConfig"),
        ({"model_type": "deepseek_v3", "num_key_value_heads": 2}, "cannot be built"),
    ],
)
def test_settings_that_fail_in_a_forward_pass_are_refused_before_it(section, words):
    with pytest.raises(UserError, match=words):
        build_model({**tiny_section(section["model_type"]), **section}, tokenizer(), CONTEXT)
