"""Greedy answers of a model to conversations, batch by batch, with what was cut off of prompt and answer."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_llm.evaluation.benchmark import NotRunError

if TYPE_CHECKING:
    from hf_llm.evaluation.evaluated_model import EvaluatedModel

ANSWERS_PER_BATCH = 32


class Answer(NamedTuple):
    """What a model says to a conversation."""

    text: str
    has_ended: bool
    """Whether it has an end token within the tokens that it may have."""
    prompt_is_cut: bool
    """Whether the conversation lost its beginning, since the context had no room for it."""


def require_causal(model: "EvaluatedModel", needed_for: str) -> None:
    """Raise NotRunError for a model that fills gaps and does not continue text."""
    from hf_llm.model.load import CAUSAL, OBJECTIVE_DESCRIPTIONS, find_objective

    objective = find_objective(model.config)
    if objective != CAUSAL:
        raise NotRunError(
            f"{needed_for} needs a causal language model; {model.name} is {objective}: "
            f"{OBJECTIVE_DESCRIPTIONS[objective]}"
        )


def answer_in_batches(
    model: "EvaluatedModel",
    conversations: Sequence[list[dict[str, str]]],
    as_chat: bool,
    max_new_tokens: int | None = None,
) -> Iterator[list[tuple[int, Answer]]]:
    """Yield batches of the greedy answers, each with the index of its conversation; the longest come first.

    With `as_chat` a conversation is written in the model's chat template, else as its texts one below the other. An
    answer has at most `max_new_tokens`, by default as many as `hf_llm.generate` writes. Raises UserError where the
    context has no room for them, or for a chat without a template.
    """
    from hf_llm.inference.generate import default_max_new_tokens, generate_tokens, generation_stop_ids

    max_new_tokens = max_new_tokens or default_max_new_tokens(model.model)
    prompts = [_encode_prompt(model, conversation, as_chat, max_new_tokens) for conversation in conversations]
    end_tokens = generation_stop_ids(model.model, model.tokenizer)

    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index][0]))
    for batch in range(math.ceil(len(by_length) / ANSWERS_PER_BATCH)):
        indices = by_length[batch * ANSWERS_PER_BATCH : (batch + 1) * ANSWERS_PER_BATCH]
        encoded = [prompts[index][0] for index in indices]
        tokens = generate_tokens(model.model, model.tokenizer, encoded, max_new_tokens, do_sample=False)
        texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        answers = []
        for index, ids, text in zip(indices, tokens, texts, strict=True):
            has_ended = bool(ids) and ids[-1] in end_tokens
            answers.append((index, Answer(text.strip(), has_ended, prompt_is_cut=prompts[index][1])))
        yield answers


def write_as_text(conversation: list[dict[str, str]]) -> str:
    """Return the texts of a conversation one below the other, for a model that knows no chat template."""
    return "\n\n".join(message["content"] for message in conversation)


def _encode_prompt(
    model: "EvaluatedModel", conversation: list[dict[str, str]], as_chat: bool, max_new_tokens: int
) -> tuple[list[int], bool]:
    """Return the token ids of a conversation, and whether it was too long and lost its beginning."""
    from hf_llm.inference.generate import (
        drop_oldest_turns,
        encode_conversation,
        max_prompt_tokens,
        shorten_last_message,
    )
    from hf_llm.tokenization.text_boundaries import encode_prompt

    max_tokens = max_prompt_tokens(model.model, max_new_tokens)
    if as_chat:
        shortened = drop_oldest_turns(model.tokenizer, conversation, max_tokens)
        shortened, _ = shorten_last_message(model.tokenizer, shortened, max_tokens)
        return encode_conversation(model.tokenizer, shortened), shortened != conversation

    text = write_as_text(conversation)
    ids = encode_prompt(model.tokenizer, text, max_tokens)
    return ids, len(ids) == max_tokens and len(model.tokenizer(text, verbose=False)["input_ids"]) > max_tokens


def sample_answers(
    model: "EvaluatedModel",
    conversations: Sequence[list[dict[str, str]]],
    as_chat: bool,
    samples: int,
    seed: int,
    max_new_tokens: int,
    **settings: Any,
) -> list[list[str]]:
    """Return `samples` answers to each conversation, all in one batch and the same each time for one `seed`.

    `settings` are keys of transformers' GenerationConfig. Otherwise as `answer_in_batches`.
    """
    from hf_llm.inference.generate import generate_tokens

    prompts = [_encode_prompt(model, conversation, as_chat, max_new_tokens)[0] for conversation in conversations]
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    tokens = generate_tokens(model.model, model.tokenizer, repeated, max_new_tokens, seed, **settings)
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]
