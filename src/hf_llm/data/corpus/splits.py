"""Train, validation and test by a document's digest: adding documents moves none of the others."""

from dataclasses import dataclass

import xxhash

SPLIT_NAMES = ("train", "validation", "test")


@dataclass
class Split:
    """`corpus.split`: the shares of the documents that go to each split."""

    train: float = 0.8
    """The share that the model is trained on."""

    validation: float = 0.1
    """The share that measures the model during training."""

    test: float = 0.1
    """The share that measures the finished model."""

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split: train, validation and test are {shares}; they have to add up to 1")
        if self.train == 0 or self.validation == 0:
            raise ValueError("split: train and validation need a share; a model is measured on what it has not seen")

    def choose_split(self, key: str) -> str:
        """Return the split of the document, or the group of documents, with this key."""
        position = xxhash.xxh3_64_intdigest(b"split:" + key.encode()) / 2**64
        if position < self.train:
            return "train"
        if position < self.train + self.validation or self.test == 0:
            return "validation"
        return "test"
