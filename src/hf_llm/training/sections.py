"""Sections within `pretrain` that need no library to be parsed: the objective, and the ramp-ups of the first steps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hf_llm.core.errors import UserError
from hf_llm.pipeline.model_types import CAUSAL, MASKED, SPAN_CORRUPTION
from hf_llm.tokenization.sentinel_tokens import list_denoising_tokens, require_mask_token, require_sentinels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_llm.data.tokens.corruption import SpanCorruption, TokenMasking

HEADLINES = {
    CAUSAL: "{eval_bits_per_byte:.3f} bits per byte, perplexity {eval_perplexity:.1f} on the validation text",
    MASKED: "masked-token accuracy {eval_masked_accuracy:.1%}, loss {eval_loss:.3f} on the validation text",
    SPAN_CORRUPTION: "span accuracy {eval_target_accuracy:.1%}, loss {eval_loss:.3f} on the validation text",
}


@dataclass
class Objective:
    """The `pretrain.objective` section; what is not given follows from the model."""

    kind: Literal["causal", "masked", "span_corruption"] | None = None
    """What the model predicts: causal, masked or span_corruption; by default what its model_type can."""
    share: float | None = None
    """Share of the tokens that are masked or taken out; by default the paper's."""
    mean_span: float | None = None
    """Mean length of a span in tokens, for span_corruption; by default the paper's."""

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it must be between 0 and 1")
        if self.mean_span is not None and self.mean_span < 1:
            raise ValueError(f"mean_span is {self.mean_span}; it must be at least 1 token")
        if self.kind == CAUSAL and self.share is not None:
            raise ValueError("`share` belongs to masked and span_corruption; a causal model predicts every token")
        if self.kind in (CAUSAL, MASKED) and self.mean_span is not None:
            raise ValueError("`mean_span` belongs to span_corruption; leave it out")

    @property
    def headline(self) -> str:
        """The manifest's headline, a format string over the metrics of an evaluation."""
        return HEADLINES[self.kind]

    def corruption(self, tokenizer: "PreTrainedTokenizerBase", context: int) -> "TokenMasking | SpanCorruption | None":
        """Build the object that masks or removes tokens of windows of `context` tokens; None for a causal model.

        Raises UserError for a tokenizer that has no token to put in their place.
        """
        import numpy as np

        from hf_llm.data.tokens.corruption import SpanCorruption, TokenMasking, regular_token_mask

        if self.kind == CAUSAL:
            return None
        if self.kind == MASKED:
            return TokenMasking(require_mask_token(tokenizer), regular_token_mask(tokenizer), self.share)

        sentinels = np.array(require_sentinels(tokenizer), np.int64)
        corruption = SpanCorruption(
            sentinels, tokenizer.eos_token_id, tokenizer.pad_token_id, self.share, self.mean_span
        )
        corruption.check_sentinels(context)
        return corruption

    def tokens(self, context: int | None) -> list[str]:
        """Return the special tokens that a tokenizer needs for this objective.

        `context` is the length of a window in tokens, None where it is not known yet.
        """
        sentinels = 0
        if self.kind == SPAN_CORRUPTION:
            spans_in_window = round((context or 0) * (self.share or 0) / (self.mean_span or 1))
            sentinels = spans_in_window + 1  # one to spare for rounding
        return list_denoising_tokens(mask=self.kind == MASKED, sentinels=sentinels)


@dataclass
class Rampup:
    """A number of tokens that doubles until it reaches the size that the recipe gives elsewhere."""

    start: int
    """Tokens in the first step."""
    steps: int
    """Steps until the full size is reached."""

    def __post_init__(self) -> None:
        if self.start < 1 or self.steps < 1:
            raise ValueError(f"start and steps must be at least 1; got {self.start} and {self.steps}")

    def initial_divisor(self, full_size: int, key: str) -> int:
        """Return the divisor of `full_size` in the first step.

        Raises UserError, naming the recipe's `key`, unless it is a power of two.
        """
        ratio, remainder = divmod(full_size, self.start)
        is_power_of_two = ratio & (ratio - 1) == 0
        if remainder == 0 and is_power_of_two:
            return ratio

        possible_starts = [str(full_size >> power) for power in range(1, 9) if full_size % (1 << power) == 0]
        remedy = f"{full_size} is odd"
        if possible_starts:
            remedy = f"one of {', '.join(possible_starts)} does"
        raise UserError(f"{key}.start: {self.start} does not become {full_size} by doublings; {remedy}")

    def step_divisor(self, step: int, full_size: int) -> int:
        """Return the divisor of `full_size` in `step`, counted from 0."""
        doublings = (full_size // self.start).bit_length() - 1
        doublings_done = step * doublings // self.steps
        return 1 << max(0, doublings - doublings_done)
