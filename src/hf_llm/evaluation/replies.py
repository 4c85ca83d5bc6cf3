"""Let a model answer conversations: as a chat model in turns, else as text that goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_llm.evaluation.benchmark import NotRunError
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.inference.generate import (
    Conversation,
    default_max_new_tokens,
    encode_conversation,
    fit_conversation,
    generate_tokens,
    generation_stop_ids,
    max_prompt_tokens,
)
from hf_llm.inference.infill import complete_or_infill
from hf_llm.model.load import CAUSAL, OBJECTIVE_DESCRIPTIONS, find_objective
from hf_llm.tokenization.text_boundaries import encode_prompt

REPLIES_PER_BATCH = 32


@dataclass(frozen=True)
class Reply:
    """What a model answers."""

    text: str
    """Without the prompt and without special tokens; of a model that fills gaps, the prompt with its gaps filled."""
    has_ended: bool | None
    """Whether it has an end token within the tokens that it may have; None of a model that fills gaps."""
    prompt_is_cut: bool = False
    """Whether the conversation lost its beginning, since the context had no room for it."""


def require_causal(model: EvaluatedModel, needed_for: str) -> None:
    """Raise NotRunError for a model that fills gaps and does not continue text."""
    objective = find_objective(model.config)
    if objective != CAUSAL:
        raise NotRunError(
            f"{needed_for} needs a causal language model; {model.name} is {objective}: "
            f"{OBJECTIVE_DESCRIPTIONS[objective]}"
        )


def answer_prompts(model: EvaluatedModel, prompts: Sequence[str], max_new_tokens: int) -> list[Reply]:
    """Return greedy answers to the prompts, in their order: the reply of a chat model, the completion of a base model,
    and the prompt with its gaps filled of one that fills gaps."""
    if find_objective(model.config) != CAUSAL:
        filled = []
        for start in range(0, len(prompts), REPLIES_PER_BATCH):
            batch = list(prompts[start : start + REPLIES_PER_BATCH])
            filled += complete_or_infill(model.model, model.tokenizer, batch, max_new_tokens)
        return [Reply(text, None) for text in filled]

    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    replies = {}
    for batch in answer_in_batches(model, conversations, model.is_chat, max_new_tokens):
        replies.update(batch)
    return [replies[index] for index in range(len(prompts))]


def answer_in_batches(
    model: EvaluatedModel, conversations: Sequence[Conversation], as_chat: bool, max_new_tokens: int | None = None
) -> Iterator[list[tuple[int, Reply]]]:
    """Yield batches of the greedy answers of a causal model, each with the index of its conversation; the longest
    prompts come first, so that little is padded.

    With `as_chat` a conversation is written in the model's chat template, else as its texts one below the other. An
    answer has at most `max_new_tokens`, by default as many as `hf_llm.generate` writes. Raises UserError where the
    context has no room for them, or for a chat without a template.
    """
    max_new_tokens = max_new_tokens or default_max_new_tokens(model.model)
    prompts = [encode_for_answer(model, conversation, as_chat, max_new_tokens) for conversation in conversations]
    end_tokens = generation_stop_ids(model.model, model.tokenizer)
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index][0]))

    for start in range(0, len(by_length), REPLIES_PER_BATCH):
        indices = by_length[start : start + REPLIES_PER_BATCH]
        encoded = [prompts[index][0] for index in indices]
        completions = generate_tokens(model.model, model.tokenizer, encoded, max_new_tokens, do_sample=False)
        texts = model.tokenizer.batch_decode(completions, skip_special_tokens=True)

        replies = []
        for index, completion, text in zip(indices, completions, texts, strict=True):
            has_ended = bool(completion) and completion[-1] in end_tokens
            _, is_cut = prompts[index]
            replies.append((index, Reply(text, has_ended, is_cut)))
        yield replies


def sample_answers(
    model: EvaluatedModel,
    conversations: Sequence[Conversation],
    as_chat: bool,
    samples: int,
    seed: int,
    max_new_tokens: int,
    **settings: Any,
) -> list[list[str]]:
    """Return `samples` answers to each conversation, all in one batch and the same each time for one `seed`.

    `settings` are keys of transformers' GenerationConfig. Otherwise as `answer_in_batches`.
    """
    prompts = [encode_for_answer(model, conversation, as_chat, max_new_tokens)[0] for conversation in conversations]
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    completions = generate_tokens(model.model, model.tokenizer, repeated, max_new_tokens, seed, **settings)
    texts = model.tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def encode_for_answer(
    model: EvaluatedModel, conversation: Conversation, as_chat: bool, max_new_tokens: int
) -> tuple[list[int], bool]:
    """Return the token ids of a conversation, and whether it was too long and lost its beginning."""
    max_tokens = max_prompt_tokens(model.model, max_new_tokens)
    if as_chat:
        shortened = fit_conversation(model.tokenizer, conversation, max_tokens)
        return encode_conversation(model.tokenizer, shortened), shortened != conversation

    text = "\n\n".join(message["content"] for message in conversation)
    ids = encode_prompt(model.tokenizer, text, max_tokens)
    is_cut = len(ids) == max_tokens and len(model.tokenizer(text, verbose=False)["input_ids"]) > max_tokens
    return ids, is_cut
