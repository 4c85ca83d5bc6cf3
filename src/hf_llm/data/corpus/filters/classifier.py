"""Keep texts that are more like the user's good ones than like the bad ones: a classifier trained on two folders.

Logistic regression on hashed words and pairs of words, weights by Adagrad. It is as good as scikit-learn's on the same
features (docs/filters.md) and needs nothing but numpy.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import xxhash

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, Verdict
from hf_llm.data.corpus.filters.trained_filter import (
    MIN_HELD_OUT_TEXTS,
    TrainedFilterSettings,
    is_held_out,
    write_model,
)
from hf_llm.data.corpus.filters.word_tokenizer import split_words

FEATURE_BITS = 18
MAX_WORDS = 2000  # of a text, from its start: enough to judge by
MAX_TEXTS = 50_000  # of each kind, the first ones
EPOCHS = 5
LEARNING_RATE = 0.5
MAX_CACHED_WORDS = 1 << 17  # whose hashes are remembered
_MULTIPLIER = numpy.uint64(0x9E3779B97F4A7C15)
_SHIFT = numpy.uint64(64 - FEATURE_BITS)


@dataclass
class Classifier(TrainedFilterSettings):
    """`classifier` of the rules."""

    good: str
    """A file, a folder or a glob pattern: texts of the kind that is wanted."""

    bad: str
    """The same for texts that are not wanted."""

    min_probability: float = 0.5
    """Documents that are good with a smaller probability are dropped."""

    def __post_init__(self) -> None:
        if not 0 < self.min_probability < 1:
            raise ValueError(f"min_probability is {self.min_probability}; it lies between 0 and 1")

    def example_paths(self) -> list[str]:
        return [self.good, self.bad]

    def training_settings(self) -> dict[str, Any]:
        # The probability is compared when a document is judged; another one needs no new model.
        return {key: value for key, value in asdict(self).items() if key != "min_probability"}

    def train_model(self, examples: list[Iterable[str]], model: Path) -> dict:
        good, bad = examples
        return train_classifier(self, good, bad, model)

    def make_filter(self, model: Path) -> "ClassifierFilter":
        return ClassifierFilter(self, model)


class ClassifierFilter(Filter):
    """Drop documents whose probability of being good is below that of the settings."""

    name = "classifier"

    def __init__(self, settings: Classifier, model: Path):
        super().__init__(settings)
        self.weights = numpy.load(model, mmap_mode="r")

    def filter(self, document: Document) -> Verdict:
        probability = good_probability(self.weights, hash_features(document.text))
        min_probability = self.settings.min_probability
        if probability >= min_probability:
            return KEPT
        detail = f"good with a probability of {probability:.2f}, at least {min_probability} is asked for"
        return Verdict("like_the_bad", detail)


def train_classifier(settings: Classifier, good: Iterable[str], bad: Iterable[str], model: Path) -> dict:
    """Train to distinguish the two and write the model. Returns and writes accuracy and AUC on held-out texts.

    Both kinds weigh the same, however many there are of each. Raises UserError where there are too few texts, or where
    the two cannot be distinguished.
    """
    bad_train, bad_held_out = _split_features(bad, "bad", settings.bad)
    good_train, good_held_out = _split_features(good, "good", settings.good)
    weights = _fit_weights(bad_train, good_train)

    bad_scores = numpy.array([good_probability(weights, slots) for slots in bad_held_out])
    good_scores = numpy.array([good_probability(weights, slots) for slots in good_held_out])
    bad_accuracy = (bad_scores < 0.5).mean()
    good_accuracy = (good_scores >= 0.5).mean()
    accuracy = float((bad_accuracy + good_accuracy) / 2)
    auc = float(_compute_auc(bad_scores, good_scores))

    bad_count = len(bad_scores)
    good_count = len(good_scores)
    report = {"accuracy": accuracy, "auc": auc, "good": good_count, "bad": bad_count}

    # Two standard deviations above the AUC of a coin (that of the Mann-Whitney statistic where both kinds are alike).
    deviation = ((bad_count + good_count) / (12 * bad_count * good_count)) ** 0.5
    chance = 0.5 + 2 * deviation
    if auc < chance:
        raise UserError(
            f"rules.classifier: good and bad cannot be told apart: an AUC of {auc:.2f} on held-out texts, and "
            f"{chance:.2f} may be chance. Put clearer examples into {settings.good} and {settings.bad}, or leave the "
            f"rule out"
        )
    write_model(model, weights, report)
    return report


def _split_features(texts: Iterable[str], key: str, path: str) -> tuple[list[numpy.ndarray], list[numpy.ndarray]]:
    """Return the features of the texts to train on, and of those held out. `key` and `path` name them in the recipe."""
    train = []
    held_out = []
    for text in islice(texts, MAX_TEXTS):
        side = held_out if is_held_out(text) else train
        side.append(hash_features(text))

    if len(held_out) < MIN_HELD_OUT_TEXTS:
        raise UserError(
            f"rules.classifier.{key}: {path} gives {len(held_out)} texts to measure by; at least "
            f"{MIN_HELD_OUT_TEXTS}, a fifth of all, are needed. Add texts, or leave the rule out"
        )
    return train, held_out


def hash_features(text: str) -> numpy.ndarray:
    """Return the features that a text has, int64 and each once: words and pairs of words, hashed, and 0 as the bias."""
    words = split_words(text)[:MAX_WORDS]
    keys = numpy.fromiter(map(_word_keys.__getitem__, words), numpy.uint64, len(words))
    pairs = (keys[:-1] ^ (keys[:-1] >> numpy.uint64(31))) * _MULTIPLIER + keys[1:]

    slots = numpy.zeros(1 + len(keys) + len(pairs), numpy.int64)
    slots[1:] = (numpy.concatenate((keys, pairs)) * _MULTIPLIER) >> _SHIFT
    slots.sort()  # numpy.unique takes 30 times as long
    is_new = numpy.append(True, slots[1:] != slots[:-1])
    return slots[is_new]


def good_probability(weights: numpy.ndarray, slots: numpy.ndarray) -> float:
    """Return the probability that a text is good. `weights`: float32 (features,), `slots`: those the text has."""
    return float(_sigmoid(float(weights[slots].sum()) / len(slots) ** 0.5))


class _WordKeys(dict[str, int]):
    """A word to its hash, computed where the word is met first."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_CACHED_WORDS:
            self.clear()
        key = xxhash.xxh3_64_intdigest(word.lower().encode("utf-8"))
        self[word] = key
        return key


_word_keys = _WordKeys()


def _fit_weights(bad: list[numpy.ndarray], good: list[numpy.ndarray]) -> numpy.ndarray:
    """Fit weights, float32 (features,), by Adagrad (https://jmlr.org/papers/v12/duchi11a.html).

    All texts are seen in each epoch, in an order that is shuffled again; both kinds of text have the same weight.
    """
    weights = numpy.zeros(1 << FEATURE_BITS)
    squares = numpy.full(1 << FEATURE_BITS, 1e-6)
    total = len(bad) + len(good)
    examples = []
    for label, texts in ((0.0, bad), (1.0, good)):
        importance = total / (2 * len(texts))
        examples += [(label, importance, slots) for slots in texts]

    random = numpy.random.default_rng(0)
    for _ in range(EPOCHS):
        for index in random.permutation(total):
            label, importance, slots = examples[index]
            scale = len(slots) ** -0.5
            logit = weights[slots].sum() * scale
            gradient = importance * scale * (_sigmoid(logit) - label)

            squares[slots] += gradient**2
            root_squares = numpy.sqrt(squares[slots])
            weights[slots] -= LEARNING_RATE * gradient / root_squares
    return weights.astype(numpy.float32)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + numpy.tanh(0.5 * x))


def _compute_auc(bad: numpy.ndarray, good: numpy.ndarray) -> float:
    """Return the probability that a good text scores higher than a bad one, equal scores counted half."""
    ordered = numpy.sort(bad)
    below = numpy.searchsorted(ordered, good, "left")
    below_or_equal = numpy.searchsorted(ordered, good, "right")
    return (below + below_or_equal).mean() / (2 * len(bad))
