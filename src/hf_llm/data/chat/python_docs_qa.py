"""Make questions, answers and preferences from the documentation on this disk: the data of the quickstart.

Every documented public name of the standard library gives one question; the answer is the first sentence of its
docstring, or the name that a sentence describes. A preference sets the right answer against another name's, a cut off
or a rambling one. All choices follow from a digest of the name: two machines with the same Python have the same data.

The same documentation may be a corpus. Its splits hold here too: no row is made of a sentence of its test split, and
the rows of its validation split are held out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from hf_llm.data.chat.formats import make_message
from hf_llm.data.corpus.corpus_files import list_corpus_files, read_corpus_texts
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


# Our recipes show answers to these, so they are never rows. A test compares them with the recipes.
SHOWN_QUESTIONS = {"What is the module `json` for?", "What is `collections.OrderedDict`?"}

IN_TEST_SPLIT = "a sentence of the corpus's test split"  # the reason in the counts


class QuestionAnswer(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    sentence: str  # the part of either that stands in the documentation


def documentation_conversations(corpus: Path | None = None, left_out: Counter[str] | None = None) -> Iterator[dict]:
    """Yield rows with `messages`: a question about Python's documentation and its answer, in shuffled order.

    They follow the splits of the folder `corpus` if it holds this documentation: rows of its test split are counted in
    `left_out`, and the others have their split (`train`, or `validation`) in `split`.
    """
    for pair, split in _assign_splits(_question_answer_pairs(), corpus, left_out):
        row = {"messages": [make_message("user", pair.question), make_message("assistant", pair.answer)]}
        yield {**row, "split": split} if split else row


def documentation_preferences(corpus: Path | None = None, left_out: Counter[str] | None = None) -> Iterator[dict]:
    """Yield rows with `prompt`, `chosen` and `rejected` as message lists, of the same questions and splits."""
    pairs = list(_assign_splits(_question_answer_pairs(), corpus, left_out))

    # A worse answer is made of others of the same split only.
    pairs_by_split: dict[str | None, list[QuestionAnswer]] = {}
    for pair, split in pairs:
        pairs_by_split.setdefault(split, []).append(pair)
    numbers: Counter[str | None] = Counter()

    for pair, split in pairs:
        same_split = pairs_by_split[split]
        number = numbers[split]
        numbers[split] += 1
        following = [same_split[(number + step) % len(same_split)] for step in (1, 2, 3)]
        rejected = _make_worse_answer(pair.question, pair.answer, [other.answer for other in following])
        if not rejected.strip() or rejected == pair.answer:
            continue

        row = {
            "prompt": [make_message("user", pair.question)],
            "chosen": [make_message("assistant", pair.answer)],
            "rejected": [make_message("assistant", rejected)],
        }
        yield {**row, "split": split} if split else row


def _assign_splits(
    pairs: Iterable[QuestionAnswer], corpus: Path | None, left_out: Counter[str] | None
) -> Iterator[tuple[QuestionAnswer, str | None]]:
    """Yield the pairs with their split of the corpus; None where no split of it holds a sentence of them.

    Those of the test split are counted instead.
    """
    pairs = list(pairs)
    splits: dict[str, str] = {}
    if corpus is not None:
        splits = find_sentence_splits(corpus, {pair.sentence for pair in pairs})

    for pair in pairs:
        split = splits.get(pair.sentence, "train") if splits else None
        if split != "test":
            yield pair, split
        elif left_out is not None:
            left_out[IN_TEST_SPLIT] += 1


def find_sentence_splits(corpus: Path, sentences: set[str]) -> dict[str, str]:
    """Return the split of each sentence that stands in the validation or the test split of a corpus, line ends aside.

    One that stands in both is the test split's. Empty where the folder holds no corpus.
    """
    by_beginning: dict[str, list[str]] = {}
    short_sentences = []
    for sentence in sentences:
        if len(sentence) < MIN_ANSWER_CHARS:
            short_sentences.append(sentence)
        else:
            by_beginning.setdefault(sentence[:MIN_ANSWER_CHARS], []).append(sentence)

    splits = {}
    for split in ("validation", "test"):
        if not list_corpus_files(corpus, split):
            continue
        for text in read_corpus_texts(corpus, split):
            line = " ".join(text.split())
            for sentence in short_sentences:
                if sentence in line:
                    splits[sentence] = split
            # Every position is looked at: a list comprehension takes about 0.3 s for a million.
            starts = [i for i in range(len(line)) if line[i : i + MIN_ANSWER_CHARS] in by_beginning]
            for start in starts:
                for sentence in by_beginning[line[start : start + MIN_ANSWER_CHARS]]:
                    if line.startswith(sentence, start):
                        splits[sentence] = split
    return splits


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


def _question_answer_pairs() -> Iterator[QuestionAnswer]:
    """Yield every question with its answer, ordered by the question's digest."""
    pairs: dict[str, QuestionAnswer] = {}
    for entry in _public_entries():
        pair = _ask_about(entry)
        if MIN_ANSWER_CHARS <= len(pair.answer) <= MAX_ANSWER_CHARS:
            pairs.setdefault(pair.question, pair)

    for topic, text in load_topics().items():
        blocks = text.split("\n\n")[1:]  # the first is the heading
        paragraphs = [" ".join(block.split()) for block in blocks if block[:1].isalpha()]
        if paragraphs and len(paragraphs[0]) <= MAX_TOPIC_CHARS:
            question = f"What does Python's language reference say about `{topic}`?"
            pairs[question] = QuestionAnswer(question, paragraphs[0], paragraphs[0])

    for question in sorted(pairs.keys() - SHOWN_QUESTIONS, key=_hash_text):
        yield pairs[question]


def _ask_about(entry: DocstringEntry) -> QuestionAnswer:
    """Return a question about a documented name and its answer."""
    sentence = first_sentence(entry.docstring)
    if entry.kind == "module":
        return QuestionAnswer(f"What is the module `{entry.name}` for?", sentence, sentence)
    if entry.kind == "class":
        return QuestionAnswer(f"What is `{entry.name}`?", sentence, sentence)

    parent = entry.name.rpartition(".")[0]
    call = f"{parent}.{entry.signature}"
    kind = _hash_text(entry.name) % 3
    if kind == 0:
        return QuestionAnswer(f"What does `{call}` do?", sentence, sentence)
    if kind == 1:
        question = f"Write the first line of the docstring of this function.\n\ndef {entry.signature}:"
        return QuestionAnswer(question, sentence, sentence)
    return QuestionAnswer(f"Which function of `{parent}` is this? {sentence}", f"It is `{call}`.", sentence)


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
