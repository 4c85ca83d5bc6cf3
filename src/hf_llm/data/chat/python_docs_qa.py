"""Questions, answers and preferences made from the documentation on this disk: the data of the quickstart.

Every documented public name of the standard library gives one question; the answer is the first sentence of its
docstring, or the name that a sentence describes. A preference sets the right answer against another name's, a cut off
or a rambling one. All choices follow from a digest of the name: two machines with the same Python have the same data.
"""

from collections.abc import Iterator
from pathlib import Path

import xxhash

from hf_llm.data.chat.formats import Message
from hf_llm.data.corpus.python_docs import Entry, entries, file_groups, first_sentence, module_name, topics

ANSWER_CHARS = (20, 300)


def documentation_conversations() -> Iterator[dict]:
    """Rows with `messages`: a question about Python's documentation and its answer, in an order without meaning."""
    for question, answer in _pairs():
        yield {"messages": [_said("user", question), _said("assistant", answer)]}


def documentation_preferences() -> Iterator[dict]:
    """Rows with `prompt`, `chosen` and `rejected` as message lists, of the same questions."""
    pairs = list(_pairs())
    for number, (question, answer) in enumerate(pairs):
        others = [pairs[(number + step) % len(pairs)][1] for step in (1, 2, 3)]
        words = answer.split()
        rejected = (
            others[0],
            " ".join(words[: len(words) // 2]),
            " ".join([answer.split(". ")[0], *others, answer]),
        )[_digest(question) % 3]
        if rejected.strip() and rejected != answer:
            yield {
                "prompt": [_said("user", question)],
                "chosen": [_said("assistant", answer)],
                "rejected": [_said("assistant", rejected)],
            }


def _pairs() -> Iterator[tuple[str, str]]:
    pairs = {}
    for entry in _public_entries():
        question, answer = _pair(entry)
        if ANSWER_CHARS[0] <= len(answer) <= ANSWER_CHARS[1]:
            pairs.setdefault(question, answer)
    for topic, text in topics().items():
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n")[1:] if p[:1].isalpha()]
        if paragraphs and len(paragraphs[0]) <= 2 * ANSWER_CHARS[1]:
            pairs[f"What does Python's language reference say about `{topic}`?"] = paragraphs[0]
    yield from sorted(pairs.items(), key=lambda pair: _digest(pair[0]))


def _pair(entry: Entry) -> tuple[str, str]:
    sentence, parent = first_sentence(entry.docstring), entry.name.rpartition(".")[0]
    if entry.kind == "module":
        return f"What is the module `{entry.name}` for?", sentence
    if entry.kind == "class":
        return f"What is `{entry.name}`?", sentence
    call = f"{parent}.{entry.signature}"
    return (
        (f"What does `{call}` do?", sentence),
        (f"Write the first line of the docstring of this function.\n\ndef {entry.signature}:", sentence),
        (f"Which function of `{parent}` is this? {sentence}", f"It is `{call}`."),
    )[_digest(entry.name) % 3]


def _public_entries() -> Iterator[Entry]:
    for group in file_groups("standard_library", 1 << 40):
        for path, name in group:
            if not any(part.startswith("_") for part in module_name(name).split(".")):
                for entry in entries(Path(path).read_bytes(), module_name(name)):
                    if not any(part.startswith("_") for part in entry.name.split(".")):
                        yield entry


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8"))
