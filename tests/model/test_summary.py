import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_llm.model.load import build_model
from hf_llm.model.summary import flops_per_token, parameters_by_part, summarize_model
from tests.tiny_models import tiny_config, tiny_model, tiny_tokenizer


def test_the_parts_add_up_to_the_model():
    for model in (tiny_model(), tiny_model(tie_word_embeddings=False)):
        counted = [parameter for parts in parameters_by_part(model).values() for _, parameter in parts]
        assert sum(parameter.numel() for parameter in counted) == model.num_parameters()


def test_every_parameter_of_a_known_architecture_has_a_part():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    for model_type in ("gpt2", "llama", "qwen3", "bert", "albert", "modernbert", "distilbert", "t5", "mixtral"):
        model = build_model({"model_type": model_type, **sizes}, tiny_tokenizer())
        assert "other" not in parameters_by_part(model), model_type


def test_the_table_names_counts_and_shapes():
    text = summarize_model(tiny_model())
    assert "embeddings          10,240" in text
    assert "gate_proj 48x32" in text and "q_proj 32x32" in text and "k_proj 16x32" in text
    assert "tied to the embeddings" in text
    assert "tied" not in summarize_model(tiny_model(tie_word_embeddings=False))


def test_flops_of_a_token_follow_the_formula_of_palm():
    multiplying = tiny_model().num_parameters()
    attention = 12 * 2 * 4 * 8 * 100
    assert flops_per_token(tiny_model(), 100) == 6 * multiplying + attention
    assert flops_per_token(tiny_config(), 100) == 6 * multiplying + attention
    # An untied embedding is looked up, not multiplied; the head of the same size takes its place.
    assert flops_per_token(tiny_config(tie_word_embeddings=False), 100) == 6 * multiplying + attention


def test_the_formula_is_near_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(), attn_implementation="eager")
    tokens = torch.zeros(2, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()  # the counter overlooks the in-place product of the chunked loss
    assert counter.get_total_flops() / tokens.numel() / flops_per_token(model, 64) == pytest.approx(1, abs=0.05)


STOCK = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "section",
    [
        {"model_type": "bert", **STOCK},
        {"model_type": "albert", "embedding_size": 16, **STOCK},
        {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4},
    ],
)
def test_it_is_near_for_other_families_too(section):
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model({"attn_implementation": "eager", **section}, tiny_tokenizer(), 100)
    tokens = torch.zeros(2, 100, dtype=torch.long)
    # What span corruption leaves of a window, and takes out.
    inputs = {"input_ids": tokens[:, :90], "decoder_input_ids": tokens[:, :20]}
    inputs = inputs if model.config.is_encoder_decoder else {"input_ids": tokens}
    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    counted = counter.get_total_flops() / sum(part.numel() for part in inputs.values())
    assert counted / flops_per_token(model, 100) == pytest.approx(1, abs=0.05)


def test_only_the_active_experts_count():
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    model = tiny_model(**experts, n_shared_experts=1)
    of_experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    assert of_experts == 2 * 8 * 3 * 24 * 32
    expected = 6 * (model.num_parameters() - of_experts * 6 // 8) + 12 * 2 * 4 * 8 * 100
    assert flops_per_token(model, 100) == expected
    fewer = flops_per_token(tiny_model(**{**experts, "num_experts_per_tok": 1}), 100)
    assert flops_per_token(tiny_model(**experts), 100) - fewer == 6 * of_experts // 8
    stock = {
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    mixtral = build_model({"model_type": "mixtral", "num_key_value_heads": 2, **stock}, tiny_tokenizer())
    chosen = flops_per_token(mixtral, 100)
    mixtral.config.num_experts_per_tok = 8
    assert flops_per_token(mixtral, 100) - chosen == 6 * of_experts * 6 // 8


def test_shared_layers_count_each_time_and_position_tables_and_what_no_one_sees_not_at_all():
    assert flops_per_token(tiny_model(num_hidden_groups=1), 100) == flops_per_token(tiny_model(), 100)
    learned = tiny_model(positions="learned")
    assert flops_per_token(learned, 100) == flops_per_token(tiny_model(), 100)
    window = flops_per_token(tiny_model(sliding_window=20), 100)
    assert flops_per_token(tiny_model(), 100) - window == 12 * 2 * 4 * 8 * 80


def test_without_attention_the_matrices_are_what_counts():
    model = build_model({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}, tiny_tokenizer())
    per_token = 6 * sum(p.numel() for n, p in model.named_parameters() if "lm_head" not in n)
    assert flops_per_token(model, 4096) == per_token
    assert summarize_model(model)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({}, None),
        ({"intermediate_size": 2048}, "32.0 times as wide"),
        ({"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 4}, "a head has 4 numbers"),
        ({"vocab_size": 65536}, "of the parameters are the vocabulary's"),
    ],
)
def test_the_summary_names_odd_proportions(sizes, words):
    model = tiny_model(**{"hidden_size": 64, "intermediate_size": 192, "vocab_size": 256, "head_dim": 16, **sizes})
    odd = [line for line in summarize_model(model).splitlines() if line.startswith("  odd: ")]
    assert len(odd) == (words is not None), odd
    assert words is None or words in odd[0]
