"""The same rows give the same conversations from every kind of file, and are rendered to the same text."""

import csv
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from datasets import Dataset

from hf_llm.data.chat.loaders import (
    ConversationSource,
    load_conversations,
    load_labelled_completions,
    load_preferences,
    load_prompts,
)
from hf_llm.data.chat.messages import load_tools
from hf_llm.tokenization.chat_encoding import encode_chat
from tests.byte_tokenizer import byte_tokenizer


def user(text, **more):
    return {"role": "user", "content": text, **more}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name, arguments):
    return {"id": f"call {name}", "type": "function", "function": {"name": name, "arguments": arguments}}


def called(question, *calls, **row):
    results = [{"role": "tool", "content": "1", "tool_call_id": one["id"]} for one in calls]
    return {"messages": [user(question), assistant(None, tool_calls=list(calls)), *results, assistant("1.")], **row}


CITY = {"type": "string", "enum": ["Rome", "Oslo"]}
DAYS = {"type": "integer", "minimum": 1}

# Rows that stand in one file each. Tables fill what a row lacks with null; each case has rows that lack something.
CONVERSATIONS = {
    "arguments": [
        called("a", call("weather", {"city": "Rome"})),
        called("b", call("add", {"first": 1, "second": {"value": 2}})),
        called("c", call("weather", {"city": "Oslo", "days": 3}), call("now", {})),
        {"messages": [user("d"), assistant("e")]},
    ],
    "arguments_as_json": [
        called("a", call("weather", '{"city": "Rome", "unit": null}')),
        called("b", call("now", "")),
    ],
    "null_arguments": [called("a", call("f", {"x": None, "y": [{"z": None, "w": 1}]})), called("b", call("f", None))],
    "schemas": [
        called("a", call("weather", {"city": "Rome"}), tools=[tool("weather", city=CITY)]),
        called("b", call("add", {"x": 1}), tools=[tool("add", x=DAYS, y=DAYS), tool("now")]),
        called("c", call("now", {}), tools=None),
        {"messages": [user("d"), assistant("e")], "tools": []},
    ],
    "functions": [
        {"messages": [user("a"), assistant("b")], "functions": [tool("f", x=DAYS)["function"]]},
        {"messages": [user("c"), assistant("d")], "functions": [tool("g", y=CITY)["function"]]},
    ],
    "tools_in_the_system_message": [
        {"messages": [{"role": "system", "content": "s", "tools": [tool("f", x=DAYS)]}, user("a"), assistant("b")]},
        {"messages": [{"role": "system", "content": None, "tools": [tool("g")]}, user("c"), assistant("d")]},
    ],
    "spellings": [
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"messages": [user("c"), assistant("d")]},
        {"messages": [{"role": "Human", "content": "e"}, {"role": "AI", "content": "f", "weight": 0}, user("g"),
                      assistant("h")]},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        {"conversations": [{"from": "human", "value": "c"},
                           {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                           {"from": "observation", "value": "1"}, {"from": "gpt", "value": "d"}]},
    ],
    "parts": [
        {"messages": [user([{"type": "text", "text": "a"}]), assistant([{"type": "thinking", "thinking": "r"},
                                                                       {"type": "text", "text": "b"}])]},
        {"messages": [user([{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]),
                      assistant([{"type": "text", "text": "e"}])]},
    ],
    "reasoning": [
        {"messages": [user("a"), assistant("b", reasoning_content="r")]},
        {"messages": [user("c"), assistant("d")]},
    ],
    "function_call": [
        {"messages": [user("a"), assistant(None, function_call={"name": "f", "arguments": '{"x": 1}'}),
                      {"role": "function", "name": "f", "content": "1"}, assistant("b")]},
        {"messages": [user("c"), assistant("d", train=False), user("e"), assistant("f")]},
    ],
    "forms_of_two_kinds": [
        {"messages": [user("a"), assistant("b")]},
        {"prompt": "c", "response": "d"},
        {"instruction": "e", "input": "f", "output": "g"},
    ],
    "as_json": [{"messages": json.dumps([user("a"), assistant("b")])}, {"messages": repr([user("c"), assistant("d")])}],
    "indented": [{"question": "a", "answer": "    return x\n"}, {"question": "b", "answer": "\n\n  c"}],
    "alpaca": [{"instruction": "a", "input": None, "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}],
}  # fmt: skip


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_array(path, rows):
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def as_table(rows):
    return pyarrow.Table.from_pylist([{name: row.get(name) for name in columns_of(rows)} for row in rows])


def columns_of(rows):
    return list(dict.fromkeys(name for row in rows for name in row))


def write_parquet(path, rows):
    pyarrow.parquet.write_table(as_table(rows), path)


def write_arrow_file(path, rows):
    table = as_table(rows)
    with pyarrow.ipc.new_file(path, table.schema) as out:
        out.write_table(table)


def write_arrow_stream(path, rows):
    table = as_table(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as out:
        out.write_table(table)


def write_with_datasets(path, rows):
    Dataset.from_list(as_table(rows).to_pylist()).to_parquet(path)


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns_of(rows))
        writer.writeheader()
        writer.writerows(rows)


def write_zip(path, rows):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        archive.writestr("data/README.md", "# Rows")


def write_tar(path, rows):
    lines = path.with_name("rows_in_a_tar.jsonl")
    write_lines(lines, rows)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(lines, "data/rows.jsonl")
    lines.unlink()


KINDS = {
    "rows.json": write_array,
    "rows.parquet": write_parquet,
    "file.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
    "datasets.parquet": write_with_datasets,
    "rows.zip": write_zip,
    "rows.tar.gz": write_tar,
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def load(load_rows, path: Path) -> tuple[list[dict], dict]:
    train, _, report = load_rows([ConversationSource(license="mit", path=str(path))], 0.0, 1, allow_drop=0.0)
    return train.to_list(), report


def render(rows, tokenizer) -> list[str]:
    texts = []
    for row in rows:
        messages = row.get("messages") or row["prompt"]
        texts.append(tokenizer.decode(encode_chat(tokenizer, messages, load_tools(row))[0]))
    return texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_a_conversation_is_the_same_from_every_kind_of_file(case, kind, tokenizer, tmp_path):
    rows = CONVERSATIONS[case]
    write_lines(tmp_path / "rows.jsonl", rows)
    expected, _ = load(load_conversations, tmp_path / "rows.jsonl")
    assert len(expected) == len(rows)
    try:
        KINDS[kind](tmp_path / kind, rows)
    except pyarrow.ArrowNotImplementedError:
        pytest.skip("Parquet cannot write an object that has no fields in any row")

    read, report = load(load_conversations, tmp_path / kind)
    assert read == expected
    assert render(read, tokenizer) == render(expected, tokenizer)
    if kind == "rows.zip":
        assert report["left_out"] == {"a file in the archive that holds no rows (.md)": 1}


def test_nothing_of_other_rows_is_in_a_call_or_a_schema(tmp_path):
    write_parquet(tmp_path / "rows.parquet", CONVERSATIONS["schemas"])
    first, second, third, last = load(load_conversations, tmp_path / "rows.parquet")[0]
    assert first["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    assert json.loads(first["tools"]) == [tool("weather", city=CITY)]
    assert json.loads(second["tools"]) == [tool("add", x=DAYS, y=DAYS), tool("now")]
    assert third["tools"] is None is last["tools"]


PREFERENCES = [
    {"prompt": "a", "chosen": [assistant(None, tool_calls=[call("f", {"x": 1})])], "rejected": [assistant("b")],
     "tools": [tool("f", x=DAYS)]},
    {"prompt": "c", "chosen": [assistant("d", reasoning="r")], "rejected": [assistant("d", reasoning="s")],
     "tools": [tool("g", y=CITY)]},
]  # fmt: skip
LABELLED = [{"prompt": f"Q{number}?", "completion": f"a {number}", "label": bool(number % 2)} for number in range(6)]
PROMPTS = [
    {"prompt": [user("a")], "ground_truth": "1", "level": 1, "info": {"tests": ["x"], "time": 2}},
    {"prompt": [user("b")], "ground_truth": "2", "level": 2, "info": {"tests": [], "memory": 3}},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("load_rows", "rows"),
    [
        (load_preferences, PREFERENCES),
        (load_labelled_completions, PREFERENCES),
        (load_labelled_completions, LABELLED),
        (load_prompts, PREFERENCES),
        (load_prompts, PROMPTS),
    ],
    ids=["preferences", "unpaired", "labelled", "prompts_of_preferences", "prompts"],
)
def test_rows_of_the_other_stages_are_the_same_from_every_kind_of_file(load_rows, rows, kind, tmp_path):
    write_lines(tmp_path / "rows.jsonl", rows)
    KINDS[kind](tmp_path / kind, rows)
    assert load(load_rows, tmp_path / kind)[0] == load(load_rows, tmp_path / "rows.jsonl")[0]


@pytest.mark.parametrize("words", [(False, True), (0, 1), (0.0, 1.0), ("no", "yes"), ("false", "TRUE")])
def test_labels_are_the_same_from_a_csv(words, tmp_path):
    write_lines(tmp_path / "rows.jsonl", LABELLED)
    write_csv(tmp_path / "rows.csv", [{**row, "label": words[row["label"]]} for row in LABELLED])
    expected, _ = load(load_labelled_completions, tmp_path / "rows.jsonl")
    assert load(load_labelled_completions, tmp_path / "rows.csv")[0] == expected


def test_numbers_are_the_texts_of_a_csv(tmp_path):
    rows = [{"question": "1 + 1?", "answer": 2}, {"question": "1 / 2?", "answer": 0.5}]
    write_lines(tmp_path / "rows.jsonl", rows)
    write_csv(tmp_path / "rows.csv", rows)
    for load_rows in (load_conversations, load_prompts):
        assert load(load_rows, tmp_path / "rows.csv")[0] == load(load_rows, tmp_path / "rows.jsonl")[0]
