"""Convert rows of chat and preference data sets, which come in many formats, to message lists.

The format of a row is recognised by its columns, or named by the recipe. A message is `{"role": "system" | "user" |
"assistant" | "tool", "content": str}`; a message of the assistant may have `tool_calls` as OpenAI writes them
(arguments as a JSON string), and `weight: 0` if it is not to be trained on. A conversation has an optional system
message, then user and assistant take turns, and it ends with the assistant. After a tool call come its results.
docs/conversations.md shows a row of every format.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hf_llm.data.chat.messages import (
    LeftOut,
    Message,
    Row,
    Unusable,
    drop_nulls,
    make_message,
    parse_message,
    parse_message_list,
    parse_messages,
    read_flag,
    read_role,
    read_text,
    read_tools,
    require_list,
)

RowReader = Callable[[Row], list[Row]]  # turns a row of a data set into rows with the stage's own columns

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


class NoAnswer(Unusable):
    """Raised for a conversation without an answer, which is still a prompt."""


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
        raise NoAnswer("no answer")

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
        if is_empty and previous == "assistant" and turn is turns[-1]:
            raise NoAnswer("an empty answer")
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


def _tidy_messages(messages: list[Message]) -> list[Message]:
    """Return the messages without system messages that say nothing, and tool calls in a row as one message's calls."""
    tidy: list[Message] = []
    for message in messages:
        if message["role"] == "system" and not message["content"].strip():
            continue
        if tidy and _is_continued(tidy[-1], message):
            tidy[-1] = _join_messages(tidy[-1], message)
        else:
            tidy.append(message)
    return tidy


def _is_continued(message: Message, following: Message) -> bool:
    """Whether `following` goes on with the assistant's `message`: it calls tools, and no text follows a call."""
    if not message["role"] == following["role"] == "assistant" or not following.get("tool_calls"):
        return False
    if message.get("weight") != following.get("weight"):
        return False
    return not message.get("tool_calls") or not following["content"].strip()


def _join_messages(message: Message, following: Message) -> Message:
    texts = [text for text in (message["content"], following["content"]) if text.strip()]
    calls = [*message.get("tool_calls", ()), *following["tool_calls"]]
    return {**message, "content": "\n\n".join(texts), "tool_calls": calls}


def _read_cell(row: Row, name: str) -> str:
    """Return the text in a column; an empty one for null. Raises Unusable for anything else."""
    if row[name] is None:
        return ""
    return read_text(row[name], f"{name} is no text")


def _trim_text(text: str) -> str:
    """Return a text without blank lines before it and white space after it, as our chat template renders it.

    Code keeps its indentation. A single space is none: models with SentencePiece begin their answers with one, and a
    model could tell answers in pairs by it.
    """
    body = text.lstrip()
    indentation = text[: len(text) - len(body)].split("\n")[-1]
    if indentation == " ":
        indentation = ""
    return (indentation + body).rstrip()


def _parse_question(value: Any) -> list[Message]:
    """Parse the messages of a prompt, or a text as the user's only message."""
    if isinstance(value, str) and parse_message_list(value) is None:
        return [make_message("user", value)]
    if isinstance(value, int | float):
        return [make_message("user", read_text(value, "a question that is not text"))]
    return parse_messages(value)


def _parse_answer(row: Row, name: str) -> list[Message]:
    """Parse the column of an answer: a text, a message, or messages."""
    value = row[name]
    if isinstance(value, dict):
        return [parse_message(value)]
    if isinstance(value, list) or (isinstance(value, str) and parse_message_list(value) is not None):
        return parse_messages(value)
    return [make_message("assistant", _read_cell(row, name))]


def _read_system(row: Row) -> list[Message]:
    """Return a list of the system message in the column `system` (`system_prompt`), empty if there is none."""
    for name in ("system", "system_prompt"):
        if row.get(name):
            return [make_message("system", _read_cell(row, name))]
    return []


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Put the system message of a column before the messages, unless they begin with the same."""
    system = _read_system(row)
    return messages if messages[:1] == system else [*system, *messages]


def _read_history(row: Row) -> list[Message]:
    """Return the earlier turns in the column `history`: a list of [question, answer]."""
    messages = []
    for pair in require_list(row.get("history") or [], "history"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unusable("history that is no list of pairs")
        question, answer = (read_text(text or "", "history is no text") for text in pair)
        messages.append(make_message("user", question))
        messages.append(make_message("assistant", answer))
    return messages


def _read_instruction(row: Row) -> list[Message]:
    """Return the messages before the answer, from Alpaca's columns `instruction` and `input`.

    LLaMA-Factory's `system` and `history`, a list of [question, answer] pairs, come before them.
    """
    parts = [_read_cell(row, name) for name in ("instruction", "input") if name in row]
    question = "\n\n".join(_trim_text(part) for part in parts if part.strip())
    return [*_read_system(row), *_read_history(row), make_message("user", question)]


# Conversations


def _make_conversation(messages: list[Message], row: Row) -> list[Row]:
    return [{"messages": check_conversation(_tidy_messages(messages)), **read_tools(row)}]


def _read_messages(row: Row) -> list[Row]:
    return _make_conversation(_with_system(row, parse_messages(row["messages"])), row)


def _read_sharegpt(row: Row) -> list[Row]:
    turns = row["conversations"] if "conversations" in row else row["conversation"]
    return _make_conversation(_with_system(row, parse_messages(turns)), row)


def _make_pair_reader(question_name: str, answer_name: str) -> RowReader:
    """Return a reader of conversations from a column with a question and one with its answer."""

    def read(row: Row) -> list[Row]:
        answer = _parse_answer(row, answer_name)
        return _make_conversation([*_read_question(row, question_name), *answer], row)

    return read


def _read_question(row: Row, name: str) -> list[Message]:
    """Return the messages before the answer, from the column of a question and those that belong to it."""
    if name == "instruction":
        return _read_instruction(row)
    value = row[name]
    if value is None:
        raise Unusable("an empty question")
    return _with_system(row, [*_read_history(row), *_parse_question(value)])


def _read_dolly(row: Row) -> list[Row]:
    question = _read_instruction({"instruction": row["instruction"], "input": row["context"]})
    return _make_conversation([*question, *_parse_answer(row, "response")], row)


def _read_self_instruct(row: Row) -> list[Row]:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise Unusable("no instances")
    first = {"instruction": row["instruction"], **instances[0]}
    return _make_conversation([*_read_instruction(first), *_parse_answer(first, "output")], row)


def _read_exchanges(row: Row) -> list[Row]:
    """Read MT-Bench-101's `history`: a list of `{"user", "bot"}`."""
    messages = []
    for turn in require_list(row["history"], "history"):
        if not isinstance(turn, dict) or not {"user", "bot"} <= turn.keys():
            raise Unusable("an exchange without user and bot")
        question = _read_cell(turn, "user")
        answer = _read_cell(turn, "bot")
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
            pairs += _make_pair(prompt, best, worst, row)
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
    return make_message(read_role(role), node["text"])


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

    The prompt is in a column (`prompt`, `conversations`, `messages`, `instruction` and `input`, or another question),
    or it is the common beginning of the chosen and the rejected conversation, which are lists of messages or
    Anthropic's transcripts.
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
    return _make_pair(prompt, chosen, rejected, row)


def _make_pair(prompt: list[Message], chosen: Message, rejected: Message, row: Row) -> list[Row]:
    prompt = _tidy_messages(prompt)
    if not prompt:
        raise Unusable("no prompt")

    is_same_text = chosen["content"].strip() == rejected["content"].strip()
    if is_same_text and chosen.get("tool_calls") == rejected.get("tool_calls"):
        raise Unusable("chosen and rejected are the same")

    for answer in (chosen, rejected):
        check_conversation([*prompt, answer])
    return [{"prompt": prompt, "chosen": [chosen], "rejected": [rejected], **read_tools(row)}]


def _read_prompt_column(row: Row) -> list[Message]:
    """Return the messages of the column that holds a prompt; an empty list where there is none."""
    name = _find_prompt_column(row)
    if name is None:
        return []
    value = row[name]
    rendered = _ALPACA_PROMPT.fullmatch(value) if isinstance(value, str) else None
    if rendered:
        return _read_instruction(rendered.groupdict())
    return _read_question(row, name)


def _find_prompt_column(row: Row) -> str | None:
    """Return the name of the first column with a prompt in it; None where there is none."""
    return next((name for name in _PROMPT_COLUMNS if row.get(name)), None)


def _split_last_answer(value: Any) -> tuple[list[Message], Message]:
    """Split `value` into the messages before the answer, if it holds any, and the answer.

    `value` is a text, one of Anthropic's transcripts, a message or a list of messages.
    """
    if isinstance(value, str) and _TRANSCRIPT_TURN.match(value):
        _, *turns = _TRANSCRIPT_TURN.split(value)
        messages = []
        for speaker, text in zip(turns[::2], turns[1::2], strict=True):
            messages.append(make_message(_TRANSCRIPT_ROLES[speaker], _trim_text(text.removeprefix(" "))))
    else:
        messages = _tidy_messages(_parse_answer({"answer": value}, "answer"))

    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("no answer")
    return messages[:-1], messages[-1]


def _read_preference_messages(row: Row) -> list[Row]:
    answers = {"chosen": row["chosen_messages"], "rejected": row["rejected_messages"]}
    return _read_preference({**row, **answers})


def _read_stack_exchange(row: Row) -> list[Row]:
    """Read stack_exchange_paired's `question`, and `response_j`, which has more votes than `response_k`."""
    answers = {"chosen": row["response_j"], "rejected": row["response_k"]}
    return _read_preference({"question": row["question"], **answers})


def _read_votes(row: Row) -> list[Row]:
    """Read PandaLM's two responses and votes of annotators: 0 for a tie, 1 or 2 for the better one."""
    votes = [vote for name, vote in row.items() if name.startswith("annotator")]
    if not votes or any(vote not in (0, 1, 2) for vote in votes):
        raise Unusable("votes other than 0, 1 and 2")

    winner, count = Counter(votes).most_common(1)[0]
    has_majority = 2 * count > len(votes)
    if winner == 0 or not has_majority:
        raise LeftOut("a tie")

    first = make_message("assistant", _read_cell(row, "response1"))
    second = make_message("assistant", _read_cell(row, "response2"))
    prompt = _read_instruction(row)
    if winner == 1:
        return _make_pair(prompt, first, second, row)
    return _make_pair(prompt, second, first, row)


# Labelled answers and prompts


def _read_label(row: Row) -> list[Row]:
    """Read a conversation and whether its last answer is a good one (`label`, or LLaMA-Factory's `kto_tag`)."""
    value = row["label"] if "label" in row else row["kto_tag"]
    label = read_flag(value, "a label that is neither true nor false")

    reader = find_conversation_reader({name for name, value in row.items() if value is not None})
    if reader is None:
        raise Unusable("a label without a conversation")
    (conversation,) = reader(row)
    *prompt, answer = conversation.pop("messages")
    return [{"prompt": prompt, "completion": [answer], "label": label, **conversation}]


def unpair_preference(pair: Row) -> list[Row]:
    """Return the two labelled rows of a preference: the chosen answer is good, the rejected one bad."""
    shared = {name: value for name, value in pair.items() if name not in ("chosen", "rejected")}
    chosen = {**shared, "completion": pair["chosen"], "label": True}
    rejected = {**shared, "completion": pair["rejected"], "label": False}
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


def _make_prompting_reader(row_format: RowFormat) -> RowReader:
    """Return a reader of prompts from a format of conversations or preferences.

    `answer` is the last answer of the conversation, or the chosen one; None where a question has not been answered yet.
    """

    def read(row: Row) -> list[Row]:
        try:
            examples = row_format.reader(row)
        except NoAnswer:
            return _make_prompts([_read_bare_prompt(row)], row, row_format.columns)

        prompts = []
        for example in examples:
            messages = example.get("messages") or [*example["prompt"], *example["chosen"]]
            prompt = split_answer(messages)
            if not prompt["prompt"]:
                raise Unusable("no prompt")
            prompts.append(prompt)
        return _make_prompts(prompts, row, row_format.columns)

    return read


def _read_bare_prompt(row: Row) -> Row:
    """Read a question without an answer: a text, or messages that the assistant has not answered yet."""
    prompt = _tidy_messages(_read_prompt_column(row))
    while prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
        prompt = prompt[:-1]  # the place of an answer
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise Unusable("a prompt that does not end with the user")

    # Check the order of the turns, with a stand-in for the answer.
    check_conversation([*prompt, make_message("assistant", "-")])
    return {"prompt": prompt, "answer": None}


def _read_prompt(row: Row) -> list[Row]:
    return _make_prompts([_read_bare_prompt(row)], row, set())


def _make_prompts(prompts: list[Row], row: Row, read_columns: set[str]) -> list[Row]:
    """Add to prompts the tools of the row, and under `columns` those that were not read, for reward functions.

    An `answer` that the row itself has is the one that counts. Columns whose names a trainer uses are left out.
    """
    if row.get("answer") is not None:
        answer = row["answer"]
        is_text = isinstance(answer, str | int | float) and not isinstance(answer, bool)
        for prompt in prompts:
            prompt["answer"] = read_text(answer, "answer is no text") if is_text else prompt["answer"]

    read_columns = {*read_columns, "system", "system_prompt", "history"}
    if not read_columns.intersection(_PROMPT_COLUMNS):
        read_columns.add(_find_prompt_column(row) or "prompt")
    if "instruction" in read_columns:
        read_columns.add("input")
    unread = row.keys() - read_columns - RESERVED_COLUMNS
    columns = {name: _fit_number(drop_nulls(row[name])) for name in row if name in unread}
    added = {"columns": columns} if columns else {}
    return [{**prompt, **read_tools(row), **added} for prompt in prompts]


def _fit_number(value: Any) -> Any:
    """Return a value as it is, but the digits of a whole number that is too large for a column of 64 bits."""
    is_too_large = isinstance(value, int) and abs(value) >= 1 << 63
    return str(value) if is_too_large else value


# The columns that may hold a question, in the order in which they are looked at.
_PROMPT_COLUMNS = (
    "prompt", "messages", "conversations", "conversation", "instruction", "question", "query", "problem", "input",
    "inputs",
)  # fmt: skip

# Columns that reward functions do not get from a row: those of a loaded row, what TRL and PPO pass by these names, and
# pictures.
RESERVED_COLUMNS = {
    "prompt", "prompts", "prompt_ids", "completion", "completions", "completion_ids", "answer", "tools", "functions",
    "columns", "trainer_state", "log_extra", "log_metric", "environment", "environments", "image", "images",
}  # fmt: skip

# A question, its answer: two columns that are a conversation.
_PAIRS = [
    ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"),
    ("instruction", "response"), ("instruction", "answer"), ("instruction", "completion"),
    ("question", "response"), ("question", "output"),
    ("query", "response"), ("query", "answer"),
    ("problem", "solution"), ("problem", "answer"),
    ("input", "output"), ("inputs", "targets"),
    ("user", "assistant"), ("human", "assistant"),
]  # fmt: skip

# The formats by name, the most specific first: a row is read by the first whose columns it has.
CONVERSATION_FORMATS = {
    "messages": RowFormat({"messages"}, _read_messages),
    "sharegpt": RowFormat({"conversations"}, _read_sharegpt),
    "sharegpt_conversation": RowFormat({"conversation"}, _read_sharegpt),
    "completion": RowFormat({"prompt", "completion"}, _make_pair_reader("prompt", "completion")),
    "alpaca": RowFormat({"instruction", "output"}, _make_pair_reader("instruction", "output")),
    "dolly": RowFormat({"instruction", "context", "response"}, _read_dolly),
    "self_instruct": RowFormat({"instruction", "instances"}, _read_self_instruct),
    "question": RowFormat({"question", "answer"}, _make_pair_reader("question", "answer")),
    "stack_exchange": RowFormat({"question", "response_j"}, _make_pair_reader("question", "response_j")),
    "oasst": RowFormat({"message_tree_id", "prompt"}, _read_tree),
    "oasst_messages": RowFormat({"message_id", "parent_id", "role", "text"}, _read_tree),
    **{
        f"{question}_{answer}": RowFormat({question, answer}, _make_pair_reader(question, answer))
        for question, answer in _PAIRS
    },
    "exchanges": RowFormat({"history"}, _read_exchanges),
}
PREFERENCE_FORMATS = {
    "preference_messages": RowFormat({"chosen_messages", "rejected_messages"}, _read_preference_messages),
    "preference": RowFormat({"chosen", "rejected"}, _read_preference),
    "votes": RowFormat({"instruction", "response1", "response2"}, _read_votes),
    "stack_exchange": RowFormat({"question", "response_j", "response_k"}, _read_stack_exchange),
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
    name: RowFormat(answered.columns, _make_prompting_reader(answered))
    for name, answered in (PREFERENCE_FORMATS | CONVERSATION_FORMATS).items()
}
PROMPT_FORMATS = {
    **_ANSWERED_FORMATS,
    **{name: RowFormat({name}, _read_prompt) for name in ("prompt", "instruction", "query", "problem")},
    "bare_question": RowFormat({"question"}, _read_prompt),
}

# The columns of rows that go through `build_trees` first.
TREE_MESSAGE_COLUMNS = CONVERSATION_FORMATS["oasst_messages"].columns
