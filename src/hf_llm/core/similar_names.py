"""Find the names that a mistyped one may mean, for the hint at the end of an error."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import combinations

MIN_SIMILARITY = 0.65  # below it names have little in common: of three letters one may be wrong, of six two
PART_SIMILARITY = 0.82  # of `batch_size` and per_device_train_batch_size, of `lr` and learning_rate
START_SIMILARITY = 0.02  # is added where the part is the name's beginning
STEM_SIMILARITY = 0.7  # of `eval` and evaluate
MIN_STEM_LETTERS = 3
MAX_DIFFERENCE = 0.05  # in similarity between the best name and others that are named with it
MAX_NAMES = 3
MANY_NAMES = 200  # of more, those that have few letters in common are left out first
ROUGH_SIMILARITY = 0.4


def suggest_names(text: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean a or b?" with the names most similar to `text`; `otherwise` where none is similar."""
    names = find_similar_names(text, known)
    return f"did you mean {' or '.join(names)}?" if names else otherwise


def find_similar_names(text: object, known: Iterable[str]) -> list[str]:
    """Return the names of `known` that `text` may mean, at most MAX_NAMES, the most similar first.

    Names that are as similar stand in the order of `known`.
    """
    names = list(known)
    if len(names) > MANY_NAMES:
        close = set(get_close_matches(str(text), names, MANY_NAMES, cutoff=ROUGH_SIMILARITY))
        names = [name for name in names if name in close]
    scores = {name: measure_similarity(str(text), name) for name in names}
    best = max(scores.values(), default=0.0)
    limit = max(MIN_SIMILARITY, best - MAX_DIFFERENCE)
    similar = [name for name, score in scores.items() if score >= limit]
    return sorted(similar, key=lambda name: -scores[name])[:MAX_NAMES]


def measure_similarity(text: str, name: str) -> float:
    """Return how similar a text is to a known name, from 0 to 1; capitals and the signs between words do not count.

    A text that is similar to some of the name's words (`adamww` to the first of adamw_torch), that is made of their
    initials or that begins like the name counts less than one that is similar to the whole name.
    """
    given_words = _split_words(text)
    words = _split_words(name)
    given = "".join(given_words)
    whole = "".join(words)
    similarity = _compare_letters(given, whole)

    if len(given_words) < len(words):
        for indices in combinations(range(len(words)), len(given_words)):
            part = "".join(words[index] for index in indices)
            if len(part) >= MIN_STEM_LETTERS:
                bonus = START_SIMILARITY if indices == tuple(range(len(given_words))) else 0.0
                similarity = max(similarity, PART_SIMILARITY * _compare_letters(given, part) + bonus)

    initials = "".join(word[0] for word in words)
    if len(given) > 1 and given == initials:
        similarity = max(similarity, PART_SIMILARITY)

    is_stem = given.startswith(whole) or whole.startswith(given)
    if is_stem and min(len(given), len(whole)) >= MIN_STEM_LETTERS:
        similarity = max(similarity, STEM_SIMILARITY)
    return similarity


def _split_words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _compare_letters(one: str, other: str) -> float:
    """Return 1 less the share of letters that have to be changed, added, removed or exchanged with the next one."""
    length = max(len(one), len(other))
    if length == 0:
        return 0.0

    # Row by row: how many edits turn the first letters of `one` into the first ones of `other`.
    before_last: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        current = [row]
        for column, other_letter in enumerate(other, start=1):
            edits = min(last[column] + 1, current[-1] + 1, last[column - 1] + (letter != other_letter))
            is_exchange = row > 1 and column > 1 and letter == other[column - 2] and one[row - 2] == other_letter
            if is_exchange:
                edits = min(edits, before_last[column - 2] + 1)
            current.append(edits)
        before_last, last = last, current
    return 1 - last[-1] / length
