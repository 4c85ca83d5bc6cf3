"""Rows of chat and preference data sets in the forms they come in, brought to message lists.

The form is known by the columns. A message is `{"role": "system" | "user" | "assistant", "content": str}`; a
conversation has an optional system message, then user and assistant in turn, and ends with the assistant.
"""

import re
from collections.abc import Callable
from typing import Any

Message = dict[str, str]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Unusable(ValueError):
    """Why a row cannot be used, in words that many rows share."""


def conversation_reader(columns: set[str]) -> Callable[[dict], list[Message]] | None:
    """The function that makes a conversation of rows with these columns; None where no form is known."""
    for needed, reader in _CONVERSATIONS:
        if needed <= columns:
            return reader
    return None


def preference_reader(columns: set[str]) -> Callable[[dict], dict[str, list[Message]]] | None:
    """The function that makes `prompt`, `chosen` and `rejected` of rows with these columns, or None."""
    if {"chosen_messages", "rejected_messages"} <= columns:
        return lambda row: preference({"chosen": row["chosen_messages"], "rejected": row["rejected_messages"]})
    return preference if {"chosen", "rejected"} <= columns else None


def preference(row: dict) -> dict[str, list[Message]]:
    """`prompt`, `chosen` and `rejected` as message lists (TRL's conversational form).

    The prompt stands in a column (`prompt`, `conversations`, `messages`, or `instruction` and `input`) or is what the
    chosen and the rejected conversation share: lists of messages, or Anthropic's transcripts of Human and Assistant.
    """
    prompt = _prompt(row)
    (chosen_before, chosen), (rejected_before, rejected) = (_answer(row[name]) for name in ("chosen", "rejected"))
    if chosen_before != rejected_before:
        raise Unusable("chosen and rejected answer different prompts")
    if chosen_before:  # the whole conversation stands in `chosen`, whatever `prompt` repeats of it
        prompt = chosen_before
    if not prompt:
        raise Unusable("no prompt")
    if chosen["content"].strip() == rejected["content"].strip():
        raise Unusable("chosen and rejected are the same")
    checked([*prompt, chosen])
    checked([*prompt, rejected])
    return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def checked(messages: list[Message]) -> list[Message]:
    """The conversation, questions after the last answer left out. Raises Unusable for one that is none."""
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise Unusable("no answer")
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if any(message["role"] != ("user", "assistant")[i % 2] for i, message in enumerate(turns)):
        raise Unusable("user and assistant do not take turns")
    if any(not message["content"].strip() for message in turns):
        raise Unusable("an empty message")
    return messages


def message(value: Any) -> Message:
    """One message from `{role, content}` or `{from, value}`; the content a string or a list of text parts."""
    if not isinstance(value, dict):
        raise Unusable("a message that is no object")
    role = value.get("role", value.get("from"))
    if role not in _ROLES:
        raise Unusable(f"a message of the role {role!r}")
    return {"role": _ROLES[role], "content": _content(value.get("content", value.get("value")))}


def _content(content: Any) -> str:
    if isinstance(content, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise Unusable("a message with parts that are no text")
        content = "".join(str(part.get("text", part.get("value", ""))) for part in content)
    if not isinstance(content, str):
        raise Unusable("a message without text")
    return content


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise Unusable("no list of messages")
    return [message(item) for item in value]


def _text(value: Any, name: str) -> str:
    if value is not None and not isinstance(value, str):
        raise Unusable(f"{name} is no text")
    return value or ""


def _from_messages(row: dict) -> list[Message]:
    return checked(_messages(row["messages"]))


def _from_sharegpt(row: dict) -> list[Message]:
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return checked([*system, *_messages(row["conversations"])])


def _from_completion(row: dict) -> list[Message]:
    completion = row["completion"]
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else _messages(completion)
    return checked([*_messages(row["prompt"]), *answer])


def _from_alpaca(row: dict) -> list[Message]:
    return checked([*_instruction(row), {"role": "assistant", "content": _text(row["output"], "output")}])


def _from_self_instruct(row: dict) -> list[Message]:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise Unusable("no instances")
    return _from_alpaca({"instruction": row["instruction"], **instances[0]})


def _from_question(row: dict) -> list[Message]:
    question, answer = _text(row["question"], "question"), _text(row["answer"], "answer")
    return checked([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


# Columns that a form needs, and its reader, the most specific first.
_CONVERSATIONS: list[tuple[set[str], Callable[[dict], list[Message]]]] = [
    ({"messages"}, _from_messages),
    ({"conversations"}, _from_sharegpt),
    ({"prompt", "completion"}, _from_completion),
    ({"instruction", "output"}, _from_alpaca),
    ({"instruction", "instances"}, _from_self_instruct),
    ({"question", "answer"}, _from_question),
]


def _instruction(row: dict) -> list[Message]:
    """Alpaca's columns up to the answer; LLaMA-Factory's `system` and `history` ([question, answer] pairs) too."""
    messages = [{"role": "system", "content": _text(row["system"], "system")}] if row.get("system") else []
    for pair in row.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unusable("history that is no list of pairs")
        messages += [{"role": "user", "content": str(pair[0])}, {"role": "assistant", "content": str(pair[1])}]
    parts = (_text(row["instruction"], "instruction"), _text(row.get("input"), "input"))
    question = "\n\n".join(part.strip() for part in parts if part.strip())
    return [*messages, {"role": "user", "content": question}]


def _prompt(row: dict) -> list[Message]:
    for name in ("prompt", "conversations", "messages"):
        if row.get(name):
            system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
            return [*system, *_messages(row[name])]
    return _instruction(row) if row.get("instruction") else []


def _answer(value: Any) -> tuple[list[Message], Message]:
    """The messages before the answer, as far as `value` holds them, and the answer."""
    if isinstance(value, str):
        if not _TURN.match(value):
            return [], {"role": "assistant", "content": value}
        _, *turns = _TURN.split(value)
        roles = {"Human": "user", "Assistant": "assistant"}
        messages = [{"role": roles[r], "content": t.strip()} for r, t in zip(turns[::2], turns[1::2], strict=True)]
    else:
        messages = [message(value)] if isinstance(value, dict) else _messages(value)
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("no answer")
    return messages[:-1], messages[-1]
