import json

import pytest
import torch
from tiny_models import save_tiny_model, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from hf_llm.errors import UserError
from hf_llm.export import check_equal, export_qwen3, main


@pytest.fixture
def folder(tmp_path):
    return save_tiny_model(tmp_path / "model")


def test_the_export_is_a_qwen3_with_the_same_logits_and_greedy_tokens(folder, tmp_path, capsys):
    output = tmp_path / "exported"
    main([str(folder), "--to", "qwen3", "--output", str(output)])
    assert "same greedy tokens" in capsys.readouterr().out
    exported, model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval(), tiny_model()
    assert type(exported) is Qwen3ForCausalLM
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exported(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    greedy = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(exported.generate(tokens, **greedy), model.generate(tokens, **greedy))
    assert exported.generation_config.eos_token_id == [257, 259]


def test_the_export_needs_no_code_of_ours(folder, tmp_path):
    export_qwen3(folder, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "auto_map" not in config
    assert not list((tmp_path / "exported").glob("*.py"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    conversation = [{"role": "user", "content": "Hello?"}]
    assert tokenizer.apply_chat_template(conversation) == tiny_tokenizer().apply_chat_template(conversation)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"head_dim": 16, "attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    ],
)
def test_every_variant_of_the_architecture_maps(tmp_path, changes):
    tiny_model(**changes).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    export_qwen3(tmp_path / "model", tmp_path / "exported")
    assert AutoConfig.from_pretrained(tmp_path / "exported").model_type == "qwen3"


def test_the_dtype_of_the_weights_stays(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    export_qwen3(tmp_path / "model", tmp_path / "exported")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto").dtype == torch.bfloat16


def test_a_result_that_differs_is_refused():
    changed = tiny_model()
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    with pytest.raises(UserError, match="logits differ"):
        check_equal(tiny_model(), changed)


def test_what_cannot_be_exported_is_refused(folder, tmp_path, capsys):
    export_qwen3(folder, tmp_path / "exported")
    with pytest.raises(UserError, match="is not empty"):
        export_qwen3(folder, tmp_path / "exported")
    with pytest.raises(UserError, match="is a qwen3"):
        export_qwen3(tmp_path / "exported", tmp_path / "again")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none"), "--output", str(tmp_path / "more")])
    assert stop.value.code == 2 and "there is no folder" in capsys.readouterr().err
