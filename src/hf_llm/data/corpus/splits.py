"""Train, validation and test by a document's digest: adding documents moves none of the others."""

from dataclasses import dataclass

import xxhash

NAMES = ("train", "validation", "test")


@dataclass
class Split:
    """Shares of the documents that go to each split."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split: train, validation and test are {shares}; they have to add up to 1")
        if self.train == 0 or self.validation == 0:
            raise ValueError("split: train and validation need a share; a model is measured on what it has not seen")

    def of(self, key: str) -> str:
        """The split of the document, or the group of documents, with this key."""
        place = xxhash.xxh3_64_intdigest(b"split:" + key.encode()) / 2**64
        if place < self.train:
            return "train"
        return "validation" if place < self.train + self.validation or self.test == 0 else "test"
