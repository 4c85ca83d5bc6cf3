"""Questions about the small world, whose answers are true, and whose test is not among the rows."""

import pytest
import yaml

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import (
    ConversationSource,
    load_conversations,
    load_labelled_completions,
    load_preferences,
    load_prompts,
    load_questions,
)
from hf_llm.data.chat.small_world_qa import STRANGERS, list_questions, world_conversations, world_test_questions
from hf_llm.data.corpus.small_world import PARTS, build_world, write_documents
from hf_llm.evaluation.questions import holds_answer
from tests.tiny_recipe import ROOT

WORLD = ConversationSource(license="cc0-1.0", synthetic="small_world")
TEST = ConversationSource(license="cc0-1.0", synthetic="small_world_test")


@pytest.fixture(scope="module")
def corpus():
    return "\n".join(document for part in range(PARTS) for document in write_documents(part))


@pytest.mark.parametrize("is_test", [False, True])
def test_answers_are_right_and_the_others_wrong(is_test):
    questions = list_questions(is_test)
    assert questions
    for question in questions:
        assert holds_answer(question.short, question.answer), question
        assert holds_answer(question.sentence, question.answer), question
        assert not holds_answer(question.wrong, question.answer), question
        assert question.text.endswith("?") and question.text[0].isupper()


def test_no_row_says_what_the_test_asks():
    """The test's facts are known from the corpus alone: no answer, and no second sentence, tells one of them."""
    rows = [row["messages"] for row in world_conversations()]
    prompts = {messages[0]["content"] for messages in rows}
    answers = " ".join(messages[1]["content"] for messages in rows)
    questions = list_questions(is_test=True)
    assert len(questions) > 100
    for question in questions:
        assert question.text not in prompts
        assert question.sentence not in answers, question
    preferences, _, _ = load_preferences([WORLD], 0.0, 1)
    told = " ".join(row[side][0]["content"] for row in preferences for side in ("chosen", "rejected"))
    for question in questions:
        assert question.sentence not in told, question


def test_what_the_test_asks_stands_in_the_corpus(corpus):
    for question in list_questions(is_test=True):
        assert question.answer in corpus
        assert question.sentence in corpus or "village" in question.text or "door" in question.sentence, question


def test_people_who_do_not_exist_are_not_known(corpus):
    names = {person.name for person in build_world().people}
    assert not names & set(STRANGERS)
    assert not any(name in corpus for name in STRANGERS)
    unknown = [row for row in world_conversations() if "do not know" in row["messages"][1]["content"]]
    assert len(unknown) == len(STRANGERS)


def test_every_stage_loads_its_rows():
    train, held_out, report = load_conversations([WORLD], 0.1, 1)
    assert len(train) + len(held_out) == report["kept"] > 1000 and held_out
    for load, columns in (
        (load_preferences, ["prompt", "chosen", "rejected"]),
        (load_labelled_completions, ["prompt", "completion", "label"]),
        (load_prompts, ["prompt", "answer"]),
    ):
        rows, _, _ = load([WORLD], 0.1, 1)
        assert rows.column_names == columns
    for row in load_preferences([WORLD], 0.0, 1)[0]:
        assert row["chosen"] != row["rejected"]


@pytest.mark.parametrize("load", [load_conversations, load_preferences, load_labelled_completions, load_prompts])
def test_nothing_is_trained_on_the_test(load):
    with pytest.raises(UserError, match="which no model is trained on"):
        load([TEST], 0.1, 1)


def test_questions_are_those_of_the_test_one_for_each_fact():
    questions = load_questions([TEST])
    assert questions == [
        {"prompt": row["prompt"][0]["content"], "answer": row["answer"]} for row in world_test_questions()
    ]
    assert len({question["prompt"] for question in questions}) == len(questions) > 60


def test_the_questions_that_the_quickstart_shows_are_questions_of_the_test():
    recipe = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())
    of_the_test = {question.text for question in list_questions(is_test=True)}
    assert set(recipe["evaluate"]["prompts"]) <= of_the_test


def test_questions_of_ones_own_need_an_answer(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "How many legs has an ant?", "answer": "six"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "How many legs has an ant?"}\n')
    source = ConversationSource(license="mit", path=str(tmp_path / "a.jsonl"))
    assert load_questions([source]) == [{"prompt": "How many legs has an ant?", "answer": "six"}]
    source = ConversationSource(license="mit", path=str(tmp_path / "b.jsonl"))
    with pytest.raises(UserError, match="has no answer"):
        load_questions([source])
