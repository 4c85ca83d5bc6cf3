import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from hf_llm.core.errors import UserError
from hf_llm.export import MODEL_TYPES, RENAMED_FIELDS, RENAMED_TENSORS, check_equal, export_model, main
from hf_llm.inference.generate import set_stop_tokens
from hf_llm.model import configuration_hf_llm
from hf_llm.model.configuration_hf_llm import (
    FIXED_AT_EXPORT,
    KEPT_AT_EXPORT,
    STOCK_CLASSES,
    HfLlmConfig,
)
from tests.tiny_models import save_tiny_model, tiny_config, tiny_model, tiny_tokenizer
from tests.variants import CHANGES, EXPERTS, GPT2, VARIANTS


@pytest.fixture
def folder(tmp_path):
    return save_tiny_model(tmp_path / "model")


def test_the_export_is_a_qwen3_with_the_same_logits_and_greedy_tokens(folder, tmp_path, capsys):
    output = tmp_path / "exported"
    main([str(folder), "--to", "qwen3", "--output", str(output)])
    assert "same greedy tokens" in capsys.readouterr().out
    exported, model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval(), tiny_model()
    assert type(exported) is Qwen3ForCausalLM
    set_stop_tokens(model, tiny_tokenizer())  # as the exported one, which proposes no id without a token
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exported(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    greedy = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(exported.generate(tokens, **greedy), model.generate(tokens, **greedy))
    assert exported.generation_config.eos_token_id == [257, 259]


def test_the_export_needs_no_code_of_ours(folder, tmp_path):
    export_model(folder, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "auto_map" not in config
    assert not list((tmp_path / "exported").glob("*.py"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    conversation = [{"role": "user", "content": "Hello?"}]
    assert tokenizer.apply_chat_template(conversation) == tiny_tokenizer().apply_chat_template(conversation)


def test_a_training_checkpoints_switched_off_cache_is_not_exported(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_cache": False}))  # as Trainer leaves it
    (folder / "model.safetensors").chmod(0o600)
    output = tmp_path / "exported"
    export_model(folder, output)
    assert AutoModelForCausalLM.from_pretrained(output).config.use_cache is True
    new_file = tmp_path / "new"
    new_file.touch()
    modes = {path.stat().st_mode for path in output.iterdir()}
    assert modes == {new_file.stat().st_mode}


def test_a_model_of_a_very_short_context_is_exported(tmp_path):
    tiny_model(max_position_embeddings=16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert export_model(tmp_path / "model", tmp_path / "exported") == "Qwen3ForCausalLM"


def test_every_field_is_either_kept_or_fixed_at_export():
    listed = [*KEPT_AT_EXPORT, *FIXED_AT_EXPORT]
    assert sorted(listed) == sorted(HfLlmConfig.__annotations__)


@pytest.mark.parametrize("forgotten", ["norm_position", "hidden_act"])
def test_a_field_in_neither_list_is_not_exported(monkeypatch, folder, tmp_path, forgotten):
    fixed = {field: value for field, value in FIXED_AT_EXPORT.items() if field != forgotten}
    kept = tuple(field for field in KEPT_AT_EXPORT if field != forgotten)
    monkeypatch.setattr(configuration_hf_llm, "FIXED_AT_EXPORT", fixed)
    monkeypatch.setattr(configuration_hf_llm, "KEPT_AT_EXPORT", kept)
    assert tiny_config().exports_to == "not exportable"
    with pytest.raises(UserError, match=f"{forgotten}=.* cannot be written as any class of transformers"):
        export_model(folder, tmp_path / "exported")


@pytest.mark.parametrize("model_type", STOCK_CLASSES)
def test_the_tables_of_a_stock_class_name_fields_that_there_are(model_type):
    assert set(STOCK_CLASSES[model_type]) <= {*KEPT_AT_EXPORT, *FIXED_AT_EXPORT}
    renamed = RENAMED_FIELDS.get(model_type, {})
    assert set(renamed) <= {*KEPT_AT_EXPORT, *FIXED_AT_EXPORT}
    assert set(renamed.values()) <= set(CONFIG_MAPPING[model_type].__dataclass_fields__)
    assert set(RENAMED_FIELDS) | set(RENAMED_TENSORS) <= set(STOCK_CLASSES)


def test_every_stock_class_can_be_named():
    assert list(MODEL_TYPES) == list(STOCK_CLASSES)


def test_every_fixed_field_is_tried_with_another_value():
    changed = {field for changes in CHANGES.values() for field in changes}
    assert set(FIXED_AT_EXPORT) <= changed


EXPORTABLE = {name: case for name, case in VARIANTS.items() if case[1] != "not exportable"}
MORE = {
    "wide_heads": ({"head_dim": 16, "attention_bias": True}, "qwen3"),
    "gelu_without_biases": ({**GPT2, "attention_bias": False, "mlp_bias": False}, "gpt2"),
    "experts_in_a_window": ({**EXPERTS, "sliding_window": 6, "tie_word_embeddings": False}, "qwen3_moe"),
    "shared_experts": ({**EXPERTS, "num_hidden_layers": 4, "num_hidden_groups": 2}, "qwen3_moe"),
}


@pytest.mark.parametrize(("changes", "target"), (EXPORTABLE | MORE).values(), ids=(EXPORTABLE | MORE).keys())
def test_every_variant_of_a_stock_class_exports_to_it_with_equal_logits(tmp_path, changes, target):
    model = tiny_model(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms, which start at zero and one
                parameter.add_(torch.randn(parameter.shape) * (0.01 if "e_score" in name else 0.1))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    name = export_model(tmp_path / "model", tmp_path / "exported")  # compares logits and greedy tokens
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    assert exported.config.model_type == target and type(exported).__name__ == name
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exported(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"positions": "alibi"}, "positions=alibi"),
        ({"norm_position": "post"}, "norm_position=post"),
        ({"final_logit_softcapping": 10.0}, "final_logit_softcapping=10.0"),
        ({**EXPERTS, "n_shared_experts": 2}, "n_shared_experts=2"),
    ],
)
def test_a_switch_that_no_stock_class_has_is_named(tmp_path, changes, named):
    tiny_model(**changes).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=f"{named} cannot be written as any class of transformers"):
        export_model(tmp_path / "model", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_class_that_does_not_fit_is_refused_with_the_switch_that_prevents_it(folder, tmp_path):
    with pytest.raises(UserError, match="use_qk_norm=True cannot be written as llama"):
        export_model(folder, tmp_path / "exported", to="llama")
    with pytest.raises(UserError, match="num_experts=None cannot be written as mixtral"):
        export_model(folder, tmp_path / "exported", to="mixtral")


def test_the_dtype_of_the_weights_stays(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "exported")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto").dtype == torch.bfloat16


def test_a_result_that_differs_is_refused():
    changed = tiny_model()
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    with pytest.raises(UserError, match="logits differ"):
        check_equal(tiny_model(), changed)


def test_what_cannot_be_exported_is_refused(folder, tmp_path, capsys):
    export_model(folder, tmp_path / "exported")
    with pytest.raises(UserError, match="is not empty"):
        export_model(folder, tmp_path / "exported")
    with pytest.raises(UserError, match="is a qwen3"):
        export_model(tmp_path / "exported", tmp_path / "again")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none"), "--output", str(tmp_path / "more")])
    assert stop.value.code == 2 and "there is no folder" in capsys.readouterr().err


def test_an_export_goes_beside_its_model(tmp_path, capsys):
    save_tiny_model(tmp_path / "dpo")
    main([str(tmp_path / "dpo")])
    assert f"{tmp_path / 'dpo-export'}: Qwen3ForCausalLM" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "dpo")])
    assert "dpo-export is not empty; name a new folder" in capsys.readouterr().err
