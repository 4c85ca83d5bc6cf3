"""Adapters on disk: damaged ones are refused in words, and a merged model is the one with the adapter."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hf_llm.core.errors import UserError
from hf_llm.export import export_model
from hf_llm.inference.generate import load_for_generation
from hf_llm.model.adapters import attach_adapter, largest_logit_difference, merge_into_base, probe_tokens
from hf_llm.model.load import build_model, load_model, load_reward_model, load_tokenizer
from tests.tiny_models import save_tiny_model, tiny_config, tiny_tokenizer

TOKENS = probe_tokens(320, 128)


def save_adapter(base, folder, task="CAUSAL_LM", load=load_model, **settings):
    """An adapter of random weights on the model in `base`, saved in `folder`."""
    torch.manual_seed(1)
    config = LoraConfig(task_type=task, r=4, **{"target_modules": "all-linear", **settings})
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("settings", "is_tied"),
    [
        ({}, True),
        ({"init_lora_weights": "pissa"}, True),
        ({"init_lora_weights": "olora"}, True),
        ({"use_dora": True}, True),
        ({"trainable_token_indices": [1, 2]}, True),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"target_modules": ["lm_head", "q_proj"]}, False),
        ({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, True),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
    ],
    ids=str,
)
def test_a_merged_model_is_the_one_with_the_adapter_and_so_is_its_saved_folder(base, tmp_path, settings, is_tied):
    assert load_model(base).config.tie_word_embeddings
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    apart = load_model(adapter, merge_adapter=False)
    merged = load_model(adapter)
    merged.save_pretrained(tmp_path / "merged")
    saved = load_model(tmp_path / "merged")
    assert saved.config.tie_word_embeddings == merged.config.tie_word_embeddings == is_tied
    for other in (merged, saved):
        difference, largest = largest_logit_difference(apart, other, TOKENS)
        assert difference < 1e-5 * max(1, largest)
    moved, _ = largest_logit_difference(apart, load_model(base), TOKENS)
    assert moved > 0.1


def rewrite_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_tensor(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / "adapter_model.safetensors")


def add_tensor(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    save_file(tensors, folder / "adapter_model.safetensors")


def write_unsafe_pickle(folder):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"program": print}, folder / "adapter_model.bin")


SPOILT = {
    "not JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be parsed as JSON"),
    "a list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "holds no settings"),
    "no base": (lambda folder: rewrite_config(folder, base_model_name_or_path=None), "does not name the base model"),
    "itself": (lambda folder: rewrite_config(folder, base_model_name_or_path=str(folder)), "the adapter's own folder"),
    "base gone": (lambda folder: rewrite_config(folder, base_model_name_or_path="/nowhere/base"), "no folder /nowhere"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "empty weights": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "cannot be read"),
    "cut weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-100]
        ),
        "cannot be read",
    ),
    "a tensor is missing": (drop_tensor, "1 of its weights are missing"),
    "a tensor of another model": (add_tensor, "1 have no place"),
    "another rank": (lambda folder: rewrite_config(folder, r=8), "is not an adapter of"),
    "another kind": (lambda folder: rewrite_config(folder, peft_type="NONSENSE"), "is not an adapter of"),
    "unknown modules": (lambda folder: rewrite_config(folder, target_modules=["qproj"]), "is not an adapter of"),
    "an unsafe pickle": (write_unsafe_pickle, "a pickle that would run a program"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_adapter_is_refused_in_words_that_name_it(base, tmp_path, fault):
    adapter = save_adapter(base, tmp_path / "adapter")
    spoil, words = SPOILT[fault]
    spoil(adapter)
    for load in (load_model, load_for_generation):
        with pytest.raises(UserError, match=words) as error:
            load(adapter)
        assert str(adapter) in str(error.value) or "/nowhere" in str(error.value)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter")
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(base).get_vocab()


def test_a_reward_models_adapter_scores_and_does_not_write(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter", "SEQ_CLS", load_reward_model)
    with pytest.raises(UserError, match="scores texts and writes none"):
        load_model(adapter)
    apart = attach_adapter(load_reward_model(base), adapter)
    difference, _ = largest_logit_difference(apart, load_reward_model(adapter), TOKENS)
    assert difference < 1e-5


def test_a_model_that_starts_from_an_adapter_has_the_settings_of_the_section(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter")
    sizes = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    section = {name: getattr(tiny_config(), name) for name in sizes}
    model = build_model({**section, "vocab_size": 320, "sliding_window": 16}, tiny_tokenizer(), 256, adapter)
    assert model.config.max_position_embeddings == 256 and model.config.sliding_window == 16
    expected = load_model(adapter).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_of_a_masked_model_loads_where_any_objective_will_do(tmp_path):
    config = AutoConfig.for_model(
        "bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=320,
        max_position_embeddings=128, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "bert")

    def load_any(path):
        return load_model(path, objective=None)

    adapter = save_adapter(tmp_path / "bert", tmp_path / "adapter", None, load_any, target_modules=["query"])
    assert type(load_any(adapter)).__name__ == "BertForMaskedLM"
    with pytest.raises(UserError, match="a masked language model"):
        load_model(adapter)


def test_an_exported_adapter_still_ends_its_turns(base, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(base, plain)
    settings = json.loads((plain / "generation_config.json").read_text())
    (plain / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 257}))  # as a base model's
    adapter = save_adapter(plain, tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(adapter)
    export_model(adapter, tmp_path / "exported")
    exported = json.loads((tmp_path / "exported/generation_config.json").read_text())
    assert exported["eos_token_id"] == [257, 259]  # the end of a text, the end of a turn


def test_what_cannot_be_merged_is_said(base, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(UserError, match=r"cannot be merged.*the base layer has no bias"):
        merge_into_base(get_peft_model(load_model(base), config))
