import json
import os
import re
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.data.chat.loaders import ConversationSource, load_labelled_completions, load_preferences
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import read_rows
from hf_llm.posttraining.rows.sft_dataset import build_sft_rows, format_rows_table
from hf_llm.sft import SftSection
from hf_llm.tokenization.chat_encoding import encode_chat
from tests.byte_tokenizer import byte_tokenizer

DATA = os.environ.get("HF_LLM_DATA")
real_data = pytest.mark.skipif(not DATA, reason="real data: set HF_LLM_DATA")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def byte_ids(text: str) -> list[int]:
    """The ids of plain text by GPT-2's table: 188 bytes that print, in their order, then the other 68."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printing + [byte for byte in range(256) if byte not in printing]
    return [16 + order.index(byte) for byte in text.encode("utf-8")]


def golden(tokenizer, parts: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """The ids and labels of a text given in parts, each learnt or not; `<|im_start|>` and `<|im_end|>` are tokens."""
    ids, labels = [], []
    for text, learnt in parts:
        for piece in re.split(r"(<\|im_(?:start|end)\|>)", text):
            own = [tokenizer.convert_tokens_to_ids(piece)] if piece.startswith("<|im_") else byte_ids(piece)
            ids += own
            labels += own if learnt else [IGNORE_INDEX] * len(own)
    return ids, labels


def user(text):
    return (f"<|im_start|>user\n{text.strip()}<|im_end|>\n", False)


def system(text):
    return (f"<|im_start|>system\n{text.strip()}<|im_end|>\n", False)


def answered(text):
    return [("<|im_start|>assistant\n", False), (f"{text.strip()}<|im_end|>", True), ("\n", False)]


def turns(pairs):
    return [part for question, answer in pairs for part in (user(question), *answered(answer))]


def tools_of(row, before=""):
    listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in json.loads(row["tools"]))
    how = 'A call is written <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
    head = before.strip() + "\n\n" if before else ""
    return system(f"{head}These functions can be called:\n<tools>\n{listed}</tools>\n{how}")


def called(text):
    found = json.loads(text)
    arguments = json.dumps(found["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{found["name"]}", "arguments": {arguments}}}\n</tool_call>'


def expected_glaive(row):
    parts = [tools_of(row)]
    for turn in row["conversations"]:
        kind, text = turn["from"], turn["value"]
        if kind == "human":
            parts.append(user(text))
        elif kind == "observation":
            parts.append((f"<|im_start|>tool\n{text}<|im_end|>\n", False))
        else:
            parts += answered(called(text) if kind == "function_call" else text)
    return parts


def expected_tool_use(row):
    parts = []
    for turn in row["messages"]:
        texts = [part["value"] for part in turn["content"]]
        if turn["role"] == "system":
            parts.append(tools_of(row, texts[0]))
        elif turn["role"] == "user":
            parts.append(user(texts[0]))
        elif turn["role"] == "tool":
            parts.append((f"<|im_start|>tool\n{texts[0]}<|im_end|>\n", False))
        else:
            reasoning, *rest = texts
            calls = [called(text) for text in rest if text.startswith('{"name"')]
            thought = f"<think>\n{reasoning.strip()}\n</think>"
            parts += answered("\n".join([thought, *calls]) if calls else f"{thought}\n\n{rest[0]}")
    return parts


def expected_tree(row):
    node, parts = row["prompt"], []
    while node:
        parts += [user(node["text"])] if node["role"] == "prompter" else answered(node["text"])
        node = min(node["replies"], key=lambda reply: reply.get("rank", 99), default=None)
    return parts[: max(i for i, (_, learnt) in enumerate(parts) if learnt) + 2]


def expected_alpaca(row):
    return turns([("\n\n".join(filter(None, [row["instruction"].strip(), row["input"].strip()])), row["output"])])


# File, the number of a row, and its text in parts, written down here a second time.
CONVERSATIONS = {
    "alpaca/alpaca_5k.json": (1, expected_alpaca),
    "alpaca/seed_tasks.jsonl": (1, lambda row: expected_alpaca({**row, **row["instances"][0]})),
    "llamafactory_sft/alpaca_en_demo.json": (2, expected_alpaca),
    "llamafactory_sft/alpaca_zh_demo.json": (2, expected_alpaca),
    "llamafactory_sft/identity.json": (1, expected_alpaca),
    "llamafactory_sft/glaive_toolcall_en_demo.json": (1, expected_glaive),
    "llamafactory_sft/reason_tool_use_demo_50.jsonl": (3, expected_tool_use),
    "llamafactory_sft/v1_sft_demo.jsonl": (
        1,
        lambda row: turns([tuple(turn["content"][0]["value"] for turn in row["messages"])]),
    ),
    "sharegpt/sharegpt_zh_200.jsonl": (
        1,
        lambda row: turns(
            zip(*([turn["value"] for turn in row["conversations"]][start::2] for start in (0, 1)), strict=True)
        ),
    ),
    "mtbench101/mtbench101_part1.jsonl": (1, lambda row: turns((t["user"], t["bot"]) for t in row["history"])),
    "oasst/en_tree_part1.jsonl": (2, expected_tree),
    "llms_from_scratch/instruction-data.json": (1, expected_alpaca),
    "gsm8k/train_1000.jsonl": (1, lambda row: turns([(row["question"], row["answer"])])),
}


def row_of(name: str, wanted: int) -> dict:
    return next(row for number, row in read_rows(Path(DATA) / name, ReadErrors()) if number == wanted)


def section(*sources, **keys):
    return SftSection(data=list(sources), evaluation_share=0.4, **keys)


def source(path, **keys):
    return ConversationSource(license="mit", path=str(path), **keys)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@real_data
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_row_of_every_real_set_has_the_ids_and_labels_written_down_for_it(name, tokenizer, tmp_path):
    number, expected = CONVERSATIONS[name]
    row = row_of(name, number)
    path = write(tmp_path / "rows.jsonl", [row])
    other = write(tmp_path / "other.jsonl", [{"prompt": "other", "completion": "one"}])
    rows = build_sft_rows(section(source(path), source(other)), 1, tokenizer, None)
    (made,) = [each for side in (rows.train, rows.held_out) for each in side if each["source"] == 0]
    ids, labels = golden(tokenizer, expected(row))
    assert tokenizer.decode(made["input_ids"]) == tokenizer.decode(ids)
    assert (made["input_ids"], made["labels"]) == (ids, labels)


def transcript(text):
    pieces = re.split(r"\n\n(?:Human|Assistant): ?", text)[1:]
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def alpaca_prompt(row):
    found = re.fullmatch(r"### Instruction:\n(.*)\n\n### Input:\n(.*)\n\n### Response:\n", row["prompt"], re.DOTALL)
    return "\n\n".join(filter(None, (part.strip() for part in found.groups())))


PREFERENCES = {
    "hh_rlhf/harmless-base_part1.jsonl.gz": (1, lambda row, side: turns(transcript(row[side]))),
    "llamafactory_pref/dpo_en_demo.json": (
        1,
        lambda row, side: turns([(row["conversations"][0]["value"], row[side]["value"])]),
    ),
    "llamafactory_pref/dpo_zh_demo.json": (
        1,
        lambda row, side: turns([(row["conversations"][0]["value"], row[side]["value"])]),
    ),
    "llamafactory_pref/v1_dpo_demo.jsonl": (
        1,
        lambda row, side: [
            system(row[f"{side}_messages"][0]["content"][0]["value"]),
            *turns([tuple(turn["content"][0]["value"] for turn in row[f"{side}_messages"][1:])]),
        ],
    ),
    "pandalm/testset-v1_part1.json": (  # all three annotators like the second response better
        1,
        lambda row, side: expected_alpaca({**row, "output": row["response2" if side == "chosen" else "response1"]}),
    ),
    "alpaca_prefs/prefs_part1.jsonl": (1, lambda row, side: turns([(alpaca_prompt(row), row[side])])),
    "llms_from_scratch/instruction-data-with-preference.json": (
        1,
        lambda row, side: expected_alpaca({**row, "output": row[side]}),
    ),
}


def last_answer(parts):
    return [(text, learnt and i >= len(parts) - 2) for i, (text, learnt) in enumerate(parts)]


def labelled_ids(tokenizer, prompt, answer):
    """Ids and labels of an answer as TRL's trainers of preferences have them: the last message alone is scored."""
    before, _ = encode_chat(tokenizer, prompt, add_generation_prompt=True)
    ids, mask = encode_chat(tokenizer, [*prompt, *answer])
    assert ids[: len(before)] == before
    scored = [learnt and i >= len(before) for i, learnt in enumerate(mask)]
    return ids, [token if learnt else IGNORE_INDEX for token, learnt in zip(ids, scored, strict=True)]


@real_data
@pytest.mark.parametrize("name", PREFERENCES)
def test_a_row_of_every_real_preference_set_has_the_ids_written_down_for_it(name, tokenizer, tmp_path):
    number, expected = PREFERENCES[name]
    row = row_of(name, number)
    path = write(tmp_path / "rows.jsonl", [row])
    made, _, _ = load_preferences([source(path)], 0.0, seed=1)
    for side in ("chosen", "rejected"):
        found = labelled_ids(tokenizer, made[0]["prompt"], made[0][side])
        assert found == golden(tokenizer, last_answer(expected(row, side)))


@real_data
def test_a_labelled_row_has_the_ids_written_down_for_it(tokenizer, tmp_path):
    row = row_of("llamafactory_pref/kto_en_demo.json", 1)
    made, _, _ = load_labelled_completions([source(write(tmp_path / "rows.jsonl", [row]))], 0.0, seed=1)
    texts = [message["content"] for message in row["messages"]]
    parts = last_answer(turns(zip(texts[::2], texts[1::2], strict=True)))
    assert labelled_ids(tokenizer, made[0]["prompt"], made[0]["completion"]) == golden(tokenizer, parts)
    assert made[0]["label"] is row["label"]


def chats(count, answer="Yes."):
    return [{"prompt": f"Question {i}?", "completion": answer} for i in range(count)]


def long_chats() -> list[dict]:
    """A conversation of two exchanges that does not fit, one without a whole answer, and one without room for any."""
    answers = [{"role": "assistant", "content": text} for text in ("Yes.", "x" * 300)]
    questions = [{"role": "user", "content": text} for text in ("First?", "Long?")]
    two_exchanges = {"messages": [questions[0], answers[0], questions[1], answers[1]]}
    return [
        two_exchanges,
        {"messages": [questions[1], answers[1]]},
        {"messages": [{"role": "user", "content": "y" * 300}, answers[0]]},
    ]


def short_chats(count: int) -> list[dict]:
    answer = {"role": "assistant", "content": "Yes."}
    return [{"messages": [{"role": "user", "content": f"Question {i}?"}, answer]} for i in range(count)]


def test_what_is_too_long_ends_with_its_last_whole_answer_or_is_dropped_and_counted(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", [*short_chats(10), *long_chats()])
    encoded = build_sft_rows(section(source(path)), 1, tokenizer, 100)
    report = encoded.report
    assert (report["kept"], report["truncated"], report["too_long"], report["dropped"]) == (11, 1, 2, {})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in [*encoded.train, *encoded.held_out]:
        assert [label for label in row["labels"] if label != -100][-1] == end
    lines = format_rows_table(report).splitlines()
    assert lines[1].split() == ["11", "1", "2", "0", "0", str(path)]


def test_truncated_rows_are_cut_at_the_context_and_counted(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", [*short_chats(10), *long_chats()])
    encoded = build_sft_rows(section(source(path), too_long="truncate"), 1, tokenizer, 100)
    report = encoded.report
    assert (report["kept"], report["truncated"], report["too_long"]) == (12, 2, 1)
    assert sorted(len(row["input_ids"]) for row in [*encoded.train, *encoded.held_out])[-2:] == [100, 100]


def test_answers_that_all_lose_their_end_are_refused(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", chats(10, "x" * 300))
    with pytest.raises(
        UserError, match=r"10 conversations have no answer that ends within 100 tokens.*too_long: trunc"
    ):
        build_sft_rows(section(source(path)), 1, tokenizer, 100)
    with pytest.raises(UserError, match=r"all 10 conversations are cut at 100 tokens before an answer ends"):
        build_sft_rows(section(source(path), too_long="truncate"), 1, tokenizer, 100)


def test_keep_end_cuts_the_start_so_that_the_end_of_turn_stays(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", [*chats(5, "x" * 300)])
    training = {"truncation_mode": "keep_end"}
    rows = build_sft_rows(section(source(path), training=training), 1, tokenizer, 100)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(row["labels"][-2] == end and len(row["labels"]) == 100 for row in rows.train)


def test_rows_repeated_for_their_share_are_counted_once(tokenizer, tmp_path):
    few = write(tmp_path / "few.jsonl", [{"prompt": f"{i}", "completion": "x" * 300} for i in range(4)])
    many = write(tmp_path / "many.jsonl", chats(60))
    both = section(source(few, share=1), source(many, share=1), too_long="truncate")
    rows = build_sft_rows(both, 1, tokenizer, 100)
    assert [(each["kept"], each["truncated"]) for each in rows.report["sources"]] == [(4, 4), (60, 0)]
    assert rows.train["source"].count(0) > 10


def test_a_document_is_learnt_whole_in_windows_and_ends_with_the_end_of_text(tokenizer, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} " + "words <|im_end|> " * 12)
    documents = ConversationSource(license="mit", documents=str(tmp_path / "texts"))
    rows = build_sft_rows(section(documents), 1, tokenizer, 64)
    made = [row for side in (rows.train, rows.held_out) for row in side]
    assert all(row["input_ids"] == row["labels"] and len(row["labels"]) <= 64 for row in made)
    ids = [token for row in made for token in row["input_ids"]]
    assert ids.count(tokenizer.eos_token_id) == 4
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert len(made) == 4 * -(-len(ids) // 4 // 64)


def test_nothing_to_learn_is_dropped(tokenizer, tmp_path):
    answer = {"role": "assistant", "content": "a", "weight": 0}
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": f"q{i}"}, answer]} for i in range(3)])
    with pytest.raises(UserError, match=r"3 of 3 rows cannot be used \(3 no answer that is to be learnt\)"):
        build_sft_rows(section(source(path), allow_drop=0.5), 1, tokenizer, 100)


def test_an_end_of_turn_that_is_not_learnt_is_refused(tokenizer, tmp_path):
    other = byte_tokenizer()
    other.chat_template = other.chat_template.replace(
        "{{- said(message) }}{%- endgeneration %}", "{{- message.content }}{%- endgeneration %}{{- '<|im_end|>' }}"
    )
    path = write(tmp_path / "a.jsonl", chats(5))
    with pytest.raises(UserError, match=r"the end-of-turn token of .* is not supervised"):
        build_sft_rows(section(source(path)), 1, other, 100)


def test_a_weight_that_the_template_does_not_read_is_refused(tokenizer, tmp_path):
    answer = {"role": "assistant", "content": "x"}
    ask = [[{"role": "user", "content": f"q{i}"}] for i in range(9)]
    rows = [{"messages": [*question, {**answer, "weight": 0}, *question, answer]} for question in ask]
    path = write(tmp_path / "a.jsonl", rows)
    build_sft_rows(section(source(path)), 1, tokenizer, 100)
    other = byte_tokenizer()
    other.chat_template = other.chat_template.replace(" and message.weight != 0", "")
    with pytest.raises(UserError, match="weight: 0`, which the chat template does not read"):
        build_sft_rows(section(source(path)), 1, other, 100)


def test_tools_that_the_template_does_not_render_are_dropped_and_counted(tokenizer, tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = [{"role": "tool", "content": "3"}, {"role": "assistant", "content": "x"}]
    rows = [{"messages": [{"role": "user", "content": f"q{number}"}, asked, *answer]} for number in range(3)]
    rows += [{"prompt": f"p{number}", "completion": "x", "tools": [{"name": "f"}]} for number in range(4)]
    path = write(tmp_path / "a.jsonl", [*rows, *chats(5)])
    assert build_sft_rows(section(source(path)), 1, tokenizer, 400).report["kept"] == 12

    other = byte_tokenizer()
    other.chat_template = (
        "{%- for message in messages %}{{- message.role + ':' }}{%- generation %}{{- message.content + '<|im_end|>' }}"
        "{%- endgeneration %}{%- endfor %}"
    )
    rows = build_sft_rows(section(source(path), allow_drop=0.9), 1, other, 400)
    assert rows.report["dropped"] == {
        "the chat template does not render tool calls": 3, "the chat template does not render tools": 4,
    }  # fmt: skip


def test_a_chat_the_template_refuses_is_dropped_with_its_words(tokenizer, tmp_path):
    other = byte_tokenizer()
    other.chat_template = (
        "{%- if messages[0].role == 'system' %}{{ raise_exception('no system messages here') }}{%- endif %}"
        + other.chat_template
    )
    refused = {"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]}
    path = write(tmp_path / "a.jsonl", [refused])
    rows = build_sft_rows(
        section(source(path), source(write(tmp_path / "b.jsonl", chats(5))), allow_drop=0.99), 1, tokenizer, 100
    )
    assert rows.report["kept"] == 6
    with pytest.raises(UserError, match=r"the chat template refuses it \(no system messages here"):
        build_sft_rows(section(source(path), source(tmp_path / "b.jsonl"), allow_drop=0.99), 1, other, 100)
