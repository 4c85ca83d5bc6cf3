"""The section of a recipe that says what to show while a model trains: `pretrain.samples`."""

from dataclasses import dataclass, field


@dataclass
class SamplesSection:
    """Which prompts to complete during training, and how often."""

    prompts: list[str] = field(default_factory=list)
    """The prompts to complete; without any there are no samples."""
    every: int = 1
    """Evaluations between two sets of samples."""
    max_new_tokens: int = 48
    """The longest completion, in tokens."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.max_new_tokens < 1:
            raise ValueError("every and max_new_tokens must be at least 1; leave `prompts` out for no samples")
