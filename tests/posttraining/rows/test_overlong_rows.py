import json
import shutil

import pytest
from datasets import Dataset

from hf_llm.core.errors import UserError
from hf_llm.dpo import DpoSection
from hf_llm.posttraining.build_trainer import drop_special_token_rows
from hf_llm.posttraining.rows.overlong_rows import fit_rows, measure_rows, prompt_limit
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


def pair_of(question_length: int, answer_length: int):
    return pair("q" * question_length, "a" * answer_length)


FITTING, LONG_ANSWER, LONG_PROMPT = pair_of(5, 5), pair_of(5, 300), pair_of(300, 5)


@pytest.mark.parametrize(
    ("policy", "completions", "kept", "counts"),
    [
        ("drop", ("chosen", "rejected"), 4, (2, 0)),
        ("truncate", ("chosen", "rejected"), 5, (1, 1)),
        ("drop", (), 5, (1, 0)),
        ("truncate", (), 5, (1, 0)),  # a prompt of one turn cannot lose older ones
    ],
)
def test_rows_that_are_too_long_are_treated_alike_and_counted(policy, completions, kept, counts, capsys):
    rows = Dataset.from_list([FITTING, LONG_ANSWER, LONG_PROMPT, FITTING, FITTING])
    section = DpoSection(data=["anything"], too_long=policy, allow_drop=0.0)
    parts, counted = fit_rows([rows, rows.select([0])], completions, tiny_tokenizer(), 100, section, "dpo")
    assert sum(map(len, parts)) == kept
    assert counted == dict(zip(("too_long", "truncated"), counts, strict=True))
    said = capsys.readouterr().out
    assert f"{sum(counts)} of 6 " in said and "longer than 100 tokens" in said
    lengths = measure_rows([rows], completions, tiny_tokenizer())
    assert lengths.too_long(100) == ([1, 2] if completions else [2])


def test_a_truncated_prompt_loses_its_oldest_turns(capsys):
    turns = [{"role": role, "content": f"{role} {i} " * 3} for i in range(9) for role in ("user", "assistant")]
    rows = Dataset.from_list([{"prompt": [*turns, {"role": "user", "content": "last?"}]}])
    section = DpoSection(data=["anything"], too_long="truncate")
    (kept, _), counts = fit_rows([rows, rows], (), tiny_tokenizer(), 200, section, "grpo")
    assert counts == {"too_long": 0, "truncated": 2}
    assert kept[0]["prompt"][-1]["content"] == "last?" and 1 < len(kept[0]["prompt"]) < 19
    assert kept[0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize("side", ["train", "evaluate"])
def test_a_side_without_rows_is_refused_with_the_lengths_and_a_remedy(side):
    long, short = Dataset.from_list([LONG_ANSWER] * 3), Dataset.from_list([FITTING] * 3)
    parts = [long, short] if side == "train" else [short, long]
    section = DpoSection(data=["anything"])
    with pytest.raises(
        UserError, match=f"dpo: no row is left to {side} on.*3 of 6 rows.*longest 3.*too_long: truncate"
    ):
        fit_rows(parts, ("chosen",), tiny_tokenizer(), 100, section, "dpo")


def test_a_completion_that_fills_the_context_is_refused_by_its_key():
    assert prompt_limit(128, 100, "grpo") == 28
    for length in (128, 172):
        with pytest.raises(UserError, match=rf"grpo.training.max_completion_length: {length} tokens leave no room"):
            prompt_limit(128, length, "grpo")
