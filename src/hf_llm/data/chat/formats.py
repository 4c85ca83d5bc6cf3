"""Convert rows of chat and preference data sets, which come in many formats, to message lists.

The format of a row is recognised by its columns, or named by the recipe. A message is `{"role": "system" | "user" |
"assistant" | "tool", "content": str}`; a message of the assistant may have `tool_calls` as OpenAI writes them
(arguments as a JSON string), and `weight: 0` if it is not to be trained on. A conversation has an optional system
message, then user and assistant take turns, and it ends with the assistant. After a tool call come its results.
docs/conversations.md shows a row of every format.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Row = dict[str, Any]
RowReader = Callable[[Row], list[Row]]  # turns a row of a data set into rows with the stage's own columns

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
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
_ALPACA_PROMPT = re.compile(
    r"(?:Below is an instruction.*?\n\n)?### Instruction:\n(?P<instruction>.*?)"
    r"(?:\n\n### Input:\n(?P<input>.*?))?\n\n### Response:\s*",
    re.DOTALL,
)

# The roles that may follow each role: "" is the start of the conversation, "call" an assistant's message with a tool
# call.
_NEXT_ROLES = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}


class Unusable(ValueError):
    """Raised for a row that cannot be used. The message says why, in words that many rows share, to count them by."""


class LeftOut(Unusable):
    """Raised for a valid row that is not used: its makers say so, or it has nothing to train on. Not an error."""


@dataclass(frozen=True)
class RowFormat:
    """A format of rows."""

    columns: set[str]
    """The columns that the reader needs."""
    reader: RowReader


def find_conversation_reader(columns: set[str], format_name: str | None = None) -> RowReader | None:
    """Find the reader that turns rows with these columns into conversations (`messages`, and `tools` if there are any).

    Returns None if the columns belong to no known format, or lack one that the format `format_name` needs.
    """
    return _find_reader(CONVERSATION_FORMATS, columns, format_name)


def find_preference_reader(columns: set[str], format_name: str | None = None) -> RowReader | None:
    """Find the reader that turns rows into `prompt`, `chosen` and `rejected` (message lists); None if there is none."""
    return _find_reader(PREFERENCE_FORMATS, columns, format_name)


def find_labelled_reader(columns: set[str], format_name: str | None = None) -> RowReader | None:
    """Find the reader that turns rows into `prompt`, `completion` (message lists) and `label`; None if there is none.

    A preference becomes two rows.
    """
    return _find_reader(LABELLED_FORMATS, columns, format_name)


def find_prompt_reader(columns: set[str], format_name: str | None = None) -> RowReader | None:
    """Find the reader that turns rows into `prompt` and `answer`; None if there is none.

    `prompt` are the messages before the last answer, `answer` is its text, or None if the data has none.
    """
    return _find_reader(PROMPT_FORMATS, columns, format_name)


def _find_reader(formats: dict[str, RowFormat], columns: set[str], format_name: str | None) -> RowReader | None:
    for name, row_format in formats.items():
        is_wanted = format_name is None or format_name == name
        if is_wanted and row_format.columns <= columns:
            return row_format.reader
    return None


def check_conversation(messages: list[Message]) -> list[Message]:
    """Return the conversation up to its last answer. Raises Unusable for one whose turns are not in order."""
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise Unusable("no answer")

    turns = messages
    if messages[0]["role"] == "system":
        turns = messages[1:]

    previous = ""
    for turn in turns:
        role = turn["role"]
        if role not in _NEXT_ROLES[previous]:
            raise Unusable(_describe_disorder(previous, role))

        previous = "call" if turn.get("tool_calls") else role
        is_empty = not turn["content"].strip()
        if is_empty and previous == "assistant":
            raise Unusable("an empty answer")
        if is_empty and previous == "user":
            raise Unusable("an empty question")
    return messages


def _describe_disorder(previous: str, role: str) -> str:
    """Say what is wrong with a turn of `role` after one of `previous`."""
    if role == "system":
        return "a second system message, or one that is not the first"
    if previous == "":
        return "starts with the assistant" if role == "assistant" else "starts with a tool"
    if previous in ("call", "tool") or role == "tool":
        return "a tool call and its result do not follow each other"
    return "user and assistant do not take turns"


def parse_message(value: Any) -> Message:
    """Parse one message from `{role, content}` or `{from, value}`; the content is a string or a list of parts.

    Raises Unusable where it is not a message.
    """
    if not isinstance(value, dict):
        raise Unusable("a message that is no object")

    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_parse_tool_call(content)]}
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable(f"a message of the role {role!r}")
    role = _ROLES[role]

    # Tool calls are under the key `tool_calls`, or among the parts of the content.
    calls = [_parse_tool_call(call) for call in _require_list(value.get("tool_calls") or [], "tool_calls")]
    parts = [content]
    if isinstance(content, list):
        parts = content
    elif content is None and calls:
        parts = []

    text_parts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "tool_call":
            calls.append(_parse_tool_call(part.get("value")))
        else:
            text_parts.append(part)

    parsed: Message = {"role": role, "content": "".join(_part_text(part) for part in text_parts)}
    if calls:
        if role != "assistant":
            raise Unusable("a tool call that is not the assistant's")
        parsed["tool_calls"] = calls
    if role == "assistant" and value.get("weight", value.get("loss_weight")) == 0:
        parsed["weight"] = 0
    return parsed


def _part_text(part: Any) -> str:
    """Return the text of a content or of one of its parts.

    Reasoning is put between `<think>` marks, as models that show their reasoning write it.
    """
    text = part
    is_reasoning = False
    if isinstance(part, dict):
        kind = part.get("type")
        if kind not in ("text", "reasoning"):
            raise Unusable("a message with parts that are no text")
        is_reasoning = kind == "reasoning"
        text = part.get("text", part.get("value"))

    if not isinstance(text, str):
        raise Unusable("a message without text")
    if is_reasoning:
        return f"<think>\n{text.strip()}\n</think>\n\n"
    return text


def _parse_tool_call(value: Any) -> Row:
    """Convert a tool call to OpenAI's form, from that form or from `{"name", "arguments"}`, as an object or as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unusable("a tool call that is no JSON") from None

    function = None
    if isinstance(value, dict):
        function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unusable("a tool call without a name")

    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _read_tools(row: Row) -> dict[str, str]:
    """Return `{"tools": JSON}` if a row lists the tools that the assistant may call, else an empty dictionary.

    The tools are written as a string because a column needs one type, and their schemas differ from row to row.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise Unusable("tools that are no JSON") from None
    if not tools:
        return {}

    if not all(isinstance(tool, dict) for tool in _require_list(tools, "tools")):
        raise Unusable("tools that are no objects")
    return {"tools": json.dumps(tools, ensure_ascii=False)}


def _require_list(value: Any, name: str) -> list:
    if not isinstance(value, list):
        raise Unusable(f"{name} that is no list")
    return value


def _require_text(value: Any, name: str) -> str:
    """Return the string `value`, or an empty one for None."""
    if value is not None and not isinstance(value, str):
        raise Unusable(f"{name} is no text")
    return value or ""


def make_message(role: str, content: str) -> Message:
    """Build a message of plain text."""
    return {"role": role, "content": content}


def _parse_messages(value: Any) -> list[Message]:
    """Parse a list of messages, or a string as the user's only message."""
    if isinstance(value, str):
        return [make_message("user", value)]
    if not isinstance(value, list):
        raise Unusable("no list of messages")
    return [parse_message(item) for item in value]


def _read_system(row: Row) -> list[Message]:
    """Return a list of the system message in the column `system`, empty if there is none."""
    if not row.get("system"):
        return []
    return [make_message("system", _require_text(row["system"], "system"))]


def _read_instruction(row: Row) -> list[Message]:
    """Return the messages before the answer, from Alpaca's columns `instruction` and `input`.

    LLaMA-Factory's `system` and `history`, a list of [question, answer] pairs, come before them.
    """
    messages = _read_system(row)
    history = _require_list(row.get("history") or [], "history")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unusable("history that is no list of pairs")
        question = _require_text(pair[0], "history")
        answer = _require_text(pair[1], "history")
        messages.append(make_message("user", question))
        messages.append(make_message("assistant", answer))

    instruction = _require_text(row["instruction"], "instruction").strip()
    context = _require_text(row.get("input"), "input").strip()
    question = "\n\n".join(part for part in (instruction, context) if part)
    messages.append(make_message("user", question))
    return messages


# Conversations


def _make_conversation(messages: list[Message], row: Row) -> list[Row]:
    return [{"messages": check_conversation(messages), **_read_tools(row)}]


def _read_messages(row: Row) -> list[Row]:
    return _make_conversation(_parse_messages(row["messages"]), row)


def _read_sharegpt(row: Row) -> list[Row]:
    turns = row["conversations"] if "conversations" in row else row["conversation"]
    return _make_conversation([*_read_system(row), *_parse_messages(turns)], row)


def _read_completion(row: Row) -> list[Row]:
    completion = row["completion"]
    if isinstance(completion, str):
        answer = [make_message("assistant", completion)]
    else:
        answer = _parse_messages(completion)
    return _make_conversation([*_parse_messages(row["prompt"]), *answer], row)


def _read_alpaca(row: Row) -> list[Row]:
    question = _read_instruction(row)
    answer = make_message("assistant", _require_text(row["output"], "output"))
    return _make_conversation([*question, answer], row)


def _read_dolly(row: Row) -> list[Row]:
    question = _read_instruction({"instruction": row["instruction"], "input": row["context"]})
    answer = make_message("assistant", _require_text(row["response"], "response"))
    return _make_conversation([*question, answer], row)


def _read_self_instruct(row: Row) -> list[Row]:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise Unusable("no instances")
    return _read_alpaca({"instruction": row["instruction"], **instances[0]})


def _read_question(row: Row) -> list[Row]:
    question = _require_text(row["question"], "question")
    answer = _require_text(row["answer"], "answer")
    return _make_conversation([make_message("user", question), make_message("assistant", answer)], row)


def _read_exchanges(row: Row) -> list[Row]:
    """Read MT-Bench-101's `history`: a list of `{"user", "bot"}`."""
    messages = []
    for turn in _require_list(row["history"], "history"):
        if not isinstance(turn, dict) or not {"user", "bot"} <= turn.keys():
            raise Unusable("an exchange without user and bot")
        question = _require_text(turn["user"], "user")
        answer = _require_text(turn["bot"], "bot")
        messages += [make_message("user", question), make_message("assistant", answer)]
    return _make_conversation(messages, row)


# OpenAssistant's trees


def build_trees(rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Build trees from OpenAssistant's single messages (`message_id`, `parent_id` ..., as on the Hub).

    Takes and yields pairs of a row's location and the row. A message whose parent is missing is yielded as a tree
    without a first message, which `_read_tree` reports as broken.
    """
    nodes = {}
    for where, row in rows:
        nodes[row["message_id"]] = (where, {**row, "replies": []})

    for where, node in nodes.values():
        parent = node["parent_id"]
        if not parent:
            yield where, {"prompt": node}
        elif parent in nodes:
            nodes[parent][1]["replies"].append(node)
        else:
            yield where, {"prompt": None}


def _read_tree(row: Row) -> list[Row]:
    """Read the best path through an OpenAssistant tree: the reply ranked first at every turn.

    Replies that were deleted or did not pass review are not followed.
    """
    node = _approved_root(row)
    messages = []
    while node is not None:
        messages.append(_node_message(node))
        replies = [reply for reply in node["replies"] if _is_approved(reply)]
        node = min(replies, key=_reply_rank, default=None)
    return _make_conversation(messages, row)


def _read_ranked_tree(row: Row) -> list[Row]:
    """Read the preferences of an OpenAssistant tree: along the best path, the first- and the last-ranked reply."""
    node = _approved_root(row)
    prompt = []
    pairs = []
    while node is not None:
        prompt = [*prompt, _node_message(node)]
        approved = [reply for reply in node["replies"] if _is_approved(reply)]
        replies = sorted(approved, key=_reply_rank)

        ranked = [reply for reply in replies if isinstance(reply.get("rank"), int) and reply["role"] == "assistant"]
        if len(ranked) > 1:
            best = make_message("assistant", ranked[0]["text"])
            worst = make_message("assistant", ranked[-1]["text"])
            pairs += _make_pair(prompt, best, worst)
        node = replies[0] if replies else None

    if not pairs:
        raise LeftOut("a tree without two ranked replies")
    return pairs


def _approved_root(row: Row) -> Row:
    root = row["prompt"]
    if not _is_approved(root):
        raise LeftOut("a tree whose first message was deleted or not approved")
    return root


def _node_message(node: Row) -> Message:
    role: str = node["role"]
    return make_message(_ROLES.get(role, role), node["text"])


def _is_approved(node: Any) -> bool:
    """Return whether a message of a tree may be used. Raises Unusable where it is not a message."""
    if not isinstance(node, dict) or not isinstance(node.get("text"), str) or not isinstance(node.get("role"), str):
        raise Unusable("a broken tree: a message without text or role")
    if not isinstance(node.get("replies"), list):
        raise Unusable("a broken tree: a message without its list of replies")
    return not node.get("deleted") and node.get("review_result", True) is True


def _reply_rank(node: Row) -> float:
    rank = node.get("rank")
    return rank if isinstance(rank, int) else float("inf")


# Preferences


def _read_preference(row: Row) -> list[Row]:
    """Read `prompt`, `chosen` and `rejected` as message lists (TRL's conversational format).

    The prompt is in a column (`prompt`, `conversations`, `messages`, or `instruction` and `input`), or it is the common
    beginning of the chosen and the rejected conversation, which are lists of messages or Anthropic's transcripts.
    """
    prompt = _read_prompt_column(row) or _read_system(row)
    chosen_context, chosen = _split_last_answer(row["chosen"])
    rejected_context, rejected = _split_last_answer(row["rejected"])
    if chosen_context != rejected_context:
        raise Unusable("chosen and rejected answer different prompts")

    # `chosen` may hold the whole conversation, of which the prompt column repeats a part, or only the last turns.
    is_in_prompt = prompt[-len(chosen_context) :] == chosen_context
    if chosen_context and not is_in_prompt:
        system = [turn for turn in prompt[:1] if turn["role"] == "system"]
        if chosen_context[0]["role"] == "system":
            system = []
        prompt = [*system, *chosen_context]
    return _make_pair(prompt, chosen, rejected)


def _make_pair(prompt: list[Message], chosen: Message, rejected: Message) -> list[Row]:
    if not prompt:
        raise Unusable("no prompt")

    has_tool_calls = "tool_calls" in chosen or "tool_calls" in rejected
    if chosen["content"].strip() == rejected["content"].strip() and not has_tool_calls:
        raise Unusable("chosen and rejected are the same")

    for answer in (chosen, rejected):
        check_conversation([*prompt, answer])
    return [{"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}]


def _read_prompt_column(row: Row) -> list[Message]:
    """Return the messages of the column that holds a prompt; an empty list where there is none."""
    for name in ("prompt", "conversations", "messages"):
        value = row.get(name)
        if not value:
            continue
        if isinstance(value, str):
            rendered = _ALPACA_PROMPT.fullmatch(value)
            if rendered:
                return _read_instruction(rendered.groupdict())
        return [*_read_system(row), *_parse_messages(value)]

    if row.get("instruction"):
        return _read_instruction(row)
    return []


def _split_last_answer(value: Any) -> tuple[list[Message], Message]:
    """Split `value` into the messages before the answer, if it holds any, and the answer.

    `value` is a text, one of Anthropic's transcripts, a message or a list of messages.
    """
    if isinstance(value, str) and not _TRANSCRIPT_TURN.match(value):
        return [], make_message("assistant", value)

    if isinstance(value, str):
        _, *turns = _TRANSCRIPT_TURN.split(value)
        messages = []
        for speaker, text in zip(turns[::2], turns[1::2], strict=True):
            messages.append(make_message(_TRANSCRIPT_ROLES[speaker], text.strip()))
    elif isinstance(value, dict):
        messages = [parse_message(value)]
    else:
        messages = _parse_messages(value)

    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("no answer")
    return messages[:-1], messages[-1]


def _read_preference_messages(row: Row) -> list[Row]:
    return _read_preference({"chosen": row["chosen_messages"], "rejected": row["rejected_messages"]})


def _read_votes(row: Row) -> list[Row]:
    """Read PandaLM's two responses and votes of annotators: 0 for a tie, 1 or 2 for the better one."""
    votes = [vote for name, vote in row.items() if name.startswith("annotator")]
    if not votes or any(vote not in (0, 1, 2) for vote in votes):
        raise Unusable("votes other than 0, 1 and 2")

    winner, count = Counter(votes).most_common(1)[0]
    has_majority = 2 * count > len(votes)
    if winner == 0 or not has_majority:
        raise LeftOut("a tie")

    first_text = _require_text(row["response1"], "response1")
    second_text = _require_text(row["response2"], "response2")
    first = make_message("assistant", first_text)
    second = make_message("assistant", second_text)
    prompt = _read_instruction(row)
    if winner == 1:
        return _make_pair(prompt, first, second)
    return _make_pair(prompt, second, first)


# Labelled answers and prompts


def _read_label(row: Row) -> list[Row]:
    """Read a conversation and whether its last answer is a good one (`label`, or LLaMA-Factory's `kto_tag`)."""
    label = row["label"] if "label" in row else row["kto_tag"]
    if not isinstance(label, bool):
        raise Unusable("a label that is neither true nor false")

    reader = find_conversation_reader(set(row))
    if reader is None:
        raise Unusable("a label without a conversation")
    (conversation,) = reader(row)
    *prompt, answer = conversation["messages"]
    return [{"prompt": prompt, "completion": [answer], "label": label}]


def unpair_preference(pair: Row) -> list[Row]:
    """Return the two labelled rows of a preference: the chosen answer is good, the rejected one bad."""
    chosen = {"prompt": pair["prompt"], "completion": pair["chosen"], "label": True}
    rejected = {"prompt": pair["prompt"], "completion": pair["rejected"], "label": False}
    return [chosen, rejected]


def _make_unpairing_reader(preference_reader: RowReader) -> RowReader:
    """Return a reader of labelled answers from a reader of preferences."""

    def read(row: Row) -> list[Row]:
        labelled = []
        for pair in preference_reader(row):
            labelled += unpair_preference(pair)
        return labelled

    return read


def split_answer(messages: list[Message]) -> Row:
    """Split a conversation into `prompt`, the messages before the last answer, and `answer`, its text."""
    *prompt, answer = messages
    return {"prompt": prompt, "answer": answer["content"]}


def _make_prompting_reader(reader: RowReader) -> RowReader:
    """Return a reader of prompts from a reader of conversations or preferences.

    `answer` is the last answer of the conversation, or the chosen one.
    """

    def read(row: Row) -> list[Row]:
        prompts = []
        for example in reader(row):
            messages = example["messages"] if "messages" in example else [*example["prompt"], *example["chosen"]]
            prompt = split_answer(messages)
            if not prompt["prompt"]:
                raise Unusable("no prompt")
            prompts.append(prompt)
        return prompts

    return read


def _read_prompt(row: Row) -> list[Row]:
    """Read a question without an answer: `prompt`, a text or messages that the assistant has not answered yet."""
    prompt = [*_read_system(row), *_parse_messages(row["prompt"])]
    if not prompt or prompt[-1]["role"] != "user":
        raise Unusable("a prompt that does not end with the user")

    # Check the order of the turns, with a stand-in for the answer.
    check_conversation([*prompt, make_message("assistant", "-")])
    return [{"prompt": prompt, "answer": None}]


# The formats by name, the most specific first: a row is read by the first whose columns it has.
CONVERSATION_FORMATS = {
    "messages": RowFormat({"messages"}, _read_messages),
    "sharegpt": RowFormat({"conversations"}, _read_sharegpt),
    "sharegpt_conversation": RowFormat({"conversation"}, _read_sharegpt),
    "completion": RowFormat({"prompt", "completion"}, _read_completion),
    "alpaca": RowFormat({"instruction", "output"}, _read_alpaca),
    "dolly": RowFormat({"instruction", "context", "response"}, _read_dolly),
    "self_instruct": RowFormat({"instruction", "instances"}, _read_self_instruct),
    "question": RowFormat({"question", "answer"}, _read_question),
    "oasst": RowFormat({"message_tree_id", "prompt"}, _read_tree),
    "oasst_messages": RowFormat({"message_id", "parent_id", "role", "text"}, _read_tree),
    "exchanges": RowFormat({"history"}, _read_exchanges),
}
PREFERENCE_FORMATS = {
    "preference_messages": RowFormat({"chosen_messages", "rejected_messages"}, _read_preference_messages),
    "preference": RowFormat({"chosen", "rejected"}, _read_preference),
    "votes": RowFormat({"instruction", "response1", "response2"}, _read_votes),
    "oasst": RowFormat({"message_tree_id", "prompt"}, _read_ranked_tree),
    "oasst_messages": RowFormat({"message_id", "parent_id", "role", "text"}, _read_ranked_tree),
}
_UNPAIRED_FORMATS = {
    name: RowFormat(preference.columns, _make_unpairing_reader(preference.reader))
    for name, preference in PREFERENCE_FORMATS.items()
}
LABELLED_FORMATS = {
    "label": RowFormat({"label"}, _read_label),
    "kto_tag": RowFormat({"kto_tag"}, _read_label),
    **_UNPAIRED_FORMATS,
}
_ANSWERED_FORMATS = {
    name: RowFormat(answered.columns, _make_prompting_reader(answered.reader))
    for name, answered in (PREFERENCE_FORMATS | CONVERSATION_FORMATS).items()
}
PROMPT_FORMATS = {
    **_ANSWERED_FORMATS,
    "prompt": RowFormat({"prompt"}, _read_prompt),
}

# The columns of rows that go through `build_trees` first.
TREE_MESSAGE_COLUMNS = CONVERSATION_FORMATS["oasst_messages"].columns
