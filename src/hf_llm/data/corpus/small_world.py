"""A small world that a grammar writes: people of a valley, where they live, what they do and own. No network, no files.

Its facts are few and never contradict each other, so that a small model can learn all of them in minutes, and questions
about them have right answers (`hf_llm.data.chat.small_world_qa`). Every machine writes the same text. It is ours, under
CC0 (https://creativecommons.org/publicdomain/zero/1.0/).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

T = TypeVar("T")

VERSION = 1  # of the text; another one makes a corpus of it anew
PARTS = 8  # of the documents, each written by one task
DOCUMENTS_PER_PART = 2_500
MIN_SCENES = 3
MAX_SCENES = 7

WOMEN = (
    "Alda", "Brina", "Cora", "Della", "Edda", "Fenna", "Greta", "Hilda", "Ida", "Jonna", "Kaya", "Lotte", "Mara",
    "Nella", "Oda", "Petra", "Quilla", "Runa", "Selma", "Tilda", "Ursa", "Vera", "Wilma", "Yrsa",
)  # fmt: skip
MEN = (
    "Anders", "Bruno", "Casper", "Dorian", "Emil", "Felix", "Gustav", "Henrik", "Ivo", "Jasper", "Kasimir", "Leo",
    "Milo", "Nils", "Otto", "Piet", "Quentin", "Rufus", "Sander", "Tobin", "Ulrich", "Viktor", "Werner", "Yannick",
)  # fmt: skip
VILLAGES = (
    # name, river, what it is known for, what stands in it
    ("Oakhaven", "Linn", "dark bread", "an old clock tower"),
    ("Millbrook", "Linn", "wooden toys", "a water mill"),
    ("Stonebridge", "Torra", "blue glass", "a bridge with seven arches"),
    ("Fernhill", "Torra", "honey", "a round chapel"),
    ("Windmere", "Sell", "kites", "a white windmill"),
    ("Ashford", "Sell", "copper bells", "a tall bell tower"),
    ("Brambleton", "Orm", "blackberry jam", "a garden with a maze"),
    ("Seagate", "Orm", "fishing boats", "a red lighthouse"),
)
JOBS = (
    # the job, what one does in it, what one needs for it
    ("baker", "bakes bread before the sun comes up", "an oven"),
    ("smith", "makes horseshoes and gates", "an anvil"),
    ("weaver", "weaves wool into cloth", "a loom"),
    ("gardener", "grows beans, herbs and roses", "a spade"),
    ("teacher", "teaches the children to read", "a blackboard"),
    ("carpenter", "builds tables and roofs", "a saw"),
)
ANIMALS = (
    "a grey cat", "a black dog", "a white goat", "a brown horse", "a speckled hen", "an old donkey", "a tame raven",
    "a small owl", "a red fox", "a fat goose", "a quiet rabbit", "a green parrot",
)  # fmt: skip
FOODS = (
    "plum cake", "pea soup", "apple pie", "roast carrots", "cheese dumplings", "cherry jam", "mushroom stew",
    "honey bread", "fried fish", "rice pudding", "walnut cookies", "potato pancakes",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "purple", "black", "brown")
POSSESSIVES = {"she": "her", "he": "his"}
INSTRUMENTS = ("flute", "fiddle", "drum", "harp", "trumpet", "accordion", "guitar", "horn")


@dataclass(frozen=True)
class Village:
    """A village, and all that is known of it."""

    name: str
    river: str
    product: str
    """What it is known for, as `dark bread`."""
    landmark: str


@dataclass(frozen=True)
class Person:
    """A person, and all that is known of him or her."""

    name: str
    pronoun: str
    """`she` or `he`."""
    village: Village
    job: str
    """No two people of a village have the same."""
    work: str
    """What one does in the job, as `bakes bread before the sun comes up`."""
    tool: str
    animal: str
    food: str
    """What he or she likes best."""
    door: str
    """The colour of the door."""
    instrument: str
    friend: str
    """The name of the best friend, who lives elsewhere."""


class World(NamedTuple):
    """All people and villages."""

    people: tuple[Person, ...]
    villages: tuple[Village, ...]


@cache
def build_world() -> World:
    """Build the people and villages, the same everywhere."""
    villages = tuple(Village(*facts) for facts in VILLAGES)
    names = [*((name, "she") for name in WOMEN), *((name, "he") for name in MEN)]
    draw = random.Random(1)
    _shuffle(names, draw)

    people = []
    for number, (name, pronoun) in enumerate(names):
        village = villages[number % len(villages)]
        job, work, tool = JOBS[number // len(villages)]
        friend, _ = names[(number + 5) % len(names)]
        person = Person(
            name=name,
            pronoun=pronoun,
            village=village,
            job=job,
            work=work,
            tool=tool,
            animal=_choose(ANIMALS, draw),
            food=_choose(FOODS, draw),
            door=_choose(COLOURS, draw),
            instrument=_choose(INSTRUMENTS, draw),
            friend=friend,
        )
        people.append(person)
    return World(tuple(people), villages)


# How a fact may be told. {name} is a name, or `she` and `he` where the person was just named; {owner} is `Mara's`, or
# `her` and `his`.
HOME = (
    "{name} lives in {village}.", "{name} has a house in {village}.", "{owner} home is in {village}.",
    "{name} was born in {village} and still lives there.", "{village} is {owner} village.",
)  # fmt: skip
WORK = (
    "{name} is a {job}.", "{name} works as a {job}.", "{name} is the {job} of {village}.",
    "The {job} of {village} is {full_name}.", "{name} {work}, as every {job} does.",
)  # fmt: skip
ANIMAL = (
    "{name} has {animal}.", "{name} keeps {animal}.", "{animal} lives in {owner} yard.",
    "{owner} favourite animal is {animal}.", "{name} takes good care of {animal}.",
)  # fmt: skip
FOOD = (
    "{name} likes {food} best.", "{name} loves {food}.", "{owner} favourite food is {food}.",
    "For {full_name} nothing tastes as good as {food}.", "On holidays {name} eats {food}.",
)  # fmt: skip
DOOR = (
    "{owner} door is {door}.", "{name} has a {door} door.", "{name} painted the door {door}.",
    "You can find {full_name} behind the {door} door.", "The colour of {owner} door is {door}.",
)  # fmt: skip
MUSIC = (
    "{name} plays the {instrument}.", "{name} learned to play the {instrument}.",
    "In the evening {name} plays the {instrument}.", "{owner} {instrument} can be heard from far away.",
)  # fmt: skip
FRIEND = (
    "{owner} best friend is {friend}.", "{full_name} and {friend} are best friends.",
    "{name} calls {friend} the best friend in the world.", "{friend} is {owner} best friend.",
)  # fmt: skip
FACTS = (HOME, WORK, ANIMAL, FOOD, DOOR, MUSIC, FRIEND)

VILLAGE_FACTS = (
    ("{village} lies on the river {river}.", "The river {river} flows through {village}."),
    ("{village} is known for its {product}.", "People come to {village} for the {product}."),
    ("In {village} stands {landmark}.", "The village of {village} has {landmark}."),
)
JOB_FACTS = (
    "A {job} {work}.", "What does a {job} do? A {job} {work}.", "A {job} needs {tool}.",
    "Without {tool} nobody can be a {job}.",
)  # fmt: skip

# Stories: one opening, a few scenes, one end. {other} is the friend.
TIMES = (
    "One morning", "On a cold evening", "Last spring", "On the first day of summer", "One rainy day", "Late at night",
    "On market day", "In the middle of winter", "After the harvest", "On a Sunday",
)  # fmt: skip
OPENINGS = (
    "{time} {name}, the {job} of {village}, went down to the river {river}.",
    "{time} {name} opened the {door} door and looked outside.",
    "{time} {other} came to {village} to visit {name}.",
    "{time} there was a feast in {village}, and {name} was there too.",
    "{time} {name} could not find {animal}.",
    "{time} {name} sat in the kitchen in {village} and ate {food}.",
)
SCENES = (
    "{name} carried {thing} under one arm.",
    "{name} met {other}, who lives in {other_village}.",
    '"Have you seen {animal}?" asked {name}.',
    '"I have made {food} for you," said {other}, because {name} likes it best.',
    "Then {name} took the {instrument} and played a song for {other}.",
    "{other} listened, for a good {other_job} is never in a hurry.",
    "They walked along the {river} until they saw {landmark}.",
    "A {job} {work}, so {name} had to get up early.",
    '"Where is {other}?" somebody asked. "At home in {other_village}," said {name}.',
    '"Who plays the {instrument}?" asked a child. "That is {name}," said {other}.',
    "On the way {name} found {thing} and gave it to {other}.",
    "The rain stopped, and the {door} door of {name} shone in the sun.",
    "{name} bought {thing} and two loaves of bread.",
    "{other} had brought {other_animal} along.",
    "They shared {food} and {other_food}.",
    "Nobody in {village} knew where {thing} came from.",
    "{name} laughed and {other} laughed too.",
    '"A {job} without {tool} is no {job}," said {other}.',
    "In the distance one could hear the {other_instrument} of {other}.",
    "{name} talked of the {product} of {village}, and {other} of the {other_product} of {other_village}.",
)
THINGS = (
    "a basket of apples", "an old map", "a silver button", "a broken wheel", "a letter without a name", "a blue scarf",
    "a jar of honey", "three candles", "a rusty key", "a wooden spoon", "a long rope", "a bag of seeds",
)  # fmt: skip
ENDINGS = (
    "In the end {name} went home and was happy.", "That night {name} slept well.",
    "And so the day ended in {village}.", "From then on they met every week.",
    "{other} went back to {other_village}, and {name} waved for a long time.",
    "The next day {name} told everybody in {village} about it.",
)  # fmt: skip


def write_documents(part: int) -> Iterator[str]:
    """Yield the documents of one part of `PARTS`: portraits of people and villages, and stories."""
    draw = random.Random(1_000 + part)
    world = build_world()
    for number in range(DOCUMENTS_PER_PART):
        person = world.people[(part + number) % len(world.people)]
        kind = number % 5
        if kind < 2:
            yield _write_portrait(person, draw)
        elif kind == 2:
            yield _write_village(_choose(world.villages, draw), draw)
        else:
            yield _write_story(person, draw)


def describe(person: Person) -> dict[str, str]:
    """Return all that is known of a person by the names that the sentences use."""
    village = person.village
    return {
        "name": person.name,
        "full_name": person.name,
        "owner": f"{person.name}'s",
        "village": village.name,
        "river": village.river,
        "product": village.product,
        "landmark": village.landmark,
        "job": person.job,
        "work": person.work,
        "tool": person.tool,
        "animal": person.animal,
        "food": person.food,
        "door": person.door,
        "instrument": person.instrument,
        "friend": person.friend,
    }


def find_person(name: str) -> Person:
    """Return the person of this name. Raises KeyError where nobody has it."""
    for person in build_world().people:
        if person.name == name:
            return person
    raise KeyError(name)


def _write_portrait(person: Person, draw: random.Random) -> str:
    """Tell all that is known of a person, in any order."""
    words = describe(person)
    facts = list(FACTS)
    _shuffle(facts, draw)
    sentences = []
    for number, phrases in enumerate(facts):
        phrase = _choose(phrases, draw)
        if number > 0 and draw.random() < 0.5:
            phrase = _fill(phrase, {**words, "name": person.pronoun, "owner": POSSESSIVES[person.pronoun]})
        sentences.append(_fill(phrase, words))
    return " ".join(sentences)


def _write_village(village: Village, draw: random.Random) -> str:
    """Tell all that is known of a village, who lives there, and what they do."""
    people = [person for person in build_world().people if person.village == village]
    _shuffle(people, draw)
    words = describe(people[0])
    facts = list(VILLAGE_FACTS)
    _shuffle(facts, draw)
    sentences = [_fill(_choose(phrases, draw), words) for phrases in facts]
    for person in people[: 2 + int(3 * draw.random())]:
        sentences.append(_fill(_choose(WORK, draw), describe(person)))
        sentences.append(_fill(_choose(JOB_FACTS, draw), describe(person)))
    return " ".join(sentences)


def _write_story(person: Person, draw: random.Random) -> str:
    """Tell what happened to a person and the best friend."""
    words = describe(person)
    friend = find_person(person.friend)
    words |= {f"other_{key}": value for key, value in describe(friend).items()}
    words["other"] = friend.name
    words["time"] = _choose(TIMES, draw)

    scenes = list(SCENES)
    _shuffle(scenes, draw)
    count = MIN_SCENES + int((MAX_SCENES - MIN_SCENES + 1) * draw.random())
    facts = [_choose(_choose(FACTS, draw), draw) for _ in range(2)]
    sentences = []
    for phrase in (_choose(OPENINGS, draw), *facts, *scenes[:count], _choose(ENDINGS, draw)):
        sentences.append(_fill(phrase, {**words, "thing": _choose(THINGS, draw)}))
    return " ".join(sentences)


def _fill(phrase: str, words: dict[str, str]) -> str:
    """Put words into a sentence, which begins with a capital letter."""
    sentence = phrase.format(**words)
    return sentence[0].upper() + sentence[1:]


def _choose(options: Sequence[T], draw: random.Random) -> T:
    """Draw one of the options. Only `random()` itself is the same in every version of Python."""
    return options[int(len(options) * draw.random())]


def _shuffle(items: list, draw: random.Random) -> None:
    """Shuffle a list in place, as `_choose` draws."""
    for last in range(len(items) - 1, 0, -1):
        other = int((last + 1) * draw.random())
        items[last], items[other] = items[other], items[last]
