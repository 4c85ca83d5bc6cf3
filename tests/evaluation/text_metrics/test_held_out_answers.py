"""Answers to the rows that the SFT stage holds out."""

import json

import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from hf_llm.data.chat.loaders import ConversationSource, load_conversations
from hf_llm.evaluation.benchmark import NotRunError
from hf_llm.evaluation.text_metrics.held_out_answers import load_held_out_answers
from tests.evaluation.evaluated import by_metric, run, save_model

SETTINGS = {"evaluation_share": 0.2, "seed": 3, "allow_drop": 0.01, "corpus": None}


def write_chats(path, count: int = 200, **columns):
    rows = []
    for number in range(count):
        messages = [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"Answer {number}."},
        ]
        rows.append(json.dumps({"messages": messages, **columns}) + "\n")
    path.write_text("".join(rows), encoding="utf-8")
    return ConversationSource(license="mit", path=str(path))


def questions_of(rows):
    return [row["messages"][0]["content"] for row in rows]


def test_the_rows_are_those_that_the_stage_holds_out(tmp_path):
    source = write_chats(tmp_path / "chats.jsonl")
    benchmark = load_held_out_answers([source], is_chat=True, **SETTINGS)
    train, held_out, _ = load_conversations([source], 0.2, 3, 0.01)
    prompts = [document.prompt[0]["content"] for document in benchmark.documents]
    assert prompts == questions_of(held_out) and len(prompts) == 40
    assert not set(prompts) & set(questions_of(train))
    assert benchmark.documents[0].references == [prompts[0].replace("Question", "Answer").replace("?", ".")]


def test_a_part_of_many_rows_is_spaced_over_all_sources(tmp_path):
    sources = [write_chats(tmp_path / f"{name}.jsonl", 100 * (place + 1)) for place, name in enumerate("ab")]
    whole = load_held_out_answers(sources, is_chat=False, **SETTINGS)
    part = load_held_out_answers(sources, is_chat=False, max_rows=9, **SETTINGS)
    ids = [document.id for document in whole.documents]
    places = [ids.index(document.id) for document in part.documents]
    assert len(places) == 9 and places == sorted(set(places)) and places[-1] > 0.8 * len(ids)
    assert part.settings["rows"] == f"9 of {len(ids)} held-out rows of the SFT stage"


def test_a_model_that_knows_the_answers_scores_higher(tmp_path):
    source = write_chats(tmp_path / "chats.jsonl", 30)
    benchmark = load_held_out_answers([source], is_chat=False, max_new_tokens=16, **SETTINGS)
    texts = [f"Question {number}?Answer {number}." for number in range(30)]
    values = []
    for name, trained_on in (("untrained", None), ("trained", texts)):
        model = save_model(tmp_path / name, trained_on, steps=80)
        scores = by_metric(benchmark.summarize(run(benchmark, model, tmp_path / f"{name}-journal")))
        assert list(scores)[:3] == ["bleu", "rougeL", "chrf"]
        values.append(scores["chrf"].value)
    assert values[1] > values[0] + 20


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    sources = [write_chats(tmp_path / "chats.jsonl", 50)]
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Text {number} of some words.", encoding="utf-8")
    sources.append(ConversationSource(license="mit", documents=str(tmp_path / "texts")))
    benchmark = load_held_out_answers(sources, is_chat=True, **SETTINGS)
    left_out = benchmark.settings["left_out"]["documents without a question"]
    assert left_out > 0 and left_out + len(benchmark.documents) == 14  # a fifth of 70
    with pytest.raises(NotRunError, match="no held-out row"):
        load_held_out_answers(sources[1:], is_chat=True, **SETTINGS)


def test_data_that_is_gone_is_named(tmp_path):
    source = write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "chats.jsonl").unlink()
    with pytest.raises(NotRunError, match=r"cannot be read again: .*chats.jsonl"):
        load_held_out_answers([source], is_chat=True, **SETTINGS)
