"""A conversation with a model, whose words come out as they are made."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer

from hf_llm.inference.generate import batch_of, fit, prompt_room, render, seeded, stop_tokens


class Dialogue:
    """What was said so far, kept within the model's context; `answer` adds a question and streams the reply.

    Raises UserError where the tokenizer has no chat template. `tokens` counts all the tokens of the replies.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, **sampling: Any
    ):
        self.model, self.tokenizer = model, tokenizer
        self.sampling = {**sampling, "max_new_tokens": max_new_tokens}
        self.room = prompt_room(model, max_new_tokens)
        self.messages = []
        self.tokens = 0
        render(tokenizer, [{"role": "user", "content": "Hello"}])

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []

    def answer(self, question: str, seed: int | None = None) -> Iterator[str]:
        """The pieces of the reply to `question`, as they are made. Leaving the loop early stops the model."""
        self.messages = fit(self.tokenizer, [*self.messages, {"role": "user", "content": question}], self.room)
        prompt = render(self.tokenizer, self.messages)[-self.room :]
        streamer, stopped, pieces = TextIteratorStreamer(self.tokenizer, True, skip_special_tokens=True), Event(), []
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(self._generate, prompt, streamer, stopped, seed)
            try:
                for piece in streamer:
                    pieces.append(piece)
                    yield piece
            finally:
                stopped.set()
                self.tokens += made.result()
                self.messages = [*self.messages, {"role": "assistant", "content": "".join(pieces)}]

    def _generate(self, prompt: list[int], streamer: TextIteratorStreamer, stopped: Event, seed: int | None) -> int:
        def told_to_stop(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full((tokens.shape[0],), stopped.is_set(), device=tokens.device)

        try:
            with seeded(seed):
                tokens = self.model.generate(
                    **batch_of(self.model, self.tokenizer, [prompt]),
                    **self.sampling,
                    streamer=streamer,
                    eos_token_id=stop_tokens(self.model, self.tokenizer),
                    pad_token_id=self.tokenizer.pad_token_id,
                    stopping_criteria=StoppingCriteriaList([told_to_stop]),
                )
        finally:
            streamer.end()  # also where generate failed: the reader must not wait for ever
        return tokens.shape[1] - len(prompt)
