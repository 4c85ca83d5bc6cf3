"""Our chat template renders what a client sends as the training rendered it, and older templates stay valid."""

from pathlib import Path

import pytest
from jinja2 import TemplateError

from hf_llm.data.chat.formats import find_conversation_reader
from hf_llm.data.chat.messages import load_tools
from hf_llm.tokenization.chat_encoding import adapt_tool_calls, encode_chat, tool_support
from hf_llm.tokenization.checks import check_same_template, check_tokenizer, renders_alike
from tests.byte_tokenizer import byte_tokenizer

FUNCTION = {"name": "weather", "description": "W", "parameters": {"type": "object", "properties": {"city": {}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def user(content="Well?"):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(arguments, **more):
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **more}


def called(*calls, content=None, role="tool"):
    return [user(), assistant(content, tool_calls=list(calls)), {"role": role, "content": "12"}, assistant("12.")]


# Messages as clients send them, and data sets hold them.
RAW = [
    [user(), assistant("Yes.")],
    [user([{"type": "text", "text": "One "}, {"type": "text", "text": "two."}]), assistant("Yes.")],
    [user([{"type": "text", "text": "  One"}]), assistant([{"type": "text", "text": "    return x\n"}])],
    [user("def f(x):"), assistant("    return x\n")],
    [user("\n\n    def f(x):\n"), assistant("\n\n\treturn x\n\n")],
    [user(" a"), assistant(" b ")],
    [{"role": "system", "content": "Be brief."}, user(), assistant("Yes.")],
    [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, user(), assistant("Yes.")],
    [{"role": "developer", "content": "Be brief."}, user(), assistant("Yes.")],
    [{"role": "system", "content": None}, user(), assistant("Yes.")],
    [{"role": "system", "content": " \n"}, user(), assistant("Yes.")],
    [user(), assistant("4", reasoning_content="Two and two.\n")],
    [user(), assistant("4", thinking="Two and two.")],
    [user(), assistant("4", reasoning="Two and two.")],
    [user(), assistant("\n<think>\na\n</think>\n\n4", reasoning_content="a")],
    [user(), assistant([{"type": "thinking", "thinking": "Two."}, {"type": "text", "text": "4"}])],
    [user(), assistant([{"type": "reasoning", "text": "Two."}, {"type": "text", "text": "\n\n  4"}])],
    [user(), assistant("no", weight=0), user(), assistant("yes")],
    called(call('{"city": "Rome"}')),
    called(call({"city": "Rome", "days": [1, None]})),
    called(call('{"city":"Rome"}'), call('{"city":"Oslo"}')),
    called(call("")),
    called(call(" ")),
    called(call(None)),
    called(call({})),
    called(call('{"city": "Rome"}'), content=" Wait.\n"),
    [user(), assistant("", tool_calls=[call("{}")], reasoning_content="r"), *called(call("{}"))[2:]],
    [user(), assistant(None, function_call={"name": "weather", "arguments": '{"a": 1}'}),
     {"role": "function", "name": "weather", "content": "12"}, assistant("12.")],
]  # fmt: skip


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("messages", RAW, ids=range(len(RAW)))
def test_what_is_rendered_is_what_was_trained(tokenizer, messages, tools):
    row = {"messages": messages, "tools": tools}
    (read,) = find_conversation_reader({"messages"})(row)
    trained, mask = encode_chat(tokenizer, read["messages"], load_tools(read))

    rendered = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(rendered["input_ids"]) == tokenizer.decode(trained)
    assert rendered["input_ids"] == trained and rendered["assistant_masks"] == [int(covered) for covered in mask]

    # A prompt is the beginning of the conversation, up to every answer.
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(
                messages[:number], tools=tools, add_generation_prompt=True, return_dict=True
            )
            assert trained[: len(prompt["input_ids"])] == prompt["input_ids"]


def render(tokenizer, messages, tools=None):
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


def test_an_answer_keeps_its_indentation_and_no_single_space(tokenizer):
    def answer(text):
        return render(tokenizer, [user("a"), assistant(text)]).split("<|im_start|>assistant\n")[1]

    assert answer("    return x\n") == "    return x<|im_end|>\n"
    assert answer(" \n\n  - one\n  - two") == "  - one\n  - two<|im_end|>\n"
    assert answer(" Yes. ") == "Yes.<|im_end|>\n"  # SentencePiece's space
    assert answer("") == "<|im_end|>\n"


def test_a_part_that_is_no_text_is_refused_and_not_printed(tokenizer):
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(TemplateError, match="a part of a message is not text but image_url"):
        render(tokenizer, [user([image]), assistant("b")])


def test_arguments_are_always_an_object(tokenizer):
    for arguments in ("", None, "  ", {}):
        assert '"arguments": {}}\n</tool_call>' in render(tokenizer, called(call(arguments)))


def test_a_model_with_the_earlier_template_is_still_one_with_ours(tokenizer):
    earlier = byte_tokenizer()
    earlier.chat_template = Path(__file__).with_name("earlier_chat_template.jinja").read_text()
    check_tokenizer(earlier)
    check_same_template(earlier, tokenizer)
    assert renders_alike(earlier, tokenizer)

    for change in (
        "These functions|The functions",
        "<tool_call>|<call>",
        "message.role +|'x' +",
        "assistant\\n|assistant:\\n",
    ):
        other = byte_tokenizer()
        before, after = change.split("|")
        assert before in earlier.chat_template
        other.chat_template = earlier.chat_template.replace(before, after)
        assert not renders_alike(other, tokenizer), change


# As in transformers' stock models: how each writes a call. None of them marks what the assistant says.
QWEN_CALL = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    '{%- for call in m.tool_calls or [] %}{{- \'<tool_call>{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
OBJECT_CALL = QWEN_CALL.replace(
    "{{- call.function.arguments | tojson }}",
    "{%- for name, value in call.function.arguments.items() %}{{- name + '=' + (value | string) }}{%- endfor %}",
)
TEXT_CALL = QWEN_CALL.replace("arguments | tojson", "arguments")
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (QWEN_CALL, '"arguments": {"city": "Rome"}}'),
        (TEXT_CALL, '"arguments": {"city": "Rome"}}'),
        (OBJECT_CALL, '"arguments": city=Rome}'),
    ],
)
def test_arguments_are_given_as_the_template_expects_them(template, text):
    other = byte_tokenizer()
    other.chat_template = template
    messages = called(call('{"city": "Rome"}'), content="")
    assert text in other.decode(encode_chat(other, messages)[0])
    assert text in render(other, adapt_tool_calls(other, messages))
    assert messages[1]["tool_calls"] == [call('{"city": "Rome"}')]  # untouched


def test_what_a_template_leaves_out_is_known(tokenizer):
    assert tool_support(tokenizer) == (True, True, True)
    other = byte_tokenizer()
    for template, expected in ((PLAIN, (False, False, False)), (QWEN_CALL, (False, True, False))):
        other.chat_template = template
        assert tool_support(other) == expected
    other.chat_template = "{{ bos_token + 'x' }}" + TEXT_CALL  # a special token that the tokenizer lacks
    assert tool_support(other) == (False, False, False)
