import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.model.load import build_model
from tests.tiny_models import tiny_model, tiny_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
SOURCES = {
    "hf_llm": SIZES,
    "llama": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 6, "n_head": 4},
    "bert": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 6, "n_heads": 4},
    "modernbert": SIZES,
}
KEPT = [0, 2, 5]


def save_source(folder, model_type, **changes):
    """A larger model of six layers, saved in `folder`."""
    torch.manual_seed(1)
    section = {"model_type": model_type, **SOURCES.get(model_type, SIZES), **changes}
    model = build_model(section, tiny_tokenizer(), 64).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model_type", SOURCES)
def test_a_pruned_model_is_the_larger_one_without_the_dropped_layers(tmp_path, model_type):
    whole = save_source(tmp_path, model_type)
    pruned = build_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=KEPT).eval()
    assert type(pruned) is type(whole)
    assert pruned.config.num_hidden_layers == 3 and pruned.config.max_position_embeddings == 64
    lists = [module for module in whole.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 6]
    for layers in lists:  # the same by surgery on the larger model
        kept = [layers[number] for number in KEPT]
        del layers[3:]
        for number, layer in enumerate(kept):
            layers[number] = layer
    whole.config.num_hidden_layers = 3
    whole.config.use_cache = False
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = pruned.config.layer_types
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = whole(input_ids=tokens, labels=tokens)
        output = pruned(input_ids=tokens, labels=tokens)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-6)
    pruned(input_ids=tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_each_kept_layer_keeps_its_layer_type(tmp_path):
    kinds = ["full_attention", "sliding_attention"] * 3
    save_source(tmp_path, "hf_llm", layer_types=kinds, sliding_window=16)
    pruned = build_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=KEPT)
    assert pruned.config.layer_types == [kinds[number] for number in KEPT]


def test_settings_of_the_section_replace_those_of_the_larger_model(tmp_path):
    save_source(tmp_path, "bert")
    section = {"model_type": "bert", "hidden_dropout_prob": 0.3, "num_hidden_layers": 3}
    pruned = build_model(section, tiny_tokenizer(), start_from=tmp_path, keep_layers=KEPT)
    assert pruned.config.hidden_dropout_prob == 0.3 and pruned.config.intermediate_size == 48


@pytest.mark.parametrize(
    ("section", "layers", "words"),
    [
        ({}, [0, 6], "keep_layers: .*from 0 to 5"),
        ({}, [-1, 2], "from 0 to 5"),
        ({}, [2, 0], "in their order"),
        ({}, [1, 1], "in their order"),
        ({}, [], "list layers"),
        ({"num_hidden_layers": 4}, [0, 1], "model.num_hidden_layers: 4 does not fit.*makes it 2"),
        ({"model_type": "llama"}, [0, 1], "model.model_type: 'llama' does not fit.*makes it 'bert'"),
        ({"hidden_size": 64}, [0, 1], "keep_layers: the layers kept do not fit the model section.*64"),
    ],
)
def test_a_section_or_layers_that_do_not_fit_are_refused_by_key(tmp_path, section, layers, words):
    save_source(tmp_path, "bert")
    with pytest.raises(UserError, match=words):
        build_model(section, tiny_tokenizer(), start_from=tmp_path, keep_layers=layers)


def test_a_first_layer_of_another_kind_must_be_kept(tmp_path):
    save_source(tmp_path, "modernbert")
    with pytest.raises(UserError, match="first layer of some models is of another kind"):
        build_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=[1, 2])


@pytest.mark.parametrize(
    "section",
    [
        {"model_type": "albert", "embedding_size": 16, **SIZES},
        {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4},
    ],
)
def test_a_model_without_a_single_list_of_layers_is_refused(tmp_path, section):
    build_model(section, tiny_tokenizer(), 64).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{section['model_type']} does not have a single list of layers"):
        build_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=[0, 1])


def test_a_model_with_shared_layers_is_refused(tmp_path):
    tiny_model(num_hidden_layers=4, num_hidden_groups=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="hf_llm does not have a single list of layers"):
        build_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=[0, 1])
