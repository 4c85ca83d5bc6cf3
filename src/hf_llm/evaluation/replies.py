"""Let a model answer prompts: as a chat model in turns, else as text that goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.inference.generate import (
    encode_conversations,
    encode_prompts,
    generate_tokens,
    generation_stop_ids,
)
from hf_llm.inference.infill import complete_or_infill
from hf_llm.model.load import find_objective
from hf_llm.pipeline.model_types import CAUSAL

PROMPTS_PER_BATCH = 32


@dataclass(frozen=True)
class Reply:
    """An answer of a model to a prompt."""

    text: str
    """Without the prompt and without special tokens; of a model that fills gaps, the prompt with its gaps filled."""
    has_ended: bool | None
    """Whether it has an end token; None of a model that fills gaps."""
    tokens: int
    """How many tokens were generated, the end among them; 0 of a model that fills gaps."""


def answer_prompts(evaluated: EvaluatedModel, prompts: Sequence[str], max_new_tokens: int) -> list[Reply]:
    """Return greedy answers to the prompts: the reply of a chat model, the completion of a base model, and the prompt
    with its gaps filled of one that fills gaps."""
    replies = []
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        replies += _answer_batch(evaluated, list(prompts[start : start + PROMPTS_PER_BATCH]), max_new_tokens)
    return replies


def _answer_batch(evaluated: EvaluatedModel, prompts: list[str], max_new_tokens: int) -> list[Reply]:
    model = evaluated.model
    tokenizer = evaluated.tokenizer
    if find_objective(model.config) != CAUSAL:
        return [Reply(text, None, 0) for text in complete_or_infill(model, tokenizer, prompts, max_new_tokens)]

    if evaluated.is_chat:
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = encode_conversations(model, tokenizer, conversations, max_new_tokens)
    else:
        encoded = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    completions = generate_tokens(model, tokenizer, encoded, max_new_tokens, do_sample=False)
    end_tokens = set(generation_stop_ids(model, tokenizer))
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    replies = []
    for text, completion in zip(texts, completions, strict=True):
        has_ended = bool(completion) and completion[-1] in end_tokens
        replies.append(Reply(text, has_ended, len(completion)))
    return replies
