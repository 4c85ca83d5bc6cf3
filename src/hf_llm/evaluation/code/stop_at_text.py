"""End a completion where it holds one of some strings, so that a model does not write on to the limit."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

TOKENS_BETWEEN_CHECKS = 8  # decoding costs more than a few tokens too many, which are cut off


class StopAtText(StoppingCriteria):
    """Ends each row of one batch soon after its completion holds one of the stop strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: list[str]):
        self.tokenizer = tokenizer
        self.stops = stops
        # The tokens since the last check, and as many before as a stop string may have: one for each byte.
        self.window = TOKENS_BETWEEN_CHECKS + max(len(stop.encode()) for stop in stops)
        self.prompt_length: int | None = None
        self.is_done: torch.Tensor | None = None  # B

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """Return which rows are done, B; `input_ids`, B T, are the prompts and what has been generated."""
        if self.prompt_length is None or self.is_done is None:
            self.prompt_length = input_ids.shape[1] - 1  # it is called after each token
            self.is_done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        generated = input_ids.shape[1] - self.prompt_length
        if generated % TOKENS_BETWEEN_CHECKS == 0:
            texts = self.tokenizer.batch_decode(input_ids[:, -min(generated, self.window) :])
            holds_stop = [any(stop in text for stop in self.stops) for text in texts]
            self.is_done = self.is_done | torch.tensor(holds_stop, device=input_ids.device)
        return self.is_done
