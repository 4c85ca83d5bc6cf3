import pytest

from hf_llm.data.formats import Unusable, conversation_reader, preference_reader


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [user("a"), assistant("b")]}, [user("a"), assistant("b")]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, assistant("b"), user("c")]},
            [user("a"), assistant("b")],
        ),
        ({"prompt": "a", "completion": "b"}, [user("a"), assistant("b")]),
        (
            {"prompt": [system("s"), user("a")], "completion": [assistant("b")]},
            [system("s"), user("a"), assistant("b")],
        ),
        ({"instruction": "a", "input": "i", "output": "b"}, [user("a\n\ni"), assistant("b")]),
        ({"instruction": "a", "input": "", "output": "b", "text": "x"}, [user("a"), assistant("b")]),
        (
            {"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"]]},
            [system("s"), user("q"), assistant("r"), user("a"), assistant("b")],
        ),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [system("s"), user("a"), assistant("b")],
        ),
        ({"instruction": "a", "instances": [{"input": "", "output": "b"}]}, [user("a"), assistant("b")]),
        ({"question": "a", "answer": "b"}, [user("a"), assistant("b")]),
    ],
)
def test_every_known_form_becomes_messages(row, expected):
    assert conversation_reader(set(row))(row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no answer"),
        ({"messages": [user("a")]}, "no answer"),
        ({"messages": [assistant("a")]}, "take turns"),
        ({"messages": [user("a"), user("b"), assistant("c")]}, "take turns"),
        ({"messages": [user(" "), assistant("b")]}, "an empty message"),
        ({"messages": [{"role": "tool", "content": "x"}, assistant("b")]}, "the role 'tool'"),
        ({"messages": [{"role": "user", "content": None}, assistant("b")]}, "without text"),
        ({"messages": None}, "no list"),
        ({"instruction": "a", "output": 5}, "output is no text"),
        ({"instruction": "a", "output": ""}, "an empty message"),
        ({"instruction": "a", "instances": []}, "no instances"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    with pytest.raises(Unusable, match=reason):
        conversation_reader(set(row))(row)


EXPECTED = {"prompt": [user("a")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("a")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "a", "chosen": [user("a"), assistant("good")], "rejected": [user("a"), assistant("bad")]},
        {"chosen": [user("a"), assistant("good")], "rejected": [user("a"), assistant("bad")]},
        {"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"},
        {"instruction": "a", "input": "", "output": "good", "chosen": "good", "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"chosen_messages": [user("a"), assistant("good")], "rejected_messages": [user("a"), assistant("bad")]},
    ],
)
def test_every_known_form_becomes_a_preference(row):
    assert preference_reader(set(row))(row) == EXPECTED


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "same", "rejected": "same "}, "are the same"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "no prompt"),
        ({"prompt": "a", "chosen": "x", "rejected": ""}, "an empty message"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}, "different prompts"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "no answer"),
    ],
)
def test_a_pair_that_teaches_nothing_says_why(row, reason):
    with pytest.raises(Unusable, match=reason):
        preference_reader(set(row))(row)


def test_other_columns_are_no_known_form():
    assert conversation_reader({"text", "label"}) is None
    assert preference_reader({"messages", "label"}) is None
