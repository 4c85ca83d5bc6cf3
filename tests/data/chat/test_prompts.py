"""Prompts to answer: of conversations, of preferences, and bare ones."""

import json
import os

import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import ConversationSource, load_prompts

DATA = os.environ.get("HF_LLM_DATA")
QUESTION = [{"role": "user", "content": "Hi"}]


def load(tmp_path, row, **keys):
    path = tmp_path / "rows.jsonl"
    others = [{"prompt": f"Question {i}", "completion": "Yes"} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, others)))
    (tmp_path / "row.jsonl").write_text(json.dumps(row))
    sources = [ConversationSource(license="mit", path=str(p), **keys) for p in (tmp_path / "row.jsonl", path)]
    *sides, _ = load_prompts(sources, 0.1, seed=1)
    return next(dict(prompt) for side in sides for prompt in side if prompt["prompt"][-1]["content"] == "Hi")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "Hi"}, None),
        ({"prompt": QUESTION}, None),
        ({"prompt": "Hi", "completion": "Hello"}, "Hello"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "Hello"}]}, "Hello"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}, "Hello"),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "Hello"),
    ],
)
def test_every_form_gives_a_prompt_and_the_answer_the_data_has(tmp_path, row, answer):
    assert load(tmp_path, row) == {"prompt": QUESTION, "answer": answer}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Hi", "answer": 4}, {"answer": "4"}),
        ({"question": "Hi", "answer": None}, {"answer": None}),
        ({"prompt": "Hi", "answer": 4, "level": 2}, {"answer": "4", "level": 2}),
        ({"prompt": "Hi", "ground_truth": "4", "source": "web"}, {"ground_truth": "4", "source": "web"}),
        ({"prompt": "Hi", "info": {"a": 1, "b": None}, "tags": []}, {"info": {"a": 1}, "tags": []}),
        ({"problem": "Hi", "solution": "Hello", "answer": "5"}, {"answer": "5"}),
        ({"messages": QUESTION, "answer": 2**70}, {"answer": str(2**70)}),
        ({"messages": QUESTION, "big": 2**70}, {"big": str(2**70)}),
        ({"messages": [*QUESTION, {"role": "assistant", "content": ""}]}, {"answer": None}),
        ({"question": "Hi", "instruction": "Hi"}, {"answer": None}),
        ({"prompt": "Hi", "completions": ["a"], "trainer_state": 1, "image": "x"}, {}),
    ],
)
def test_what_a_row_has_beside_its_prompt_reaches_reward_functions(tmp_path, row, expected):
    loaded = load(tmp_path, row)
    assert loaded["prompt"] == QUESTION
    assert {name: loaded[name] for name in expected} == expected
    assert not loaded.keys() & {"completions", "trainer_state", "image", "columns"}


def test_tools_come_along(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert json.loads(load(tmp_path, {"prompt": "Hi", "tools": tools})["tools"]) == tools


def test_a_prompt_that_was_answered_already_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not end with the user"):
        load(tmp_path, {"prompt": [*QUESTION, {"role": "assistant", "content": "Hello"}]})


def test_the_documentation_on_this_disk_asks_too():
    train, held_out, counts = load_prompts([ConversationSource(license="psf-2.0", installed="docs", take=50)], 0.1, 1)
    assert counts["kept"] == 50 == len(train) + len(held_out)
    assert all(row["prompt"][-1]["role"] == "user" and row["answer"] for row in held_out)


@pytest.mark.skipif(not DATA, reason="real data: set HF_LLM_DATA")
@pytest.mark.parametrize("path", ["hh_rlhf", "gsm8k/train_1000.jsonl", "oasst", "alpaca/alpaca_5k.json"])
def test_real_data_gives_prompts(path):
    train, _, counts = load_prompts([ConversationSource(license="unknown", path=f"{DATA}/{path}")], 0.1, 1, 0.05)
    assert counts["kept"] > 50
    assert all(row["prompt"][-1]["role"] == "user" for row in train)
