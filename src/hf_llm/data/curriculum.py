"""`corpus.curriculum`: in which order the train tokens are shown."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Curriculum:
    """Stages of training text, each shuffled in itself."""

    by: Literal["difficulty", "length", "source"] = field(metadata={"help": "easy to hard, short to long, by source"})
    stages: int = field(default=4, metadata={"help": "into how many stages of equal size; of `source`, one each"})

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"curriculum: stages is {self.stages}; it has to be positive")
