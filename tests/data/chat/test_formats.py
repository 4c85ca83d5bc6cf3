import json

import pytest

from hf_llm.data.chat.formats import (
    LeftOut,
    Unusable,
    _trim_text,
    build_trees,
    find_conversation_reader,
    find_labelled_reader,
    find_preference_reader,
    find_prompt_reader,
)
from hf_llm.data.chat.messages import parse_tool_calls


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
        ({"instruction": "a", "context": "c", "response": "b"}, [user("a\n\nc"), assistant("b")]),
        ({"history": [{"user": "a", "bot": "b"}]}, [user("a"), assistant("b")]),
        (
            {"conversation": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]},
            [user("a"), assistant("b")],
        ),
        (
            {"messages": [user("a"), {**assistant("b"), "weight": 0}, user("c"), {**assistant("d"), "loss_weight": 1}]},
            [user("a"), {**assistant("b"), "weight": 0}, user("c"), assistant("d")],
        ),
    ],
)
def test_every_known_form_becomes_messages(row, expected):
    assert find_conversation_reader(set(row))(row) == [{"messages": expected}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no answer"),
        ({"messages": [user("a")]}, "no answer"),
        ({"messages": [assistant("a")]}, "starts with the assistant"),
        ({"messages": [system("s"), assistant("a")]}, "starts with the assistant"),
        ({"messages": [system("s"), system("t"), user("a"), assistant("b")]}, "a second system message"),
        ({"messages": [user("a"), assistant("b"), system("t"), user("a"), assistant("b")]}, "a second system message"),
        ({"messages": [user("a"), user("b"), assistant("c")]}, "take turns"),
        ({"messages": [user(" "), assistant("b")]}, "an empty question"),
        ({"messages": [user("a"), assistant(" ")]}, "an empty answer"),
        ({"messages": [{"role": "tool", "content": "x"}, assistant("b")]}, "starts with a tool"),
        ({"messages": [user("a"), {"role": "tool", "content": "x"}, assistant("b")]}, "do not follow each other"),
        ({"messages": [{"role": "narrator", "content": "x"}, assistant("b")]}, "the role 'narrator'"),
        ({"messages": [{"role": ["user"], "content": "x"}, assistant("b")]}, "the role"),
        ({"messages": ["Hi", "Hello"]}, "a message that is no object"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, assistant("b")]}, "are no text"),
        ({"messages": [{"role": "user", "content": None}, assistant("b")]}, "without text"),
        ({"messages": None}, "no list"),
        ({"instruction": "a", "output": True}, "output is no text"),
        ({"instruction": "a", "output": float("nan")}, "output is no text"),
        ({"messages": "Hi"}, "no list of messages"),
        ({"messages": [user("a"), {**assistant("b"), "weight": 0.5}]}, "a weight other than 0 and 1"),
        ({"messages": [user("a"), {**assistant("b"), "train": "maybe"}]}, "train that is neither true nor false"),
        ({"messages": [user("a"), {**assistant("b"), "train_detail": [{"train": False}]}]}, "only parts"),
        ({"messages": [user("a"), {**assistant(""), "reasoning_content": "r"}]}, "reasoning without an answer"),
        ({"messages": [{**user("a"), "reasoning": "r"}, assistant("b")]}, "reasoning that is not the assistant's"),
        ({"messages": [user("a"), {**assistant("b"), "thinking": {"text": "r"}}]}, "reasoning that is not text"),
        ({"messages": [user("a"), assistant("b")], "functions": "f"}, "tools that are no JSON"),
        ({"instruction": "a", "output": ""}, "an empty answer"),
        ({"instruction": "a", "instances": []}, "no instances"),
        ({"history": [{"user": "a"}]}, "an exchange without"),
        ({"history": "a"}, "history that is no list"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f("}]}, "is no JSON"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]},
            "without a name",
        ),
        ({"messages": [user("a"), assistant("b")], "tools": "[oops"}, "tools that are no JSON"),
        ({"messages": [user("a"), assistant("b")], "tools": ["f"]}, "tools that are no objects"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    with pytest.raises(Unusable, match=reason):
        find_conversation_reader(set(row))(row)


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
        {
            "prompt": "### Instruction:\na\n\n### Input:\n\n\n### Response:\n",
            "chosen": "good",
            "rejected": "bad",
        },
        {
            "instruction": "a",
            "input": "",
            "response1": "bad",
            "response2": "good",
            "annotator1": 2,
            "annotator2": 1,
            "annotator3": 2,
        },
    ],
)
def test_every_known_form_becomes_a_preference(row):
    assert find_preference_reader(set(row))(row) == [EXPECTED]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "same", "rejected": "same "}, "are the same"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "no prompt"),
        ({"prompt": "a", "chosen": "x", "rejected": ""}, "an empty answer"),
        ({"instruction": "a", "response1": "x", "response2": "y", "annotator1": 3}, "votes other than"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}, "different prompts"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "no answer"),
    ],
)
def test_a_pair_that_teaches_nothing_says_why(row, reason):
    with pytest.raises(Unusable, match=reason):
        find_preference_reader(set(row))(row)


ANSWERED = [user("a"), assistant("b")]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("prompt", "response"),
        ("prompt", "completion"),
        ("prompt", "answer"),
        ("instruction", "response"),
        ("question", "response"),
        ("question", "answer"),
        ("query", "response"),
        ("problem", "solution"),
        ("input", "output"),
        ("inputs", "targets"),
        ("question", "response_j"),
    ],
)
def test_a_column_with_a_question_and_one_with_its_answer_are_a_conversation(question, answer):
    row = {"id": 7, question: "a", answer: "b"}
    assert find_conversation_reader(set(row))(row) == [{"messages": ANSWERED}]
    row |= {"system_prompt": "s", "history": [["q", "r"]]}
    assert find_conversation_reader(set(row))(row) == [
        {"messages": [system("s"), user("q"), assistant("r"), *ANSWERED]}
    ]
    row = {question: "1 + 1?", answer: 2}
    assert find_conversation_reader(set(row))(row) == [{"messages": [user("1 + 1?"), assistant("2")]}]


def test_answers_to_a_question_of_stack_exchange_are_a_preference():
    row = {"qid": 1, "question": "a", "date": "d", "metadata": ["m"], "response_j": "good", "response_k": "bad"}
    assert find_preference_reader(set(row))(row) == [EXPECTED]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}],
        [{"role": "Human", "content": "a"}, {"role": "Assistant", "content": "b"}],
        [{"from": "human", "value": "a", "role": None, "content": None}, {"role": "assistant", "content": "b"}],
        [{"role": "system", "content": None}, *ANSWERED],
        [{"role": "system", "content": " "}, *ANSWERED],
        [user("a"), {"role": "assistant", "content": [{"type": "text", "text": "b", "image_url": None}]}],
        json.dumps(ANSWERED),
        repr(ANSWERED),
    ],
)
def test_sound_messages_are_read_however_they_are_written(messages):
    row = {"messages": messages}
    assert find_conversation_reader(set(row))(row) == [{"messages": ANSWERED}]
    row = {"conversations": messages}
    assert find_conversation_reader(set(row))(row) == [{"messages": ANSWERED}]


def test_a_text_that_only_looks_like_json_stays_a_question():
    for text in ('[{"a": 1}]', "[1, 2] sorted?", '[{"role": "user"'):
        row = {"prompt": text, "completion": "b"}
        assert find_conversation_reader(set(row))(row)[0]["messages"][0]["content"] == text


def test_the_answers_that_are_not_trained_on_have_no_weight():
    for mark in ({"weight": 0}, {"weight": "0"}, {"loss_weight": 0.0}, {"train": False}, {"train": "false"}):
        row = {"messages": [user("a"), {**assistant("b"), **mark}, user("c"), {**assistant("d"), "train": True}]}
        (conversation,) = find_conversation_reader(set(row))(row)
        assert [message.get("weight") for message in conversation["messages"]] == [None, 0, None, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    return x\n", "    return x"),
        ("\n\n  return x", "  return x"),
        ("\treturn x", "\treturn x"),
        (" Hello.", "Hello."),
        (" \n \n Hello", "Hello"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_a_text_loses_blank_lines_and_no_indentation(text, expected):
    assert _trim_text(text) == expected
    row = {"instruction": "Complete.", "input": text, "output": "b"}
    question = find_conversation_reader(set(row))(row)[0]["messages"][0]["content"]
    assert question == ("Complete.\n\n" + expected if expected else "Complete.")


def test_the_tools_of_a_row_come_along_with_every_kind_of_rows():
    tools = [{"type": "function", "function": {"name": "f"}}]
    for place in ({"tools": tools}, {"tools": json.dumps(tools)}, {"functions": [tools[0]["function"]]}):
        pair = {"prompt": "a", "chosen": "good", "rejected": "bad", **place}
        labelled = {"prompt": "a", "completion": "b", "label": 1, **place}
        read = [
            *find_preference_reader(set(pair))(pair),
            *find_labelled_reader(set(pair))(pair),
            *find_labelled_reader(set(labelled))(labelled),
            *find_prompt_reader(set(pair))(pair),
            *find_prompt_reader({"prompt", "tools"})({"prompt": "a", **place}),
        ]
        assert len(read) == 6 and all(json.loads(row["tools"]) == tools for row in read)

    row = {"messages": [{**system(""), "tools": json.dumps(tools)}, *ANSWERED], "tools": tools}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"] == ANSWERED and json.loads(conversation["tools"]) == tools


def test_pairs_differ_by_their_reasoning_and_by_their_calls_too():
    answers = {"chosen": [{**assistant("4"), "reasoning": "A"}], "rejected": [{**assistant("4"), "reasoning": "B"}]}
    (pair,) = find_preference_reader({"prompt", "chosen", "rejected"})({"prompt": "q", **answers})
    assert pair["chosen"] == [assistant("<think>\nA\n</think>\n\n4")]

    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(Unusable, match="are the same"):
        find_preference_reader({"prompt", "chosen", "rejected"})({"prompt": "q", "chosen": [call], "rejected": [call]})


def test_other_columns_are_no_known_form():
    assert find_conversation_reader({"text", "label"}) is None
    assert find_preference_reader({"messages", "label"}) is None


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = [user("q"), {**assistant(""), "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, assistant("It is 3.")]


@pytest.mark.parametrize(
    "messages",
    [
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "It is 3."},
            ]
        },
        {
            "messages": [
                user("q"),
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}]},
                {"role": "tool", "content": "3", "tool_call_id": "1"},
                assistant("It is 3."),
            ]
        },
        {
            "messages": [
                user("q"),
                {
                    "role": "assistant",
                    "content": [{"type": "tool_call", "value": {"name": "f", "arguments": {"a": 1}}}],
                },
                {"role": "tool", "content": [{"type": "text", "value": "3"}]},
                assistant("It is 3."),
            ]
        },
    ],
    ids=["sharegpt", "openai", "parts"],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_tool_calls_of_every_spelling_become_openais(messages, as_text):
    tools = [{"name": "f", "parameters": {"type": "object"}}]
    row = {**messages, "tools": json.dumps(tools) if as_text else tools}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"] == CALLED
    assert json.loads(conversation["tools"]) == tools


RESULTS = [{"role": "tool", "content": "3"}, {"role": "tool", "content": "4"}, assistant("Done.")]


@pytest.mark.parametrize(
    "calls",
    [
        [{**assistant(None), "tool_calls": [CALL, CALL]}],
        [{**assistant(None), "tool_calls": [CALL]}, {**assistant(""), "tool_calls": [CALL]}],
        [{**assistant(""), "tool_calls": json.dumps([CALL, CALL])}],
        [{"from": "function_call", "value": json.dumps([CALL["function"], CALL["function"]])}],
        [{"from": "function_call", "value": json.dumps(CALL["function"])}] * 2,
        [{"role": "tool_call", "content": CALL}] * 2,
        [{**assistant(None), "function_call": CALL["function"]}] * 2,
    ],
)
def test_several_calls_before_their_results_are_one_message(calls):
    row = {"messages": [user("q"), *calls, *RESULTS]}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"] == [user("q"), {**assistant(""), "tool_calls": [CALL, CALL]}, *RESULTS]


def test_a_call_after_a_text_is_of_the_same_message_and_a_text_after_a_call_is_not():
    row = {"messages": [user("q"), assistant("Wait."), {**assistant(None), "tool_calls": [CALL]}, *RESULTS]}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"][1] == {**assistant("Wait."), "tool_calls": [CALL]}
    row = {"messages": [user("q"), {**assistant(None), "tool_calls": [CALL]}, assistant("Sunny.")]}
    with pytest.raises(Unusable, match="do not follow each other"):
        find_conversation_reader(set(row))(row)


@pytest.mark.parametrize("arguments", [None, "", " ", "{}", {}, "null"])
def test_a_call_without_arguments_has_an_empty_object(arguments):
    assert parse_tool_calls([{"name": "f", "arguments": arguments}])[0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"a": 1, "b": None, "c": {"d": None, "e": [None, {"f": None}]}}, '{"a": 1, "c": {"e": [null, {}]}}'),
        ('{"a":1,"b":null}', '{"a":1,"b":null}'),  # what is written as JSON stays as it is
        ('"{\\"a\\": 1}"', '{"a": 1}'),
        ([("a", "x"), ("b", "y")], '{"a": "x", "b": "y"}'),  # Arrow's map
    ],
)
def test_arguments_are_the_json_of_an_object(arguments, expected):
    row = {"messages": [user("q"), {**assistant(""), "tool_calls": [{"name": "f", "arguments": arguments}]}]}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"][1]["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize(
    "arguments",
    ["{city: Rome", "{'city': 'Rome'}", "Rome", "[1]", [1], 5, '{"a": NaN}', {"a": float("inf")}, {"a": b"x"}, '"x"'],
)
def test_arguments_that_are_no_json_are_never_trained_on(arguments):
    row = {"messages": [user("q"), {**assistant(""), "tool_calls": [{"name": "f", "arguments": arguments}]}]}
    with pytest.raises(Unusable, match="whose arguments are not a JSON object"):
        find_conversation_reader(set(row))(row)


def test_the_result_of_a_tool_may_be_an_object_a_number_or_nothing():
    for result, text in (({"t": 12, "u": None}, '{"t": 12}'), (12, "12"), ([1, 2], "[1, 2]"), (None, "")):
        row = {"messages": [*CALLED[:2], {"role": "tool", "content": result}, CALLED[3]]}
        (conversation,) = find_conversation_reader(set(row))(row)
        assert conversation["messages"][2] == {"role": "tool", "content": text}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_a_key_of_its_own_is_rendered(key):
    row = {"messages": [user("q"), {**assistant("4"), key: " 2 and 2.\n"}]}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"][1]["content"] == "<think>\n2 and 2.\n</think>\n\n4"

    marked = {"messages": [user("q"), {**assistant("<think>\nx\n</think>\n\n4"), key: "x"}]}
    (conversation,) = find_conversation_reader(set(marked))(marked)
    assert conversation["messages"][1]["content"] == "<think>\nx\n</think>\n\n4"


def test_reasoning_stands_between_marks_before_the_answer():
    parts = [{"type": "reasoning", "value": "2 and 2."}, {"type": "text", "value": "4"}]
    row = {"messages": [user("q"), {"role": "assistant", "content": parts}]}
    (conversation,) = find_conversation_reader(set(row))(row)
    assert conversation["messages"][1]["content"] == "<think>\n2 and 2.\n</think>\n\n4"


@pytest.mark.parametrize("votes", [(0, 0, 2), (0, 1, 2), (1, 2), (0,)])
def test_a_tie_is_left_out(votes):
    row = {"instruction": "a", "response1": "x", "response2": "y"}
    row |= {f"annotator{number}": vote for number, vote in enumerate(votes)}
    with pytest.raises(LeftOut, match="a tie"):
        find_preference_reader(set(row))(row)


def node(text, *replies, role="assistant", **about):
    return {"text": text, "role": role, "replies": list(replies), "review_result": True, "deleted": False, **about}


def tree(root):
    return {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": root}


TREE = tree(
    node(
        "q",
        node("worst", rank=2),
        node("gone", rank=0, deleted=True),
        node("unread", rank=0, review_result=None),
        node("best", node("again?", node("yes"), role="prompter"), rank=0),
        node("good", rank=1),
        role="prompter",
    )
)


def test_of_a_tree_the_best_path_that_was_reviewed_is_the_conversation():
    (conversation,) = find_conversation_reader(set(TREE))(TREE)
    assert conversation["messages"] == [user("q"), assistant("best"), user("again?"), assistant("yes")]


def test_of_a_tree_the_best_and_the_worst_reply_are_a_preference():
    assert find_preference_reader(set(TREE))(TREE) == [
        {"prompt": [user("q")], "chosen": [assistant("best")], "rejected": [assistant("worst")]}
    ]


@pytest.mark.parametrize(
    ("root", "kind", "reason"),
    [
        (None, Unusable, "a broken tree"),
        (node(None, role="prompter"), Unusable, "a broken tree: a message without text"),
        (node("q", role="prompter", replies=None), Unusable, "without its list of replies"),
        (node("q", node("a", replies="x"), role="prompter"), Unusable, "without its list of replies"),
        (node("q", node("r", node("a"), role="prompter"), role="prompter"), Unusable, "do not take turns"),
        (node("a"), Unusable, "starts with the assistant"),
        (node("q", role="prompter"), Unusable, "no answer"),
        (node("q", node("a"), role="prompter", deleted=True), LeftOut, "deleted or not approved"),
        (node("q", node("a"), role="prompter", review_result=None), LeftOut, "deleted or not approved"),
    ],
)
def test_a_broken_or_deleted_tree_says_so(root, kind, reason):
    with pytest.raises(kind, match=reason):
        find_conversation_reader({"message_tree_id", "prompt"})(tree(root))


def flat(identity, parent, text, role):
    return {"message_id": identity, "parent_id": parent, "text": text, "role": role, "message_tree_id": "q"}


def test_single_messages_are_put_together_to_trees():
    rows = [
        flat("b", "a", "answer", "assistant"),
        flat("a", None, "question", "prompter"),
        flat("x", "lost", "?", "assistant"),
    ]
    built = dict(build_trees([(row["message_id"], row) for row in rows]))
    reader = find_conversation_reader(set(rows[0]))
    assert reader(built["a"]) == [{"messages": [user("question"), assistant("answer")]}]
    with pytest.raises(Unusable, match="a broken tree"):
        reader(built["x"])


LABELLED = {"prompt": [user("a")], "completion": [assistant("good")], "label": True}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [user("a"), assistant("good")], "label": True}, [LABELLED]),
        ({"messages": [user("a"), assistant("good")], "kto_tag": True}, [LABELLED]),
        ({"prompt": "a", "completion": "good", "label": True}, [LABELLED]),
        (
            {"prompt": "a", "chosen": "good", "rejected": "bad"},
            [LABELLED, {**LABELLED, "completion": [assistant("bad")], "label": False}],
        ),
    ],
)
def test_labels_come_from_rows_that_have_one_and_from_preferences(row, expected):
    assert find_labelled_reader(set(row))(row) == expected


@pytest.mark.parametrize("label", [True, 1, 1.0, "1", "True", "true", " yes", "y", "good"])
def test_a_label_may_be_written_as_a_number_or_a_word(label):
    row = {"messages": [user("a"), assistant("b")], "label": label}
    assert find_labelled_reader({"label"})(row)[0]["label"] is True
    opposite = {True: False, "True": "False", "true": "FALSE", " yes": "no", "y": "n", "good": "bad", "1": "0"}
    row["label"] = opposite.get(label, 0)
    assert find_labelled_reader({"label"})(row)[0]["label"] is False


@pytest.mark.parametrize("label", ["maybe", "", 2, -1, 0.5, None, [True]])
def test_a_label_is_true_or_false(label):
    with pytest.raises(Unusable, match="neither true nor false"):
        find_labelled_reader({"label"})({"messages": [user("a"), assistant("b")], "label": label})


def test_a_named_form_is_taken_and_another_is_not():
    columns = {"messages", "instruction", "output"}
    row = {"messages": [user("m"), assistant("n")], "instruction": "a", "output": "b"}
    assert find_conversation_reader(columns)(row) == [{"messages": [user("m"), assistant("n")]}]
    assert find_conversation_reader(columns, "alpaca")(row) == [{"messages": [user("a"), assistant("b")]}]
    assert find_conversation_reader(columns, "dolly") is None
