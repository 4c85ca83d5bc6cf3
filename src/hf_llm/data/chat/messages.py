"""Read one message of a conversation, and the tools that the assistant may call, as data sets write them.

A message is `{"role": "system" | "user" | "assistant" | "tool", "content": str}`; a message of the assistant may have
`tool_calls` as OpenAI writes them (arguments as a JSON string), and `weight: 0` if it is not to be trained on.
"""

import ast
import json
import math
import re
from collections.abc import Iterable
from typing import Any

Message = dict[str, Any]
Row = dict[str, Any]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALL_ROLES = {"function_call", "tool_call", "tool_calls"}  # the content is a tool call of the assistant

# Where a message, or a part of its content, may have the same thing; the first that is not null counts.
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_WEIGHT_KEYS = ("weight", "loss_weight")
_TRAIN_KEYS = ("train", "trainable", "loss")
_ARGUMENT_KEYS = ("arguments", "parameters", "input")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_CALL_PARTS = ("tool_call", "tool_use")

_TRUE_WORDS = {"true", "t", "yes", "y", "1", "1.0", "good"}
_FALSE_WORDS = {"false", "f", "no", "n", "0", "0.0", "bad"}

# The columns that may hold messages, in which tools may be listed.
_MESSAGE_COLUMNS = (
    "messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected", "chosen_messages",
    "rejected_messages",
)  # fmt: skip


class Unusable(ValueError):
    """Raised for a row that cannot be used. The message says why, in words that many rows share, to count them by."""


class LeftOut(Unusable):
    """Raised for a valid row that is not used: its makers say so, or it has nothing to train on. Not an error."""


def make_message(role: str, content: str) -> Message:
    """Build a message of plain text."""
    return {"role": role, "content": content}


def parse_messages(value: Any) -> list[Message]:
    """Parse a list of messages, or a string of such a list as JSON (or as Python prints it, in a CSV of pandas).

    Raises Unusable for anything else.
    """
    if isinstance(value, str):
        value = parse_message_list(value)
    if not isinstance(value, list):
        raise Unusable("no list of messages")
    return [parse_message(item) for item in value]


def parse_message_list(text: str) -> list | None:
    """Return the list of objects that a string holds as JSON, or as Python prints it; None where it is plain text."""
    if not re.match(r"\s*\[\s*\{", text):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and all(isinstance(item, dict) and _first(item, _ROLE_KEYS) for item in value):
            return value
    return None


def parse_message(value: Any) -> Message:
    """Parse one message from `{role, content}` or `{from, value}`; the content is a string or a list of parts.

    Reasoning becomes `<think>` ... `</think>` before the answer. Raises Unusable where it is not a message, or where
    something in it that should be trained on cannot be rendered.
    """
    if not isinstance(value, dict):
        raise Unusable("a message that is no object")
    value = drop_nulls(value)
    content = _first(value, _CONTENT_KEYS)
    role = read_role(_first(value, _ROLE_KEYS))

    calls = parse_tool_calls(value.get("tool_calls"))
    if value.get("function_call"):  # OpenAI's spelling before there were tools
        calls += parse_tool_calls(value["function_call"])
    if role in _CALL_ROLES:
        calls += parse_tool_calls(content) or [_parse_tool_call({})]
        role = "assistant"
        content = None

    text, has_answer, part_calls = _read_content(content, role)
    calls += part_calls
    if not text.lstrip().startswith("<think>"):  # else the reasoning stands in the text as well
        text = _read_reasoning(value, role) + text

    if role == "assistant" and text.strip() and not has_answer and not calls:
        raise Unusable("reasoning without an answer")
    message = make_message(role, text)
    if calls:
        if role != "assistant":
            raise Unusable("a tool call that is not the assistant's")
        message["tool_calls"] = calls
    if role == "assistant" and not _is_trained(value):
        message["weight"] = 0
    return message


def read_role(role: Any) -> str:
    """Return the role in our words, or one of `_CALL_ROLES`, whatever its capitals. Raises Unusable."""
    if isinstance(role, str):
        name = role.strip(" :\n").lower().replace("-", "_")
        if name in _CALL_ROLES:
            return name
        if name in _ROLES:
            return _ROLES[name]
    raise Unusable(f"a message of the role {role!r}")


def _read_content(content: Any, role: str) -> tuple[str, bool, list[Row]]:
    """Return the text of a content, whether any of it is other than reasoning, and the tool calls among its parts."""
    if role == "tool" and not _is_text_or_parts(content):
        return json.dumps(content, ensure_ascii=False), True, []  # a result that is an object, a number ...

    parts = content if isinstance(content, list) else [content]
    if content is None and role != "user":
        parts = []

    texts = []
    calls = []
    has_answer = False
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _CALL_PARTS:
            value = part.get("value")
            calls += parse_tool_calls(part if value is None else value)
            continue
        text = _read_part(part)
        texts.append(text)
        if kind not in _REASONING_PARTS and text.strip():
            has_answer = True
    return "".join(texts), has_answer, calls


def _is_text_or_parts(content: Any) -> bool:
    parts = content if isinstance(content, list) else [content]
    return all(part is None or isinstance(part, str) or (isinstance(part, dict) and "type" in part) for part in parts)


def _read_part(part: Any) -> str:
    """Return the text of a content or of one of its parts."""
    if not isinstance(part, dict):
        return read_text(part, "a message without text")

    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return read_text(_first(part, _CONTENT_KEYS), "a message without text")
    if kind in _REASONING_PARTS:
        return _mark_reasoning(_first(part, (*_CONTENT_KEYS, *_REASONING_KEYS)))
    raise Unusable("a message with parts that are no text")


def _read_reasoning(value: Row, role: str) -> str:
    """Return the reasoning that a message has under a key of its own, marked; an empty string where there is none."""
    reasoning = _first(value, _REASONING_KEYS)
    if not reasoning:
        return ""
    if role != "assistant":
        raise Unusable("reasoning that is not the assistant's")
    return _mark_reasoning(reasoning)


def _mark_reasoning(reasoning: Any) -> str:
    """Put reasoning between marks, as models that show their reasoning write it."""
    text = read_text(reasoning, "reasoning that is not text").strip()
    return f"<think>\n{text}\n</think>\n\n" if text else ""


def _is_trained(value: Row) -> bool:
    """Return whether an answer is to be trained on, by its weight or its makers' mark. Raises Unusable."""
    if value.get("train_detail"):
        raise Unusable("an answer of which only parts are to be trained on (train_detail)")

    for key in _WEIGHT_KEYS:
        weight = value.get(key)
        if weight is not None and not read_flag(weight, "a weight other than 0 and 1"):
            return False

    for key in _TRAIN_KEYS:
        mark = value.get(key)
        if mark is not None and not read_flag(mark, f"{key} that is neither true nor false"):
            return False
    return True


def read_flag(value: Any, problem: str) -> bool:
    """Read true or false, as JSON, numbers or the words of a CSV write them. Raises Unusable with `problem`."""
    word = str(value).strip().lower()
    if word in _TRUE_WORDS:
        return True
    if word in _FALSE_WORDS:
        return False
    raise Unusable(problem)


def read_text(value: Any, problem: str) -> str:
    """Return a text; a number is the text that a CSV would hold. Raises Unusable with `problem`."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return str(value)
    raise Unusable(problem)


def _first(value: Row, keys: Iterable[str]) -> Any:
    """Return the first of these keys' values that is not null; None where there is none."""
    for key in keys:
        if value.get(key) is not None:
            return value[key]
    return None


def drop_nulls(value: Any) -> Any:
    """Return a value of JSON without the fields that are null, at every depth; null items of lists stay.

    A table of Parquet or Arrow gives each object the fields of all the others in its column, null where they are
    missing. A null field and a missing one are the same there, and so they are in every kind of file.
    """
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        is_map = bool(value) and all(isinstance(item, tuple) and len(item) == 2 for item in value)
        if is_map:  # Arrow's map type: pairs of key and value
            return drop_nulls(dict(value))
        return [drop_nulls(item) for item in value]
    return value


# Tool calls and tools


def parse_tool_calls(value: Any) -> list[Row]:
    """Parse one or several tool calls, as objects or as JSON; an empty list where there are none. Raises Unusable."""
    if isinstance(value, str):
        value = _parse_json(value, "a tool call that is no JSON") if value.strip() else None
    if not value:
        return []
    if isinstance(value, dict):
        value = [value]
    return [_parse_tool_call(call) for call in require_list(value, "tool_calls")]


def _parse_tool_call(value: Any) -> Row:
    """Convert a tool call to OpenAI's form, from that form or from `{"name", "arguments"}`, as an object or as JSON."""
    if isinstance(value, str):
        value = _parse_json(value, "a tool call that is no JSON")

    function = None
    if isinstance(value, dict):
        function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unusable("a tool call without a name")
    arguments = _read_arguments(_first(function, _ARGUMENT_KEYS))
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _read_arguments(arguments: Any) -> str:
    """Return the arguments of a call as the JSON of an object; `{}` where there are none. Raises Unusable."""
    problem = "a tool call whose arguments are not a JSON object"
    if isinstance(arguments, str):
        text = arguments.strip() or "{}"
        parsed = _parse_json(text, problem)
        if isinstance(parsed, str):  # JSON that was written as JSON once more
            text = parsed.strip()
            parsed = _parse_json(text, problem)
    else:
        parsed = {} if arguments == [] else arguments  # PHP writes an empty object so
        text = _write_json(parsed, problem)

    if parsed is None:
        return "{}"
    if not isinstance(parsed, dict):
        raise Unusable(problem)
    return text


def read_tools(row: Row) -> dict[str, str]:
    """Return `{"tools": JSON}` if a row lists the tools that the assistant may call, else an empty dictionary.

    They stand in the columns `tools` and `functions`, or in a message. They are written as a string because a column
    needs one type, and their schemas differ from row to row.
    """
    places = [row]
    for name in _MESSAGE_COLUMNS:
        messages = row.get(name)
        if isinstance(messages, str):
            messages = parse_message_list(messages)
        if isinstance(messages, list):
            places += [message for message in messages if isinstance(message, dict)]

    tools = []
    for place in places:
        listed = _parse_tools(place.get("tools"))
        for function in _parse_tools(place.get("functions")):
            listed.append(function if "function" in function else {"type": "function", "function": function})
        tools += [tool for tool in listed if tool not in tools]
    if not tools:
        return {}
    return {"tools": _write_json(tools, "tools that are no JSON")}


def _parse_tools(value: Any) -> list[Row]:
    """Parse the descriptions of tools: a list of objects, or JSON of it or of its items. Raises Unusable."""
    if isinstance(value, str):
        value = _parse_json(value, "tools that are no JSON") if value.strip() else None
    else:
        value = drop_nulls(value)
    if not value:
        return []
    if isinstance(value, dict):
        value = [value]

    tools = []
    for tool in require_list(value, "tools"):
        if isinstance(tool, str):
            tool = _parse_json(tool, "tools that are no objects")
        if not isinstance(tool, dict):
            raise Unusable("tools that are no objects")
        tools.append(tool)
    return tools


def load_tools(row: Row) -> list[Row] | None:
    """Return the tools of a loaded row, whose column `tools` is JSON; None where it has none."""
    return json.loads(row["tools"]) if row.get("tools") else None


def require_list(value: Any, name: str) -> list:
    """Return the list `value`. Raises Unusable for anything else."""
    if not isinstance(value, list):
        raise Unusable(f"{name} that is no list")
    return value


def _parse_json(text: str, problem: str) -> Any:
    """Parse JSON, in which NaN and Infinity are no numbers. Raises Unusable with `problem`."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Unusable(problem) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _write_json(value: Any, problem: str) -> str:
    """Write JSON. Raises Unusable with `problem` for what JSON does not have: dates, bytes, NaN."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise Unusable(problem) from None
