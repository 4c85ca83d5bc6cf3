"""Make questions, answers and preferences from the documentation on this disk: the data of the quickstart.

Every documented public name of the standard library gives one question; the answer is the first sentence of its
docstring, or the name that a sentence describes. A preference sets the right answer against another name's, a cut off
or a rambling one. All choices follow from a digest of the name: two machines with the same Python have the same data.
"""

from collections.abc import Iterator
from pathlib import Path

import xxhash

from hf_llm.data.chat.formats import make_message
from hf_llm.data.corpus.python_docs import (
    DocstringEntry,
    first_sentence,
    group_files,
    list_docstrings,
    load_topics,
    module_name,
)

MIN_ANSWER_CHARS = 20
MAX_ANSWER_CHARS = 300
MAX_TOPIC_CHARS = 2 * MAX_ANSWER_CHARS  # of an answer from the language reference
_ONE_GROUP_BYTES = 1 << 40  # more than any standard library: its files come in one group


def documentation_conversations() -> Iterator[dict]:
    """Yield rows with `messages`: a question about Python's documentation and its answer, in shuffled order."""
    for question, answer in _question_answer_pairs():
        yield {"messages": [make_message("user", question), make_message("assistant", answer)]}


def documentation_preferences() -> Iterator[dict]:
    """Yield rows with `prompt`, `chosen` and `rejected` as message lists, of the same questions."""
    pairs = list(_question_answer_pairs())
    for number, (question, answer) in enumerate(pairs):
        following = [pairs[(number + step) % len(pairs)] for step in (1, 2, 3)]
        other_answers = [other_answer for _, other_answer in following]
        rejected = _make_worse_answer(question, answer, other_answers)
        if rejected.strip() and rejected != answer:
            yield {
                "prompt": [make_message("user", question)],
                "chosen": [make_message("assistant", answer)],
                "rejected": [make_message("assistant", rejected)],
            }


def _make_worse_answer(question: str, answer: str, other_answers: list[str]) -> str:
    """Return another name's answer, a cut off or a rambling one, as the digest of the question has it."""
    kind = _hash_text(question) % 3
    if kind == 0:
        return other_answers[0]
    if kind == 1:
        words = answer.split()
        return " ".join(words[: len(words) // 2])
    first_sentence_of_answer = answer.split(". ")[0]
    return " ".join([first_sentence_of_answer, *other_answers, answer])


def _question_answer_pairs() -> Iterator[tuple[str, str]]:
    """Yield every question with its answer, ordered by the question's digest."""
    answers = {}
    for entry in _public_entries():
        question, answer = _ask_about(entry)
        if MIN_ANSWER_CHARS <= len(answer) <= MAX_ANSWER_CHARS:
            answers.setdefault(question, answer)

    for topic, text in load_topics().items():
        blocks = text.split("\n\n")[1:]  # the first is the heading
        paragraphs = [" ".join(block.split()) for block in blocks if block[:1].isalpha()]
        if paragraphs and len(paragraphs[0]) <= MAX_TOPIC_CHARS:
            answers[f"What does Python's language reference say about `{topic}`?"] = paragraphs[0]

    for question in sorted(answers, key=_hash_text):
        yield question, answers[question]


def _ask_about(entry: DocstringEntry) -> tuple[str, str]:
    """Return a question about a documented name and its answer."""
    sentence = first_sentence(entry.docstring)
    if entry.kind == "module":
        return f"What is the module `{entry.name}` for?", sentence
    if entry.kind == "class":
        return f"What is `{entry.name}`?", sentence

    parent = entry.name.rpartition(".")[0]
    call = f"{parent}.{entry.signature}"
    kind = _hash_text(entry.name) % 3
    if kind == 0:
        return f"What does `{call}` do?", sentence
    if kind == 1:
        return f"Write the first line of the docstring of this function.\n\ndef {entry.signature}:", sentence
    return f"Which function of `{parent}` is this? {sentence}", f"It is `{call}`."


def _public_entries() -> Iterator[DocstringEntry]:
    """Yield the documented public names of the standard library."""
    for group in group_files("standard_library", _ONE_GROUP_BYTES):
        for path, name in group:
            module = module_name(name)
            if _is_private(module):
                continue
            for entry in list_docstrings(Path(path).read_bytes(), module):
                if not _is_private(entry.name):
                    yield entry


def _is_private(dotted_name: str) -> bool:
    return any(part.startswith("_") for part in dotted_name.split("."))


def _hash_text(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8"))
