import json
import shutil

import pytest
from datasets import Dataset

from hf_llm.core.errors import UserError
from hf_llm.posttraining.build_trainer import drop_special_token_rows
from hf_llm.posttraining.starting_model import load_chat_tokenizer, model_context_length
from tests.tiny_models import save_tiny_model, tiny_tokenizer


def pair(question, answer):
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }


def test_rows_that_trl_would_read_as_tokens_are_left_out_and_counted(capsys):
    rows = Dataset.from_list([pair("Hi", "Hello"), pair("<|im_end|>", "a"), pair("b", "<|endoftext|>"), pair("c", "d")])
    [kept, _] = drop_special_token_rows([rows, rows.select([0])], tiny_tokenizer(), 0.4)
    assert [row["prompt"][0]["content"] for row in kept] == ["Hi", "c"]
    assert "2 of 5 rows contain the text of a special token" in capsys.readouterr().out
    for some, allowed in (([rows, rows.select([0])], 0.39), ([rows, rows.select([1])], 0.99)):
        with pytest.raises(UserError, match=r"special token .*<\|im_end\|>.*write `allow_drop: "):
            drop_special_token_rows(some, tiny_tokenizer(), allowed)
    ids = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}])
    assert drop_special_token_rows([ids, ids], tiny_tokenizer(), 0.0) == [ids, ids]


def test_the_context_is_that_of_the_model_or_of_an_adapters_base(tmp_path):
    save_tiny_model(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer").mkdir()
    assert model_context_length(tmp_path / "base") == model_context_length(tmp_path / "adapter") == 128
    assert model_context_length(tmp_path / "tokenizer") is None


def test_a_template_is_compared_with_the_runs_own_tokenizer_only(tiny_life, tmp_path):
    run = tmp_path / "tiny"
    for name in ("base", "tokenizer"):
        shutil.copytree(tiny_life / "runs/tiny" / name, run / name)
    load_chat_tokenizer(run / "base", run)
    path = run / "base/chat_template.jinja"
    path.write_text(path.read_text().replace("These functions", "The functions"))
    with pytest.raises(UserError, match="its chat template differs"):
        load_chat_tokenizer(run / "base", run)
    load_chat_tokenizer(run / "base", tmp_path / "another")
