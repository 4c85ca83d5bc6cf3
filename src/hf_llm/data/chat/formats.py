"""Rows of chat and preference data sets in the forms they come in, brought to message lists.

The form is known by the columns, or named. A message is `{"role": "system" | "user" | "assistant" | "tool", "content":
str}`; one of the assistant may have `tool_calls` as OpenAI writes them (arguments as a JSON string), and `weight: 0`
where it is not to be learnt. A conversation has an optional system message, then user and assistant in turn, a call's
results between them, and ends with the assistant. docs/conversations.md shows a row of every form.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ALPACA_PROMPT = re.compile(
    r"(?:Below is an instruction.*?\n\n)?### Instruction:\n(?P<instruction>.*?)"
    r"(?:\n\n### Input:\n(?P<input>.*?))?\n\n### Response:\s*",
    re.DOTALL,
)
_FOLLOWING = {  # who may speak after whom; "" is the start
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}


class Unusable(ValueError):
    """Why a row cannot be used, in words that many rows share."""


class LeftOut(Unusable):
    """Why a sound row is not taken: its makers say so, or it has nothing to teach. No fault of the data."""


Reader = Callable[[Row], list[Row]]  # what becomes of a row: rows of the stage's own columns


def conversation_reader(columns: set[str], format: str | None = None) -> Reader | None:
    """The function that makes conversations (`messages`, and `tools` where a row has them) of rows with these columns.

    None where no form is known, or the columns lack what `format` needs.
    """
    return _reader(CONVERSATIONS, columns, format)


def preference_reader(columns: set[str], format: str | None = None) -> Reader | None:
    """The function that makes `prompt`, `chosen` and `rejected` (message lists) of rows with these columns, or None."""
    return _reader(PREFERENCES, columns, format)


def labelled_reader(columns: set[str], format: str | None = None) -> Reader | None:
    """The function that makes `prompt`, `completion` (message lists) and `label` of rows with these columns, or None.

    A row of preferences becomes two.
    """
    return _reader(LABELLED, columns, format)


def prompt_reader(columns: set[str], format: str | None = None) -> Reader | None:
    """The function that makes `prompt` (messages up to the last answer) and `answer` (its text; None where there is
    none) of rows with these columns, or None."""
    return _reader(PROMPTS, columns, format)


def _reader(forms: dict[str, tuple[set[str], Reader]], columns: set[str], format: str | None) -> Reader | None:
    for name, (needed, reader) in forms.items():
        if needed <= columns and format in (None, name):
            return reader
    return None


def checked(messages: list[Message]) -> list[Message]:
    """The conversation, what follows the last answer left out. Raises Unusable for one that is none."""
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise Unusable("no answer")
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    before = ""
    for turn in turns:
        if turn["role"] not in _FOLLOWING[before]:
            raise Unusable(_disorder(before, turn["role"]))
        before = "call" if turn.get("tool_calls") else turn["role"]
        if not turn["content"].strip() and before not in ("call", "tool"):
            raise Unusable("an empty answer" if before == "assistant" else "an empty question")
    return messages


def _disorder(before: str, role: str) -> str:
    if role == "system":
        return "a second system message, or one that is not the first"
    if not before:
        return "starts with the assistant" if role == "assistant" else "starts with a tool"
    if "tool" in (before, role) or before == "call":
        return "a tool call and its result do not follow each other"
    return "user and assistant do not take turns"


def message(value: Any) -> Message:
    """One message from `{role, content}` or `{from, value}`; the content a string or a list of text parts."""
    if not isinstance(value, dict):
        raise Unusable("a message that is no object")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(content)]}
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable(f"a message of the role {role!r}")
    calls = [_call(call) for call in _list(value.get("tool_calls") or [], "tool_calls")]
    parts = content if isinstance(content, list) else [] if content is None and calls else [content]
    texts = [part for part in parts if not (isinstance(part, dict) and part.get("type") == "tool_call")]
    calls += [_call(part.get("value")) for part in parts if part not in texts]
    found = {"role": _ROLES[role], "content": "".join(map(_part, texts))}
    if calls:
        if found["role"] != "assistant":
            raise Unusable("a tool call that is not the assistant's")
        found["tool_calls"] = calls
    if found["role"] == "assistant" and value.get("weight", value.get("loss_weight")) == 0:
        found["weight"] = 0
    return found


def _part(part: Any) -> str:
    """The text of a content or of one of its parts; reasoning is put between marks, as models that show it write it."""
    text = part
    if isinstance(part, dict):
        if part.get("type") not in ("text", "reasoning"):
            raise Unusable("a message with parts that are no text")
        text = part.get("text", part.get("value"))
    if not isinstance(text, str):
        raise Unusable("a message without text")
    return f"<think>\n{text.strip()}\n</think>\n\n" if part != text and part["type"] == "reasoning" else text


def _call(value: Any) -> Row:
    """OpenAI's tool call from its own form, or from `{"name", "arguments"}` as JSON or an object."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unusable("a tool call that is no JSON") from None
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unusable("a tool call without a name")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(row: Row) -> dict[str, str]:
    """`{"tools": JSON}` where a row says what the assistant may call; a string, for rows differ in their schemas."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise Unusable("tools that are no JSON") from None
    if not tools:
        return {}
    if any(not isinstance(tool, dict) for tool in _list(tools, "tools")):
        raise Unusable("tools that are no objects")
    return {"tools": json.dumps(tools, ensure_ascii=False)}


def _list(value: Any, name: str) -> list:
    if not isinstance(value, list):
        raise Unusable(f"{name} that is no list")
    return value


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [_said("user", value)]
    if not isinstance(value, list):
        raise Unusable("no list of messages")
    return [message(item) for item in value]


def _text(value: Any, name: str) -> str:
    if value is not None and not isinstance(value, str):
        raise Unusable(f"{name} is no text")
    return value or ""


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(row: Row) -> list[Message]:
    return [_said("system", _text(row["system"], "system"))] if row.get("system") else []


def _conversation(messages: list[Message], row: Row) -> list[Row]:
    return [{"messages": checked(messages), **_tools(row)}]


def _from_messages(row: Row) -> list[Row]:
    return _conversation(_messages(row["messages"]), row)


def _from_sharegpt(row: Row) -> list[Row]:
    turns = row["conversations"] if "conversations" in row else row["conversation"]
    return _conversation([*_system(row), *_messages(turns)], row)


def _from_completion(row: Row) -> list[Row]:
    completion = row["completion"]
    answer = [_said("assistant", completion)] if isinstance(completion, str) else _messages(completion)
    return _conversation([*_messages(row["prompt"]), *answer], row)


def _from_alpaca(row: Row) -> list[Row]:
    return _conversation([*_instruction(row), _said("assistant", _text(row["output"], "output"))], row)


def _from_dolly(row: Row) -> list[Row]:
    question = _instruction({"instruction": row["instruction"], "input": row["context"]})
    return _conversation([*question, _said("assistant", _text(row["response"], "response"))], row)


def _from_self_instruct(row: Row) -> list[Row]:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise Unusable("no instances")
    return _from_alpaca({"instruction": row["instruction"], **instances[0]})


def _from_question(row: Row) -> list[Row]:
    question, answer = _text(row["question"], "question"), _text(row["answer"], "answer")
    return _conversation([_said("user", question), _said("assistant", answer)], row)


def _from_exchanges(row: Row) -> list[Row]:
    """MT-Bench-101's `history`: a list of `{"user", "bot"}`."""
    messages = []
    for turn in _list(row["history"], "history"):
        if not isinstance(turn, dict) or not {"user", "bot"} <= turn.keys():
            raise Unusable("an exchange without user and bot")
        messages += [_said("user", _text(turn["user"], "user")), _said("assistant", _text(turn["bot"], "bot"))]
    return _conversation(messages, row)


def _from_tree(row: Row) -> list[Row]:
    """The best path through an OpenAssistant tree: at every turn the reply ranked first.

    Replies that were deleted or did not pass review are not gone through.
    """
    node, messages = row["prompt"], []
    if not _is_sound(node):
        raise LeftOut("a tree whose first message was deleted or not approved")
    while node is not None:
        messages.append(_said(_ROLES.get(node["role"], node["role"]), node["text"]))
        replies = [reply for reply in node["replies"] if _is_sound(reply)]
        node = min(replies, key=_rank, default=None)
    return _conversation(messages, row)


def _from_ranked_tree(row: Row) -> list[Row]:
    """Preferences of an OpenAssistant tree: along the best path, the reply ranked first against the one ranked last."""
    node, prompt, pairs = row["prompt"], [], []
    if not _is_sound(node):
        raise LeftOut("a tree whose first message was deleted or not approved")
    while node is not None:
        prompt = [*prompt, _said(_ROLES.get(node["role"], node["role"]), node["text"])]
        replies = sorted((reply for reply in node["replies"] if _is_sound(reply)), key=_rank)
        ranked = [reply for reply in replies if isinstance(reply.get("rank"), int) and reply["role"] == "assistant"]
        if len(ranked) > 1:
            pairs += _pair(prompt, *(_said("assistant", reply["text"]) for reply in (ranked[0], ranked[-1])))
        node = replies[0] if replies else None
    if not pairs:
        raise LeftOut("a tree without two ranked replies")
    return pairs


def _is_sound(node: Any) -> bool:
    """Whether a message of a tree may be used. Raises Unusable where it is none."""
    if not isinstance(node, dict) or not isinstance(node.get("text"), str) or not isinstance(node.get("role"), str):
        raise Unusable("a broken tree: a message without text or role")
    if not isinstance(node.get("replies"), list):
        raise Unusable("a broken tree: a message without its list of replies")
    return not node.get("deleted") and node.get("review_result", True) is True


def _rank(node: Row) -> float:
    rank = node.get("rank")
    return rank if isinstance(rank, int) else float("inf")


def trees(rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """OpenAssistant's single messages (`message_id`, `parent_id` ..., as on the Hub) put together to trees.

    `rows` and what comes out are pairs of where a row stands and the row. A message whose parent is missing comes out
    as a tree without a first message, which is a broken one.
    """
    nodes = {}
    for where, row in rows:
        nodes[row["message_id"]] = (where, {**row, "replies": []})
    for where, node in nodes.values():
        if not node["parent_id"]:
            yield where, {"prompt": node}
        elif node["parent_id"] in nodes:
            nodes[node["parent_id"]][1]["replies"].append(node)
        else:
            yield where, {"prompt": None}


def preference(row: Row) -> list[Row]:
    """`prompt`, `chosen` and `rejected` as message lists (TRL's conversational form).

    The prompt stands in a column (`prompt`, `conversations`, `messages`, or `instruction` and `input`) or is what the
    chosen and the rejected conversation share: lists of messages, or Anthropic's transcripts of Human and Assistant.
    """
    prompt = _prompt(row) or _system(row)
    (chosen_before, chosen), (rejected_before, rejected) = (_answer(row[name]) for name in ("chosen", "rejected"))
    if chosen_before != rejected_before:
        raise Unusable("chosen and rejected answer different prompts")
    # The whole conversation may stand in `chosen`, whatever `prompt` repeats of it, or its last turns.
    if chosen_before and prompt[-len(chosen_before) :] != chosen_before:
        has_system = chosen_before[0]["role"] == "system"
        prompt = [*(said for said in prompt[:1] if said["role"] == "system" and not has_system), *chosen_before]
    return _pair(prompt, chosen, rejected)


def _pair(prompt: list[Message], chosen: Message, rejected: Message) -> list[Row]:
    if not prompt:
        raise Unusable("no prompt")
    if chosen["content"].strip() == rejected["content"].strip() and "tool_calls" not in {*chosen, *rejected}:
        raise Unusable("chosen and rejected are the same")
    for answer in (chosen, rejected):
        checked([*prompt, answer])
    return [{"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}]


def _from_preferred_messages(row: Row) -> list[Row]:
    return preference({"chosen": row["chosen_messages"], "rejected": row["rejected_messages"]})


def _from_votes(row: Row) -> list[Row]:
    """PandaLM: two responses and votes of annotators, 0 for a tie, 1 or 2 for the better one."""
    given = [vote for name, vote in row.items() if name.startswith("annotator")]
    if not given or any(vote not in (0, 1, 2) for vote in given):
        raise Unusable("votes other than 0, 1 and 2")
    votes = Counter(given)
    winner, most = votes.most_common(1)[0]
    if winner == 0 or 2 * most <= votes.total():
        raise LeftOut("a tie")
    answers = [_said("assistant", _text(row[name], name)) for name in ("response1", "response2")]
    return _pair(_instruction(row), answers[winner - 1], answers[2 - winner])


def _from_label(row: Row) -> list[Row]:
    """A conversation and whether its last answer is a good one (`label`, or LLaMA-Factory's `kto_tag`)."""
    label = row["label"] if "label" in row else row["kto_tag"]
    if not isinstance(label, bool):
        raise Unusable("a label that is neither true nor false")
    reader = conversation_reader(set(row))
    if reader is None:
        raise Unusable("a label without a conversation")
    (found,) = reader(row)
    *prompt, answer = found["messages"]
    return [{"prompt": prompt, "completion": [answer], "label": label}]


def _unpaired(reader: Reader) -> Reader:
    """Preferences as labelled answers: the chosen one good, the rejected one bad."""

    def read(row: Row) -> list[Row]:
        return [
            {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
            for pair in reader(row)
            for name in ("chosen", "rejected")
        ]

    return read


def _prompts(reader: Reader) -> Reader:
    """What is asked in conversations and preferences, and the answer the data gives: the last, or the chosen one."""

    def read(row: Row) -> list[Row]:
        prompts = []
        for found in reader(row):
            *before, answer = found["messages"] if "messages" in found else [*found["prompt"], *found["chosen"]]
            if not before:
                raise Unusable("no prompt")
            prompts.append({"prompt": before, "answer": answer["content"]})
        return prompts

    return read


def _from_prompt(row: Row) -> list[Row]:
    """A question without an answer: `prompt`, a text or messages that the assistant has not answered yet."""
    prompt = [*_system(row), *_messages(row["prompt"])]
    if not prompt or prompt[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user")
    checked([*prompt, _said("assistant", "-")])
    return [{"prompt": prompt, "answer": None}]


# By name: the columns that a form needs, and its reader; the most specific first.
CONVERSATIONS: dict[str, tuple[set[str], Reader]] = {
    "messages": ({"messages"}, _from_messages),
    "sharegpt": ({"conversations"}, _from_sharegpt),
    "sharegpt_conversation": ({"conversation"}, _from_sharegpt),
    "completion": ({"prompt", "completion"}, _from_completion),
    "alpaca": ({"instruction", "output"}, _from_alpaca),
    "dolly": ({"instruction", "context", "response"}, _from_dolly),
    "self_instruct": ({"instruction", "instances"}, _from_self_instruct),
    "question": ({"question", "answer"}, _from_question),
    "oasst": ({"message_tree_id", "prompt"}, _from_tree),
    "oasst_messages": ({"message_id", "parent_id", "role", "text"}, _from_tree),
    "exchanges": ({"history"}, _from_exchanges),
}
PREFERENCES: dict[str, tuple[set[str], Reader]] = {
    "preference_messages": ({"chosen_messages", "rejected_messages"}, _from_preferred_messages),
    "preference": ({"chosen", "rejected"}, preference),
    "votes": ({"instruction", "response1", "response2"}, _from_votes),
    "oasst": ({"message_tree_id", "prompt"}, _from_ranked_tree),
    "oasst_messages": ({"message_id", "parent_id", "role", "text"}, _from_ranked_tree),
}
LABELLED: dict[str, tuple[set[str], Reader]] = {
    "label": ({"label"}, _from_label),
    "kto_tag": ({"kto_tag"}, _from_label),
    **{name: (needed, _unpaired(reader)) for name, (needed, reader) in PREFERENCES.items()},
}
PROMPTS: dict[str, tuple[set[str], Reader]] = {
    **{name: (needed, _prompts(reader)) for name, (needed, reader) in (PREFERENCES | CONVERSATIONS).items()},
    "prompt": ({"prompt"}, _from_prompt),
}
NEEDS_TREES = CONVERSATIONS["oasst_messages"][0]  # the columns of rows that are to go through `trees` first


def _instruction(row: Row) -> list[Message]:
    """Alpaca's columns up to the answer; LLaMA-Factory's `system` and `history` ([question, answer] pairs) too."""
    messages = _system(row)
    for pair in _list(row.get("history") or [], "history"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unusable("history that is no list of pairs")
        messages += [_said("user", _text(pair[0], "history")), _said("assistant", _text(pair[1], "history"))]
    parts = (_text(row["instruction"], "instruction"), _text(row.get("input"), "input"))
    question = "\n\n".join(part.strip() for part in parts if part.strip())
    return [*messages, _said("user", question)]


def _prompt(row: Row) -> list[Message]:
    for name in ("prompt", "conversations", "messages"):
        if row.get(name):
            rendered = _ALPACA_PROMPT.fullmatch(row[name]) if isinstance(row[name], str) else None
            return _instruction(rendered.groupdict()) if rendered else [*_system(row), *_messages(row[name])]
    return _instruction(row) if row.get("instruction") else []


def _answer(value: Any) -> tuple[list[Message], Message]:
    """The messages before the answer, as far as `value` holds them, and the answer."""
    if isinstance(value, str):
        if not _TURN.match(value):
            return [], _said("assistant", value)
        _, *turns = _TURN.split(value)
        roles = {"Human": "user", "Assistant": "assistant"}
        messages = [_said(roles[r], t.strip()) for r, t in zip(turns[::2], turns[1::2], strict=True)]
    else:
        messages = [message(value)] if isinstance(value, dict) else _messages(value)
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("no answer")
    return messages[:-1], messages[-1]
