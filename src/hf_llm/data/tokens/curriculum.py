"""`corpus.curriculum`: in which order the train tokens are shown."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class MixStage:
    """A stage of a curriculum by mix."""

    share: float = field(metadata={"help": "of the tokens to train on; those of all stages need not add up to 1"})
    shares: dict[str, float] = field(metadata={"help": "of this stage's tokens, by source name"})

    def __post_init__(self) -> None:
        if self.share <= 0 or not self.shares:
            raise ValueError(f"share is above 0 and shares name a source; got share {self.share}, shares {self.shares}")


@dataclass
class Curriculum:
    """Stages of training text, each shuffled in itself."""

    by: Literal["difficulty", "length", "source", "mix"] = field(
        metadata={"help": "easy to hard, short to long, by source, or stages with shares of their own"}
    )
    stages: int | list[MixStage] = field(
        default=4,
        metadata={"help": "how many, of equal size (of `source`, one each); of `mix` a list"},
    )

    def __post_init__(self) -> None:
        if (self.by == "mix") != isinstance(self.stages, list):
            raise ValueError(
                "curriculum: stages by mix are a list, as [{share: 0.9, shares: {web: 1}}, {share: 0.1, shares: "
                "{books: 1}}]; by anything else they are a number"
            )
        if not self.stages or (isinstance(self.stages, int) and self.stages < 1):
            raise ValueError(f"curriculum: stages is {self.stages}; it has to be positive")
