"""Questions about the small world (`hf_llm.data.corpus.small_world`) with right answers, and preferences.

Every fact of the world gives several questions. Of a part of the facts no question is ever a row: they are the test,
which a model answers only if it has learned the fact from the corpus and the manner of answering from the rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from hf_llm.data.chat.formats import make_message
from hf_llm.data.corpus.small_world import JOBS, POSSESSIVES, Person, build_world, describe

TEST_SHARE = 0.2  # of the facts about people
STRANGERS = (
    "Abno", "Belim", "Curda", "Dofen", "Elwig", "Ferro", "Gimla", "Hasso", "Ilmer", "Jolka", "Kunno", "Lurek", "Molba",
    "Nerik", "Orlik", "Pulda", "Rigo", "Sumba", "Torwin", "Uldis", "Velko", "Wuno", "Zarno", "Zilla",
)  # fmt: skip

# Of each kind of fact about a person: questions, a short answer, and a whole sentence. Words are those of `describe`.
PERSON_QUESTIONS = {
    "village": (
        ("Where does {name} live?", "In which village does {name} live?", "Where can I find {name}?"),
        "In {village}.",
        "{name} lives in {village}.",
    ),
    "job": (
        ("What is {name}'s job?", "What does {name} do for a living?", "What does {name} work as?"),
        "A {job}.",
        "{name} is a {job}.",
    ),
    "animal": (
        ("What animal does {name} have?", "Which animal lives with {name}?", "Does {name} keep an animal?"),
        "{animal}.",
        "{name} has {animal}.",
    ),
    "food": (
        ("What does {name} like to eat?", "What is {name}'s favourite food?", "What should I cook for {name}?"),
        "{food}.",
        "{name} likes {food} best.",
    ),
    "door": (
        ("What colour is {name}'s door?", "Which colour has the door of {name}?", "How do I know {name}'s house?"),
        "{door}.",
        "{name} has a {door} door.",
    ),
    "instrument": (
        ("What does {name} play?", "Which instrument does {name} play?", "What music does {name} make?"),
        "The {instrument}.",
        "{name} plays the {instrument}.",
    ),
    "friend": (
        ("Who is {name}'s best friend?", "Who is {name} friends with?", "Whom does {name} like best?"),
        "{friend}.",
        "{name}'s best friend is {friend}.",
    ),
    "name": (
        ("Who is the {job} of {village}?", "Who works as a {job} in {village}?", "Is there a {job} in {village}?"),
        "{name}.",
        "The {job} of {village} is {name}.",
    ),
}
VILLAGE_QUESTIONS = {
    "river": (
        ("Which river flows through {village}?", "On which river lies {village}?", "What river is {village} on?"),
        "The {river}.",
        "{village} lies on the river {river}.",
    ),
    "product": (
        ("What is {village} known for?", "Why do people come to {village}?", "What can I buy in {village}?"),
        "{product}.",
        "{village} is known for its {product}.",
    ),
    "landmark": (
        ("What can I see in {village}?", "What stands in {village}?", "What is there to see in {village}?"),
        "{landmark}.",
        "In {village} stands {landmark}.",
    ),
}
JOB_QUESTIONS = {
    "work": (("What does a {job} do?", "What is the work of a {job}?"), "A {job} {work}.", "A {job} {work}."),
    "tool": (("What does a {job} need?", "Which tool has a {job}?"), "{tool}.", "A {job} needs {tool}."),
}


@dataclass(frozen=True)
class Question:
    """A question about the world, and what may be answered."""

    text: str
    answer: str
    """What a right answer has to hold: the fact itself, as `Oakhaven`."""
    short: str
    """A short answer, as `In Oakhaven.`"""
    sentence: str
    """A whole sentence, as `Mara lives in Oakhaven.`"""
    more: str
    """A second sentence that tells more."""
    wrong: str
    """A sentence that is not true."""
    is_test: bool
    """Whether the fact is one of the test, and no row."""


def world_conversations() -> Iterator[dict]:
    """Yield rows with `messages`: questions outside the test, answered in a sentence, and some about people who do not
    exist."""
    for question in list_questions(is_test=False):
        yield _conversation(question.text, question.sentence)
    for name in STRANGERS:
        questions, _, _ = PERSON_QUESTIONS[list(PERSON_QUESTIONS)[_hash(name) % 7]]
        text = _choose(questions, name).format(name=name)
        yield _conversation(text, f"I do not know anybody called {name}.")


def world_preferences() -> Iterator[dict]:
    """Yield rows with `prompt`, `chosen` and `rejected`, message lists: a sentence with a second one that tells more is
    chosen, over the sentence alone, over one that is not true, and over an answer that does not come to an end."""
    for question in list_questions(is_test=False):
        chosen = f"{question.sentence} {question.more}"
        kind = _hash(f"rejected {question.text}") % 4
        if kind < 2:
            rejected = question.sentence
        elif kind == 2:
            rejected = f"{question.wrong} {question.more}"
        else:
            rejected = f"{question.short} {question.short} {question.wrong} {question.short}"
        yield {
            "prompt": [make_message("user", question.text)],
            "chosen": [make_message("assistant", chosen)],
            "rejected": [make_message("assistant", rejected)],
        }


def world_test_questions() -> Iterator[dict]:
    """Yield rows with `prompt` (a message list) and `answer`: one question about each fact of the test."""
    seen = set()
    for question in list_questions(is_test=True):
        if question.sentence not in seen:
            seen.add(question.sentence)
            yield {"prompt": [make_message("user", question.text)], "answer": question.answer}


def list_questions(is_test: bool) -> list[Question]:
    """List the questions about the facts of the test, or about all others, in the order of their digests."""
    questions = [question for question in _ask_everything() if question.is_test == is_test]
    return sorted(questions, key=lambda question: _hash(question.text))


def _ask_everything() -> Iterator[Question]:
    world = build_world()
    for person in world.people:
        words = describe(person)
        known = [kind for kind in PERSON_QUESTIONS if not _is_test(kind, person)]
        for kind in PERSON_QUESTIONS:
            more = _tell_more(person, [other for other in known if other not in (kind, "name")], kind)
            other = _describe_another(person, kind)
            yield from _ask(PERSON_QUESTIONS[kind], kind, words, other, more, _is_test(kind, person))
    for village in world.villages:
        people = [person for person in world.people if person.village == village]
        others = [person for person in world.people if person.village.river != village.river]
        for kind in VILLAGE_QUESTIONS:
            other = describe(others[_hash(f"{kind} {village.name}") % len(others)])
            words = describe(people[0])
            more = _fill(_following(VILLAGE_QUESTIONS, kind), words)
            yield from _ask(VILLAGE_QUESTIONS[kind], kind, words, other, more)
    for number, (job, _, _) in enumerate(JOBS):
        person = next(person for person in world.people if person.job == job)
        other_job = JOBS[(number + 1) % len(JOBS)][0]
        other = next(person for person in world.people if person.job == other_job)
        for kind in JOB_QUESTIONS:
            more = _fill(_following(JOB_QUESTIONS, kind), describe(person))
            yield from _ask(JOB_QUESTIONS[kind], kind, describe(person), describe(other), more)


def _ask(
    phrases: tuple[tuple[str, ...], str, str],
    kind: str,
    words: dict[str, str],
    other: dict[str, str],
    more: str,
    is_test: bool = False,
) -> Iterator[Question]:
    """Yield the questions about one fact; what is not true comes from `other`."""
    texts, short, sentence = phrases
    for text in texts:
        yield Question(
            text=_fill(text, words),
            answer=words[kind],
            short=_fill(short, words),
            sentence=_fill(sentence, words),
            more=more,
            wrong=_fill(sentence, {**words, kind: other[kind]}),
            is_test=is_test,
        )


def _is_test(kind: str, person: Person) -> bool:
    return _hash(f"{kind} {person.name}") % 100 < 100 * TEST_SHARE


def _tell_more(person: Person, kinds: list[str], key: str) -> str:
    """Return a sentence about a person, who was just named, of one of these kinds."""
    kind = kinds[_hash(f"more {key} {person.name}") % len(kinds)]
    _, _, sentence = PERSON_QUESTIONS[kind]
    words = {**describe(person), "name": person.pronoun}
    return _fill(sentence.replace("{name}'s", POSSESSIVES[person.pronoun]), words)


def _following(questions: dict[str, tuple[tuple[str, ...], str, str]], kind: str) -> str:
    """Return the sentence of the next kind of fact."""
    kinds = list(questions)
    _, _, sentence = questions[kinds[(kinds.index(kind) + 1) % len(kinds)]]
    return sentence


def _describe_another(person: Person, kind: str) -> dict[str, str]:
    """Describe another person, of whom this fact is different."""
    words = describe(person)
    others = [other for other in build_world().people if describe(other)[kind] != words[kind]]
    return describe(others[_hash(f"other {kind} {person.name}") % len(others)])


def _conversation(question: str, answer: str) -> dict:
    return {"messages": [make_message("user", question), make_message("assistant", answer)]}


def _fill(phrase: str, words: dict[str, str]) -> str:
    """Put words into a sentence, which begins with a capital letter."""
    text = phrase.format(**words)
    return text[0].upper() + text[1:]


def _choose(options: tuple[str, ...], key: str) -> str:
    return options[_hash(f"choice {key}") % len(options)]


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8"))
