import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from hf_llm.core.errors import UserError
from hf_llm.model.load import (
    build_config,
    build_model,
    config_class,
    find_objective,
    load_model,
    load_tokenizer,
    resolve_context,
)
from tests.odd_tokenizers import with_unused_ids
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 2}  # those of tiny_model


def test_the_tokenizer_decides_vocabulary_and_special_tokens():
    model = build_model(TINY, tiny_tokenizer())
    assert model.config.model_type == "hf_llm"
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 320
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id) == (256, 257, None)
    assert model.dtype == torch.float32


def test_the_context_is_that_of_training_unless_the_section_names_one():
    assert build_model(TINY, tiny_tokenizer(), context=64).config.max_position_embeddings == 64
    section = {**TINY, "max_position_embeddings": 128}
    assert build_model(section, tiny_tokenizer(), context=64).config.max_position_embeddings == 128
    with pytest.raises(UserError, match=r"256 is more than model.max_position_embeddings, 128"):
        build_model(section, tiny_tokenizer(), context=256)


@pytest.mark.parametrize(
    "section",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4},
        {"model_type": "gpt2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
        {"model_type": "llama", "num_key_value_heads": 2, **TINY},
        {"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 2, **TINY},
    ],
)
def test_any_architecture_of_transformers_starts_from_scratch(section):
    model = build_model(section, tiny_tokenizer(), context=64)
    assert model.config.model_type == section["model_type"]
    assert model.config.hidden_size == 32 and model.config.max_position_embeddings == 64
    tokens = torch.arange(16)[None]
    assert abs(model(tokens, labels=tokens).loss.item() - math.log(320)) < 0.5


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model_type": "lama"}, "did you mean llama"),
        ({"hiden_size": 32}, "model.hiden_size.*did you mean hidden_size"),
        ({**TINY, "hidden_size": "wide"}, "hidden_size"),
        ({**TINY, "num_attention_heads": 5}, "num_attention_heads=5"),
        ({**TINY, "hidden_act": "silly"}, "silly"),
        ({**TINY, "vocab_size": 100}, "model.vocab_size: 100 is less"),
    ],
)
def test_a_wrong_section_is_an_error_that_names_the_key(section, message):
    with pytest.raises(UserError, match=message):
        build_model(section, tiny_tokenizer())


def test_a_tokenizer_that_pads_with_its_end_of_text_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="padding has a token of its own"):
        build_model(TINY, tokenizer)


def test_config_class_is_ours_where_the_section_says_nothing():
    assert config_class({}).model_type == "hf_llm"
    assert config_class({"model_type": "bert"}).model_type == "bert"


def test_a_model_loads_in_the_dtype_asked_for_whatever_the_file_holds(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, "auto").dtype == torch.bfloat16


def test_an_adapter_loads_with_its_base_merged_or_not(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base, tokens = save_tiny_model(tmp_path / "base"), torch.arange(16)[None]
    model = get_peft_model(load_model(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    merged, apart = load_model(tmp_path / "adapter"), load_model(tmp_path / "adapter", merge_adapter=False)
    assert isinstance(apart, PeftModel) and type(merged) is type(load_model(base))
    for loaded in (merged, apart):
        torch.testing.assert_close(loaded.eval()(tokens).logits, model.eval()(tokens).logits, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_loaded_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="there is no folder runs/none/base"):
        load_model("runs/none/base")
    with pytest.raises(UserError, match=f"{tmp_path}: no model to load"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: no tokenizer to load"):
        load_tokenizer(tmp_path)
    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model to load"):
        load_model(tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    model = tiny_model()
    weights = model.state_dict()
    del weights["model.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"1 weights are missing.*model\.norm\.weight"):
        load_model(tmp_path)


def test_a_stock_model_loads_too(tmp_path):
    model = build_model({"model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 2, **TINY}, tiny_tokenizer())
    model.save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path), Qwen3ForCausalLM)
    assert isinstance(AutoModelForCausalLM.from_config(model.config), Qwen3ForCausalLM)


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
ALBERT = {"embedding_size": 16, **TINY}
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4}


@pytest.mark.parametrize(
    ("model_type", "sizes", "cls", "objective"),
    [
        ("bert", TINY, "BertForMaskedLM", "masked"),
        ("albert", ALBERT, "AlbertForMaskedLM", "masked"),
        ("modernbert", TINY, "ModernBertForMaskedLM", "masked"),
        ("distilbert", DISTILBERT, "DistilBertForMaskedLM", "masked"),
        ("bert", {"is_decoder": True, **TINY}, "BertLMHeadModel", "causal"),
        ("t5", T5, "T5ForConditionalGeneration", "span_corruption"),
        ("mixtral", {"num_key_value_heads": 2, "num_local_experts": 2, **TINY}, "MixtralForCausalLM", "causal"),
    ],
)
def test_a_model_has_the_class_of_its_objective_new_and_loaded(tmp_path, model_type, sizes, cls, objective):
    model = build_model({"model_type": model_type, **sizes}, tiny_tokenizer(), context=64)
    assert (type(model).__name__, find_objective(model.config)) == (cls, objective)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (256, 257)
    tokens = torch.arange(16)[None]
    assert abs(model(input_ids=tokens, labels=tokens).loss.item() - math.log(320)) < 1
    model.save_pretrained(tmp_path)
    assert type(load_model(tmp_path, objective=None)).__name__ == cls
    wanted = "masked" if objective == "causal" else "causal"
    with pytest.raises(UserError, match=f"{tmp_path} is an? .*language model|{tmp_path} is an encoder-decoder"):
        load_model(tmp_path, objective=wanted)


def test_a_model_without_a_context_of_its_own_needs_one_from_the_recipe():
    config = build_model({"model_type": "t5", **T5}, tiny_tokenizer()).config
    assert resolve_context(config, 128) == 128 and resolve_context(build_model(TINY, tiny_tokenizer(), 64).config) == 64
    with pytest.raises(UserError, match=r"pretrain\.context: missing; t5 has relative positions"):
        resolve_context(config)


def test_a_model_goes_on_at_a_longer_context_with_other_positions(tmp_path):
    save_tiny_model(tmp_path)
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    section = {**SIZES, "max_position_embeddings": 512, "rope_parameters": yarn}
    model = build_model(section, tiny_tokenizer(), 512, start_from=tmp_path)
    assert model.config.max_position_embeddings == 512 and model.config.rope_parameters["rope_type"] == "yarn"
    old = tiny_model().state_dict()
    assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model.model.rotary_emb.inv_freq, tiny_model().model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"intermediate_size": 64}, "another shape, model.layers.0.mlp"),
        ({"mlp_bias": True}, "mlp.*bias"),
        ({"num_hidden_layers": 1}, "no place for .* of its weights, model.layers.1"),
    ],
)
def test_weights_that_do_not_fit_the_section_are_refused_by_name(tmp_path, changes, named):
    save_tiny_model(tmp_path)
    with pytest.raises(UserError, match=named):
        build_model({**SIZES, **changes}, tiny_tokenizer(), start_from=tmp_path)


def test_a_table_of_positions_cannot_grow(tmp_path):
    tiny_model(positions="learned").save_pretrained(tmp_path)
    section = {**SIZES, "positions": "learned", "max_position_embeddings": 512}
    with pytest.raises(UserError, match=r"another shape, model\.embed_positions\.weight"):
        build_model(section, tiny_tokenizer(), start_from=tmp_path)


@pytest.mark.parametrize(("model_type", "unused"), [("roberta", 257), ("mpnet", 2)])  # of padding, 256; of its own
def test_positions_counted_from_padding_on_have_rows_beside_those_of_the_context(model_type, unused):
    section = {"model_type": model_type, **TINY}
    model = build_model(section, tiny_tokenizer(), context=64)
    assert resolve_context(model.config) == 64
    assert model.config.max_position_embeddings == 64 + unused
    model(torch.arange(64)[None])
    with pytest.raises(UserError, match=f"64 is more than .*{unused + 32} less {unused} that {model_type}"):
        build_model({**section, "max_position_embeddings": unused + 32}, tiny_tokenizer(), context=64)


def test_importing_the_room_makes_the_model_known_to_the_auto_classes(tmp_path):
    save_tiny_model(tmp_path)
    code = (
        "import sys, hf_llm.model; assert 'hf_llm.model.load' not in sys.modules; "
        "from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__module__, "
        "len(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "hf_llm.model.modeling_hf_llm 260", done.stderr


def test_a_tokenizer_with_unused_ids_gets_a_row_for_its_largest():
    tokenizer = with_unused_ids(100, 319, 323)
    assert len(tokenizer) == 320
    assert build_model({"hidden_size": 32, "num_attention_heads": 2}, tokenizer, 32).config.vocab_size == 384


@pytest.mark.parametrize(
    ("section", "sizes"),
    [
        ({"hidden_size": 64}, (64, 192, 1, 1)),
        ({"hidden_size": 768}, (768, 2048, 12, 12)),
        ({"hidden_size": 384, "num_attention_heads": 4}, (384, 1024, 4, 4)),
        ({"hidden_size": 320, "num_key_value_heads": 2}, (320, 896, 4, 2)),
        ({"hidden_size": 64, "intermediate_size": 2048, "num_attention_heads": 4}, (64, 2048, 4, 4)),
        ({"model_type": "llama", "hidden_size": 256}, (256, 704, 2, 2)),
        ({"model_type": "mistral", "hidden_size": 512}, (512, 1792, 4, 1)),
        ({}, (768, 2048, 12, 12)),
    ],
)
def test_sizes_that_are_not_given_follow_from_the_hidden_size(section, sizes):
    config = build_config({"num_hidden_layers": 1, **section}, tiny_tokenizer(), 32)
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert tuple(getattr(config, name) for name in names) == sizes


def test_derived_sizes_are_printed(capsys):
    build_model({"hidden_size": 64, "num_hidden_layers": 1}, tiny_tokenizer(), 32)
    assert "model: intermediate_size 192, num_attention_heads 1: not given" in capsys.readouterr().out
