import json
import os
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import (
    ConversationSource,
    load_conversations,
    load_labelled_completions,
    load_preferences,
    load_prompts,
)
from hf_llm.data.chat.python_docs_qa import (
    IN_TEST_SPLIT,
    SHOWN_QUESTIONS,
    QuestionAnswer,
    documentation_conversations,
)
from hf_llm.data.corpus.python_docs import group_files
from hf_llm.posttraining.kto_trainer import check_labels
from tests.tiny_recipe import ROOT

DATA = os.environ.get("HF_LLM_DATA")
real_data = pytest.mark.skipif(not DATA, reason="real data: set HF_LLM_DATA")


def source(path, **keys):
    return ConversationSource(license="mit", path=str(path), **keys)


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def alpaca(count):
    return [{"instruction": f"Question {i % (count - 10)}", "input": "", "output": f"Answer {i}"} for i in range(count)]


def questions(rows):
    return {row["messages"][0]["content"] for row in rows}


def test_rows_are_divided_by_question_and_the_same_every_time(tmp_path):
    path = write(tmp_path / "a.jsonl", alpaca(200))
    train, held_out, report = load_conversations([source(path)], 0.1, seed=1)
    assert train.column_names == ["messages", "source"]
    counts = {"kept": 200, "dropped": {}, "left_out": {}, "samples": []}
    sides = {"train": len(train), "eval": len(held_out)}
    assert report == {**counts, **sides, "licenses": ["mit"], "sources": [{"source": str(path), **counts}]}
    assert len(train) + len(held_out) == 200 and len(questions(held_out)) == 19
    assert not questions(train) & questions(held_out)
    again = load_conversations([source(path)], 0.1, seed=1)
    assert (again[0][:], again[1][:]) == (train[:], held_out[:])
    assert questions(load_conversations([source(path)], 0.1, seed=2)[1]) != questions(held_out)


def test_halves_of_characters_are_replaced(tmp_path):
    rows = [*alpaca(100), {"instruction": "Half an emoji \ud83d", "input": "", "output": "Yes"}]
    train, held_out, _ = load_conversations([source(write(tmp_path / "a.jsonl", rows))], 0.1, seed=1)
    assert "Half an emoji \ufffd" in questions(train) | questions(held_out)


def test_the_prompt_of_a_preference_keeps_what_only_it_has(tmp_path):
    user, first, second = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "A"), ("user", "More")))
    system = {"role": "system", "content": "Be terse."}
    good, bad = ({"role": "assistant", "content": c} for c in ("Good", "Bad"))
    rows = [
        {"system": "Be terse.", "prompt": "Hi", "chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [system, user, first, second], "chosen": [second, good], "rejected": [second, bad]},
        {"prompt": "Hi", "chosen": [system, user, good], "rejected": [system, user, bad]},
        {"prompt": "Hi", "chosen": [user, first, second, good], "rejected": [user, first, second, bad]},
    ]
    train, _, _ = load_preferences([source(write(tmp_path / "a.jsonl", rows))], 0.0, seed=1)
    prompts = [row["prompt"] for row in train]
    assert sorted(prompts, key=len) == [
        [system, user], [system, user], [user, first, second], [system, user, first, second]
    ]  # fmt: skip


@pytest.mark.parametrize("row", [{"history": 5}, {"history": [["a"]]}])
def test_a_history_that_is_none_is_a_fault_of_the_row(tmp_path, row):
    path = write(tmp_path / "a.jsonl", [*alpaca(100), {"instruction": "q", "input": "", "output": "a", **row}])
    assert len(load_conversations([source(path)], 0.1, seed=1)[2]["dropped"]) == 1


def test_nothing_is_held_out_when_nothing_is_asked_for(tmp_path):
    train, held_out, _ = load_conversations([source(write(tmp_path / "a.jsonl", alpaca(20)))], 0.0, seed=1)
    assert len(train) == 20 and len(held_out) == 0 and held_out.column_names == ["messages", "source"]


def test_take_reads_the_first_rows(tmp_path):
    train, _, _ = load_conversations([source(write(tmp_path / "a.jsonl", alpaca(200)), take=7)], 0.0, seed=1)
    assert [row["messages"][1]["content"] for row in train] == [f"Answer {i}" for i in range(7)]


def test_several_sources_of_several_forms_become_one_data_set(tmp_path):
    write(tmp_path / "a.jsonl", alpaca(50))
    write(tmp_path / "b.jsonl", [{"prompt": f"Other {i}", "completion": "Yes"} for i in range(30)])
    chats = [
        {"conversations": [{"from": "human", "value": f"Chat {i}"}, {"from": "gpt", "value": "Hm"}]} for i in range(9)
    ]
    (tmp_path / "c.json").write_text(json.dumps(chats))
    train, held_out, report = load_conversations([source(tmp_path), source(tmp_path / "c.json", take=5)], 0.1, seed=1)
    assert report["kept"] == len(train) + len(held_out) == 50 + 30 + 9 + 5


def test_a_few_unusable_rows_are_dropped_and_more_are_an_error(tmp_path):
    rows = [*alpaca(199), {"instruction": "a", "input": "", "output": ""}]
    _, _, report = load_conversations([source(write(tmp_path / "a.jsonl", rows))], 0.1, seed=1)
    assert report["kept"] == 199 and report["dropped"] == {"an empty answer": 1}
    path = write(tmp_path / "a.jsonl", [*rows, "{ not JSON", {"instruction": "b"}, "[]"])
    with pytest.raises(UserError, match=r"(?s)4 of 203 rows cannot be used \(1 .*write `allow_drop: 0.02`"):
        load_conversations([source(path)], 0.1, seed=1)
    _, _, report = load_conversations([source(path)], 0.1, seed=1, allow_drop=0.02)
    assert report["dropped"] == {
        "an empty answer": 1, "malformed JSON": 1, "no column 'output'": 1, "no JSON object": 1,
    }  # fmt: skip
    assert any("a.jsonl, line 201: malformed JSON" in sample for sample in report["samples"])


def test_an_unknown_form_shows_its_columns_and_a_row_that_is_understood(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"body": "x", "score": 1}])
    with pytest.raises(UserError, match=r'row 1 has the columns body, score, .*\n.*\{"messages": '):
        load_conversations([source(path)], 0.1, seed=1)
    with pytest.raises(UserError, match=r'row 1 has the columns body, score, .*\n.*"rejected": '):
        load_preferences([source(path)], 0.1, seed=1)


def test_no_rows_or_too_few_are_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no rows"):
        load_conversations([source(write(tmp_path / "a.jsonl", []))], 0.1, seed=1)
    with pytest.raises(UserError, match="too few to hold some out"):
        load_conversations([source(write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}]))], 0.1, seed=1)
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        load_conversations([source("nowhere.jsonl")], 0.1, seed=1)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"path": "a", "installed": "docs"},
        {"path": "a", "documents": "b"},
        {"path": ""},
        {"hub": " "},
        {"documents": ""},
        {"path": "a", "subset": "x"},
        {"path": "a", "take": 0},
        {"path": "a", "share": 0},
        {"path": "a", "format": "sharegtp"},
        {"documents": "a", "format": "alpaca"},
        {"path": ""},
        {"path": " "},
        {"hub": ""},
        {"documents": ""},
    ],
)
def test_a_wrong_source_is_refused(keys):
    with pytest.raises(ValueError):
        ConversationSource(license="mit", **keys)


def check_documentation(least):
    docs = [ConversationSource(license="psf-2.0", installed="docs")]
    train, held_out, report = load_conversations(docs, 0.05, seed=1)
    assert report["kept"] > least and not report["dropped"]
    assert not questions(train) & questions(held_out)
    pairs, held_out_pairs, report = load_preferences(docs, 0.05, seed=1)
    assert report["kept"] > least
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in (*train, *held_out)}
    for row in (*pairs, *held_out_pairs):
        assert row["chosen"][0]["content"] == answers[row["prompt"][0]["content"]] != row["rejected"][0]["content"]
    return answers


def test_the_documentation_gives_conversations_and_preferences(monkeypatch):
    def few_files(item, size):
        return [
            [pair for pair in group if pair[1].startswith(("json/", "email/"))] for group in group_files(item, size)
        ]

    monkeypatch.setattr("hf_llm.data.chat.python_docs_qa.group_files", few_files)
    answers = check_documentation(150)
    assert answers["What is `json.decoder.JSONDecoder`?"] == "Simple JSON <https://json.org> decoder"


def docs_in_splits(tmp_path, **texts):
    """A corpus whose splits hold these texts."""
    (tmp_path / "corpus/data").mkdir(parents=True)
    for split, text in texts.items():
        table = pyarrow.table({"text": [text]})
        pyarrow.parquet.write_table(table, tmp_path / f"corpus/data/{split}-00000-of-00001.parquet")
    return tmp_path / "corpus"


def test_rows_of_the_documentation_follow_the_splits_of_the_corpus(monkeypatch, tmp_path):
    names = ["Return one.", "Return the second of all numbers.", "Return the third of all numbers.", "Say four aloud."]
    sentences = [f"{name} It is made up, and has a number: {number}" for number, name in enumerate(names)]
    pairs = [
        QuestionAnswer(
            f"What is {number % 10} of {number}?", f"{sentences[number % 4]}{number}", f"{sentences[number % 4]}"
        )
        for number in range(40)
    ]
    monkeypatch.setattr("hf_llm.data.chat.python_docs_qa._question_answer_pairs", lambda: pairs)
    corpus = docs_in_splits(
        tmp_path,
        train=" ".join(sentences),
        validation=f"before {sentences[1]} after {sentences[2]}",
        test=sentences[2].replace(" ", "\n    "),
    )
    docs = [ConversationSource(license="psf-2.0", installed="docs")]
    for load in (load_conversations, load_preferences, load_labelled_completions, load_prompts):
        train, held_out, report = load(docs, 0.05, seed=1, corpus=corpus)
        assert report["left_out"] == {IN_TEST_SPLIT: 10} and report["follows_corpus"]
        assert sentences[2] not in json.dumps([*train, *held_out])
        assert sentences[1] not in json.dumps([*train]), "the validation split is held out"
        assert len(held_out) == (20 if load is load_labelled_completions else 10)
        assert set(train.column_names) & {"split", "columns"} == set()

    # More is held out where the split holds less than the share; other sources keep the share of their own.
    chats = source(write(tmp_path / "a.jsonl", alpaca(200)))
    train, held_out, _ = load_conversations([*docs, chats], 0.5, seed=1, corpus=corpus)
    assert [held_out["source"].count(number) for number in (0, 1)] == [15, pytest.approx(100, abs=15)]

    # Without a corpus, or with one of other texts, the share holds.
    for folder in (None, tmp_path / "nowhere", docs_in_splits(tmp_path / "other", train="a", test="b")):
        _, held_out, report = load_conversations(docs, 0.05, seed=1, corpus=folder)
        assert len(held_out) == 2 and "follows_corpus" not in report and not report["left_out"]


def test_questions_that_recipes_show_are_not_rows():
    shown = set()
    for path in (ROOT / "recipes").rglob("*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        shown.update((recipe.get("evaluate") or {}).get("prompts", []))
    assert shown >= SHOWN_QUESTIONS
    asked = {row["messages"][0]["content"] for row in documentation_conversations()}
    assert len(asked) > 3000 and not shown & asked and not SHOWN_QUESTIONS & asked
    assert "What is the module `json.decoder` for?" in asked


@pytest.mark.slow
def test_the_whole_documentation_gives_thousands_of_them():
    check_documentation(3000)


@real_data
@pytest.mark.parametrize(
    ("name", "kept", "unusable"),
    [
        ("alpaca", 5173, 2),
        ("llms_from_scratch/instruction-data.json", 1100, 0),
        ("gsm8k", 1300, 0),
        ("sharegpt", 199, 1),
        ("mtbench101", 500, 0),
        ("oasst", 60, 0),
        ("llamafactory_sft/alpaca_zh_demo.json", 1000, 0),
        ("llamafactory_sft/alpaca_en_demo.json", 999, 0),
        ("llamafactory_sft/identity.json", 91, 0),
        ("llamafactory_sft/v1_sft_demo.jsonl", 500, 0),
        ("llamafactory_sft/glaive_toolcall_en_demo.json", 300, 0),
        ("llamafactory_sft/reason_tool_use_demo_50.jsonl", 50, 0),
    ],
)
def test_real_conversations_are_read(name, kept, unusable):
    train, held_out, report = load_conversations([source(f"{DATA}/{name}")], 0.05, seed=1)
    assert report["kept"] == kept == len(train) + len(held_out)
    assert sum(report["dropped"].values()) == unusable


@real_data
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("hh_rlhf", 1492),
        ("llamafactory_pref/dpo_zh_demo.json", 300),
        ("oasst", 79),
        ("llamafactory_pref/dpo_en_demo.json", 300),
        ("llamafactory_pref/v1_dpo_demo.jsonl", 10),
        ("llms_from_scratch/instruction-data-with-preference.json", 1094),
        ("alpaca_prefs", 1500),
    ],
)
def test_real_preferences_are_read(name, kept):
    train, held_out, report = load_preferences([source(f"{DATA}/{name}")], 0.05, seed=1)
    assert report["kept"] == kept == len(train) + len(held_out)
    row = train[0]
    assert row["prompt"][-1]["role"] == "user"
    assert [message["role"] for side in ("chosen", "rejected") for message in row[side]] == ["assistant", "assistant"]


@real_data
def test_real_votes_become_preferences_without_the_ties():
    train, held_out, report = load_preferences([source(f"{DATA}/pandalm")], 0.05, seed=1, allow_drop=0.1)
    assert report["left_out"] == {"a tie": 43, "file: kind that is not read: .txt": 1}
    assert sum(report["dropped"].values()) == 36
    assert len(train) + len(held_out) == 507 - 43 - 36


@real_data
@pytest.mark.parametrize(("name", "kept"), [("llamafactory_pref/kto_en_demo.json", 300), ("hh_rlhf", 2 * 1492)])
def test_real_labels_are_read_and_made_of_preferences(name, kept):
    train, held_out, report = load_labelled_completions([source(f"{DATA}/{name}")], 0.05, seed=1)
    assert report["kept"] == kept == len(train) + len(held_out)
    assert train.column_names == ["prompt", "completion", "label"]
    assert sum(train["label"]) + sum(held_out["label"]) == kept // 2


def test_shares_repeat_and_sample_the_training_rows_the_same_every_time(tmp_path):
    few = write(tmp_path / "few.jsonl", [{"prompt": f"few {i}", "completion": "x"} for i in range(10)])
    many = write(tmp_path / "many.jsonl", [{"prompt": f"many {i}", "completion": "x"} for i in range(90)])
    sources = [source(few, share=3), source(many, share=1)]
    train, held_out, report = load_conversations(sources, 0.1, seed=1)
    firsts = [row["messages"][0]["content"] for row in train]
    assert len(train) == report["train"] == 90 and len(held_out) == 10
    assert sum(first.startswith("few") for first in firsts) == 68  # 3/4 of 90
    several = [firsts.count(first) for first in set(firsts) if first.startswith("few")]
    assert max(several) - min(several) <= 1  # the same row no oftener than another
    assert max(firsts.count(first) for first in firsts if first.startswith("many")) == 1
    assert not set(firsts) & questions(held_out)
    assert load_conversations(sources, 0.1, seed=1)[0][:] == train[:]
    assert load_conversations(sources, 0.1, seed=2)[0][:] != train[:]


def test_shares_stand_at_all_sources_or_at_none(tmp_path):
    path = write(tmp_path / "a.jsonl", alpaca(20))
    with pytest.raises(UserError, match="has no `share` and others have"):
        load_conversations([source(path, share=1), source(path)], 0.1, seed=1)


def test_documents_are_rows_of_text_for_the_stage_that_takes_them(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(5):
        (tmp_path / "texts" / f"{number}.md").write_text(f"# Page {number}\n\nOur machine has {number} wheels.\n")
    documents = ConversationSource(license="mit", documents=str(tmp_path / "texts"))
    chats = source(write(tmp_path / "a.jsonl", alpaca(20)))
    train, held_out, report = load_conversations([documents, chats], 0.1, seed=1, documents=True)
    rows = [*train, *held_out]
    assert sorted(row["text"] for row in rows if row["source"] == 0)[0].endswith("Our machine has 0 wheels.")
    assert [row["messages"] is None for row in rows] == [row["source"] == 0 for row in rows]
    assert [each["kept"] for each in report["sources"]] == [5, 20]
    for load in (load_conversations, load_preferences, load_labelled_completions):
        with pytest.raises(UserError, match="texts without questions; only the sft section"):
            load([documents], 0.1, seed=1)


@pytest.mark.parametrize("take", [None, 2])
@pytest.mark.parametrize("key", ["path", "documents"])
def test_files_beside_those_that_are_read_are_counted(tmp_path, key, take):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", alpaca(20))
    (folder / "a.txt").write_text("A text of its own.\n")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / ".hidden.jsonl").write_text("{}\n")
    if key == "documents":
        (folder / "a.jsonl").rename(folder / "a.md")
    named = ConversationSource(license="mit", take=take, **{key: str(folder)})
    _, _, report = load_conversations([named], 0.0, seed=1, documents=True)
    assert sum(report["left_out"].values()) == (2 if key == "documents" else 3)
    assert report["left_out"] == report["sources"][0]["left_out"]


@pytest.mark.parametrize(("count", "good"), [(20, 10), (40, 2), (200, 10), (6, 3)])
def test_both_labels_are_held_out_and_trained_on(count, good, tmp_path):
    rows = [{"prompt": f"Q{n}?", "completion": f"a {n}", "label": int(n < good)} for n in range(count)]
    sources = [source(write(tmp_path / "a.jsonl", rows))]
    for seed in range(5):
        train, held_out, _ = load_labelled_completions(sources, 0.05, seed)
        check_labels([train, held_out])
        assert len(held_out) == max(1, round(0.05 * good)) + max(1, round(0.05 * (count - good)))


def test_labels_that_cannot_be_on_both_sides_name_the_remedy(tmp_path):
    rows = [{"prompt": f"Q{n}?", "completion": f"a {n}", "label": n > 0} for n in range(20)]
    *parts, _ = load_labelled_completions([source(write(tmp_path / "a.jsonl", rows))], 0.05, 1)
    with pytest.raises(
        UserError,
        match=r"all 1 answers held out are good, since the 1 bad ones answer questions that "
        r"are to train on; add bad answers to other questions",
    ):
        check_labels(parts)
    *parts, _ = load_labelled_completions([source(write(tmp_path / "b.jsonl", rows[1:]))], 0.05, 1)
    with pytest.raises(UserError, match="answers to train on are good; add rows, some of them bad answers"):
        check_labels(parts)


def test_files_in_an_archive_are_named_in_what_is_dropped(tmp_path):
    with zipfile.ZipFile(tmp_path / "chats.zip", "w") as archive:
        archive.writestr("a/rows.jsonl", json.dumps({"prompt": "a", "completion": "b"}) + "\n{ not JSON\n")
        archive.writestr("b.csv", "question,answer\nc,d\n")
    train, _, report = load_conversations([source(tmp_path / "chats.zip")], 0, 1, allow_drop=0.5)
    assert [row["messages"][0]["content"] for row in train] == ["a", "c"]
    assert report["dropped"] == {"malformed JSON": 1}
    assert report["samples"][0].startswith(f"{tmp_path}/chats.zip/a/rows.jsonl, line 2: malformed JSON")
    train, _, _ = load_conversations([source(tmp_path)], 0, 1, allow_drop=0.5)
    assert len(train) == 2


def test_the_form_can_be_named(tmp_path):
    rows = [{"messages": "none", "instruction": f"q {i}", "output": "a"} for i in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    train, _, _ = load_conversations([source(path, format="alpaca")], 0.1, seed=1)
    assert train[0]["messages"][0]["content"].startswith("q ")
    with pytest.raises(UserError, match="not what format 'dolly' of this stage needs"):
        load_conversations([source(path, format="dolly")], 0.1, seed=1)


def test_single_messages_of_open_assistant_become_conversations(tmp_path):
    rows = []
    for i in range(6):
        question = {"message_id": f"q{i}", "parent_id": None, "text": f"Question {i}", "role": "prompter"}
        answer = {"message_id": f"a{i}", "parent_id": f"q{i}", "text": "Answer", "role": "assistant"}
        rows += [answer, question]
    lost = {"message_id": "l", "parent_id": "nowhere", "text": "?", "role": "assistant"}
    train, held_out, report = load_conversations(
        [source(write(tmp_path / "a.jsonl", [*rows, lost]))], 0.1, seed=1, allow_drop=0.2
    )
    assert len(questions(train) | questions(held_out)) == 6
    assert report["dropped"] == {"a broken tree: a message without text or role": 1}
