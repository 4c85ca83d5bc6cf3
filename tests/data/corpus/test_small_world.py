"""The small world: the same text everywhere, whose facts never contradict each other."""

import re
from collections import Counter

import pytest
import xxhash

from hf_llm.data.chat.small_world_qa import list_questions
from hf_llm.data.corpus import small_world
from hf_llm.data.corpus.small_world import (
    ANIMALS,
    COLOURS,
    FACTS,
    FOODS,
    INSTRUMENTS,
    JOBS,
    PARTS,
    VERSION,
    build_world,
    describe,
    find_person,
    write_documents,
)

# The digest of all documents, by the version that wrote them. Another text wants another version.
DIGESTS = {1: "749475fce0e7dc13"}


@pytest.fixture(scope="module")
def documents():
    return [document for part in range(PARTS) for document in write_documents(part)]


def test_every_machine_writes_the_same_text(documents):
    assert xxhash.xxh3_64_hexdigest("\n".join(documents).encode()) == DIGESTS[VERSION]


def test_nobody_is_there_twice_and_every_friend_lives_elsewhere():
    people = build_world().people
    assert len({person.name for person in people}) == len(people)
    assert max(Counter((person.village.name, person.job) for person in people).values()) == 1
    for person in people:
        assert find_person(person.friend).village != person.village
    with pytest.raises(KeyError):
        find_person("Nobody")


@pytest.mark.parametrize(
    ("pattern", "fact"),
    [
        (r"(\w+) lives in (\w+)\.", "village"),
        (r"(\w+)'s home is in (\w+)\.", "village"),
        (r"(\w+) is an? (\w+)\.", "job"),
        (rf"(\w+) (?:has|keeps) ({'|'.join(ANIMALS)})\.", "animal"),
        (rf"(\w+) (?:loves|eats) ({'|'.join(FOODS)})\.", "food"),
        (rf"(\w+)'s door is ({'|'.join(COLOURS)})\.", "door"),
        (rf"(\w+) plays the ({'|'.join(INSTRUMENTS)})\.", "instrument"),
        (r"(\w+)'s best friend is (\w+)\.", "friend"),
        (r"(\w+) is the (\w+) of \w+\.", "job"),
    ],
)
def test_what_is_told_of_a_person_is_true_wherever_it_is_told(documents, pattern, fact):
    people = {person.name: describe(person) for person in build_world().people}
    told = set()
    for document in documents:
        for name, value in re.findall(pattern, document):
            if name in people:
                assert people[name][fact] == value, document
                told.add(name)
    assert told == set(people)


def test_every_fact_is_told_often_and_in_all_its_ways(documents):
    text = "\n".join(documents)
    for person in build_world().people:
        for phrases in FACTS:
            for phrase in phrases:
                sentence = phrase.format(**describe(person))
                assert text.count(sentence[1:]) >= 5, sentence


def test_sentences_begin_with_a_capital_and_no_slot_is_left_open(documents):
    for document in documents:
        assert "{" not in document and "  " not in document
        for sentence in re.split(r"(?<=[.!?]) ", document):
            assert re.match(r'["A-Z]', sentence), document
    assert len(set(documents)) > 0.999 * len(documents)


def test_what_a_job_is_does_not_depend_on_who_has_it(documents):
    works = {job: work for job, work, _ in JOBS}
    for document in documents:
        for job, work in re.findall(r"[Aa] (\w+) (bakes|makes|weaves|grows|teaches|builds)\b", document):
            assert works[job].startswith(work)


def test_another_part_has_other_text():
    first, second = (list(write_documents(part)) for part in (0, 1))
    assert not set(first[:100]) & set(second[:100])
    assert len(first) == small_world.DOCUMENTS_PER_PART


def test_the_articles_are_those_of_english(documents):
    answers = [f"{question.sentence} {question.more} {question.wrong}" for question in list_questions(is_test=False)]
    text = "\n".join([*documents, *answers])
    assert re.findall(r"\b[Aa] [aeiou]\w*|\b[Aa]n [^aeiou\W]\w*", text) == []
