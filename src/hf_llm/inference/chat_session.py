"""A conversation with a model, whose replies are streamed while they are generated."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer

from hf_llm.inference.generate import (
    drop_oldest_turns,
    encode_conversation,
    generate_tokens,
    max_prompt_tokens,
    shorten_last_message,
)


class ChatSession:
    """The messages so far, kept within the model's context; `stream_reply` adds a question and its answer.

    Raises UserError where the tokenizer does not have a chat template. `generated_tokens` counts those of all replies.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, **sampling: Any
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens(model, max_new_tokens)
        self.messages = []
        self.note = ""
        self.generated_tokens = 0
        encode_conversation(tokenizer, [{"role": "user", "content": "Hello"}])  # checks the chat template

    def reset(self) -> None:
        """Forget all messages."""
        self.messages = []

    def stream_reply(self, question: str, seed: int | None = None) -> Iterator[str]:
        """Return the pieces of the reply to `question` as they are generated. Leaving the loop early stops the model.

        `note` says what of the conversation did not fit the context.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        kept = drop_oldest_turns(self.tokenizer, messages, self.max_prompt_tokens)
        fitting, too_long = shorten_last_message(self.tokenizer, kept, self.max_prompt_tokens)
        self.messages = fitting
        self.note = self._describe_loss(len(messages) - len(kept), too_long)
        return self._stream_reply(encode_conversation(self.tokenizer, fitting), seed)

    def _describe_loss(self, forgotten: int, too_long: int) -> str:
        """Describe the messages that were forgotten, and by how many tokens the question was too long."""
        notes = []
        if forgotten:
            notes.append(f"the oldest {forgotten} messages no longer fit the context and are forgotten")
        if too_long:
            notes.append(
                f"the question is {too_long} tokens longer than the {self.max_prompt_tokens} that fit; its beginning "
                "is left out"
            )
        return "; ".join(notes)

    def _stream_reply(self, prompt: list[int], seed: int | None) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, True, skip_special_tokens=True)
        stop_requested = Event()
        pieces = []
        with ThreadPoolExecutor(1) as thread:
            generation = thread.submit(self._generate_reply, prompt, streamer, stop_requested, seed)
            try:
                for piece in streamer:
                    pieces.append(piece)
                    yield piece
            finally:
                stop_requested.set()
                self.generated_tokens += generation.result()
                self.messages = [*self.messages, {"role": "assistant", "content": "".join(pieces)}]

    def _generate_reply(
        self, prompt: list[int], streamer: TextIteratorStreamer, stop_requested: Event, seed: int | None
    ) -> int:
        """Feed the reply to `streamer`, and return the number of its tokens."""

        def should_stop(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full((tokens.shape[0],), stop_requested.is_set(), device=tokens.device)  # B

        try:
            (tokens,) = generate_tokens(
                self.model,
                self.tokenizer,
                [prompt],
                self.max_new_tokens,
                seed,
                streamer,
                stopping_criteria=StoppingCriteriaList([should_stop]),
                **self.sampling,
            )
        finally:
            streamer.end()  # also where generate failed: the reader must not wait for ever
        return len(tokens)
