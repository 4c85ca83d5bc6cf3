"""`corpus.curriculum`: the settings of the order in which the train tokens are shown."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class MixStage:
    """A stage of a curriculum by mix."""

    share: float
    """Share of this stage in the tokens to train on; those of all stages need not add up to 1."""
    shares: dict[str, float]
    """Shares of the sources in this stage's tokens, by name."""

    def __post_init__(self) -> None:
        if self.share <= 0 or not self.shares:
            raise ValueError(f"share is above 0 and shares name a source; got share {self.share}, shares {self.shares}")


@dataclass
class Curriculum:
    """Stages of training text, each shuffled within itself."""

    by: Literal["difficulty", "length", "source", "mix"]
    """Easy to hard, short to long, source after source, or stages with shares of their own."""
    stages: int | list[MixStage] = 4
    """How many stages of equal size (by `source` there is one for each source); by `mix` a list of them."""

    def __post_init__(self) -> None:
        is_list = isinstance(self.stages, list)
        if is_list != (self.by == "mix"):
            raise ValueError(
                "curriculum: stages by mix are a list, as [{share: 0.9, shares: {web: 1}}, {share: 0.1, shares: "
                "{books: 1}}]; by anything else they are a number"
            )

        is_positive = bool(self.stages) if isinstance(self.stages, list) else self.stages >= 1
        if not is_positive:
            raise ValueError(f"curriculum: stages is {self.stages}; it has to be positive")
