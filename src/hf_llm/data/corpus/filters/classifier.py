"""Keep texts that are more like the user's good ones than like the bad ones: a classifier learnt from two folders.

Logistic regression on hashed words and pairs of words, weights by Adagrad. It is as good as scikit-learn's on the same
features (docs/filters.md) and needs nothing but numpy.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy
import xxhash
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.filters.trained_filter import FEWEST, Learnt, held_out
from hf_llm.data.corpus.word_tokenizer import words

FEATURE_BITS = 18
WORDS = 2000  # of a text, from its start: enough to judge by
TEXTS = 50_000  # of each kind, the first ones
EPOCHS = 5
LEARNING_RATE = 0.5
KNOWN_WORDS = 1 << 17  # whose hash is remembered
_MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)
_SHIFT = numpy.uint64(64 - FEATURE_BITS)


@dataclass
class Classifier:
    """`classifier` of the rules."""

    good: str = field(metadata={"help": "a file, a folder or a glob pattern: texts of the kind that is wanted"})
    bad: str = field(metadata={"help": "the same for texts that are not wanted"})
    min_probability: float = field(default=0.5, metadata={"help": "of being good; more keeps fewer"})

    def __post_init__(self) -> None:
        if not 0 < self.min_probability < 1:
            raise ValueError(f"min_probability is {self.min_probability}; it lies between 0 and 1")


class ClassifierFilter(BaseFilter):
    """Drop documents that are less probably good than the settings ask."""

    name = "classifier"

    def __init__(self, settings: Classifier, model: Path):
        super().__init__()
        self.settings = settings
        self.weights = numpy.load(model, mmap_mode="r")

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        probability = probability_good(self.weights, features(doc.text))
        if probability >= self.settings.min_probability:
            return True
        doc.metadata["because"] = (
            f"good with a probability of {probability:.2f}, at least {self.settings.min_probability} is asked for"
        )
        return False, "like_the_bad"


def train_classifier(settings: Classifier, good: Iterable[str], bad: Iterable[str], model: Path) -> dict:
    """Learn to tell the two apart and write the model. Returns and writes the accuracy and AUC on texts held out.

    Both kinds count alike, however many there are of each. Raises UserError where there are too few texts, or where
    the two cannot be told apart.
    """
    learn, measure = ([], []), ([], [])
    for label, texts, path in ((0, bad, settings.bad), (1, good, settings.good)):
        for text in islice(texts, TEXTS):
            (measure if held_out(text) else learn)[label].append(features(text))
        if len(measure[label]) < FEWEST:
            raise UserError(
                f"rules.classifier.{'good' if label else 'bad'}: {path} gives {len(measure[label])} texts to measure "
                f"by; at least {FEWEST}, a fifth of all, are needed. Add texts, or leave the rule out"
            )
    weights = _fit(*learn)
    scores = [numpy.array([probability_good(weights, found) for found in kind]) for kind in measure]
    auc = float(_auc(*scores))
    accuracy = float(((scores[0] < 0.5).mean() + (scores[1] >= 0.5).mean()) / 2)
    report = {"accuracy": accuracy, "auc": auc, "good": len(measure[1]), "bad": len(measure[0])}
    chance = 0.5 + 2 * (sum(map(len, scores)) / (12 * len(scores[0]) * len(scores[1]))) ** 0.5
    if auc < chance:
        raise UserError(
            f"rules.classifier: good and bad cannot be told apart: an AUC of {auc:.2f} on texts held out, and "
            f"{chance:.2f} may be chance. Put clearer examples into {settings.good} and {settings.bad}, or leave the "
            f"rule out"
        )
    Learnt(weights, report).write(model)
    return report


def features(text: str) -> numpy.ndarray:
    """The features that a text has, int64 and each once: its words and pairs of words, hashed, and 0 as the bias."""
    found = words(text)[:WORDS]
    keys = numpy.fromiter(map(_word_keys.__getitem__, found), numpy.uint64, len(found))
    pairs = (keys[:-1] ^ (keys[:-1] >> numpy.uint64(31))) * _MULTIPLIER + keys[1:]
    slots = numpy.zeros(1 + len(keys) + len(pairs), numpy.int64)
    slots[1:] = (numpy.concatenate((keys, pairs)) * _MULTIPLIER) >> _SHIFT
    slots.sort()  # numpy.unique takes 30 times as long
    return slots[numpy.append(True, slots[1:] != slots[:-1])]


def probability_good(weights: numpy.ndarray, found: numpy.ndarray) -> float:
    """`weights`: float32 (features,)."""
    return float(_sigmoid(float(weights[found].sum()) / len(found) ** 0.5))


class _WordKeys(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= KNOWN_WORDS:
            self.clear()
        key = self[word] = xxhash.xxh3_64_intdigest(word.lower().encode("utf-8"))
        return key


_word_keys = _WordKeys()


def _fit(bad: list[numpy.ndarray], good: list[numpy.ndarray]) -> numpy.ndarray:
    """Weights, float32 (features,), by Adagrad (https://jmlr.org/papers/v12/duchi11a.html) over all texts in turns."""
    weights = numpy.zeros(1 << FEATURE_BITS)
    squares = numpy.full(1 << FEATURE_BITS, 1e-6)
    total = len(bad) + len(good)
    examples = [(0.0, total / (2 * len(bad)), found) for found in bad]
    examples += [(1.0, total / (2 * len(good)), found) for found in good]
    order = numpy.random.default_rng(0)
    for _ in range(EPOCHS):
        for index in order.permutation(total):
            label, importance, found = examples[index]
            scale = len(found) ** -0.5
            gradient = importance * scale * (_sigmoid(weights[found].sum() * scale) - label)
            squares[found] += gradient**2
            weights[found] -= LEARNING_RATE * gradient / numpy.sqrt(squares[found])
    return weights.astype(numpy.float32)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + numpy.tanh(0.5 * x))


def _auc(bad: numpy.ndarray, good: numpy.ndarray) -> float:
    """The probability that a good text scores higher than a bad one, equal scores counted half."""
    ordered = numpy.sort(bad)
    below = numpy.searchsorted(ordered, good, "left") + numpy.searchsorted(ordered, good, "right")
    return below.mean() / (2 * len(bad))
