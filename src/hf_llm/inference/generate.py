"""Text from a model: prompts completed and conversations answered, in batches."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.model.load import load_model, load_tokenizer
from hf_llm.tokenization.chat_encoding import encode_chat, ends_of_answers

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...]


def load(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or Hub id, ready to generate: on the GPU in bfloat16 where there is one."""
    on_gpu = torch.cuda.is_available()
    model = load_model(path, torch.bfloat16 if on_gpu else torch.float32).eval()
    return model.to("cuda") if on_gpu else model, load_tokenizer(path)


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    seed: int | None = None,
    **sampling: Any,
) -> list[str]:
    """How the model goes on after each prompt, without the prompt and without special tokens.

    `sampling` are keys of transformers' GenerationConfig (`do_sample`, `temperature`, `top_p`, `top_k` ...). With a
    `seed` the result is the same each time and the process's own random numbers stay untouched. A prompt too long for
    the context loses its beginning. Raises UserError where the context has no room for `max_new_tokens`.
    """
    texts = [tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id] for prompt in prompts]
    return _generate(model, tokenizer, texts, max_new_tokens, seed, **sampling)


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Conversation],
    max_new_tokens: int,
    seed: int | None = None,
    **sampling: Any,
) -> list[str]:
    """The assistant's next message in each conversation; ends with the turn. Otherwise as `complete`.

    A conversation too long for the context loses its oldest turns, but not the system message.
    Raises UserError where the tokenizer has no chat template.
    """
    room = prompt_room(model, max_new_tokens)
    texts = [render(tokenizer, fit(tokenizer, conversation, room)) for conversation in conversations]
    return _generate(model, tokenizer, texts, max_new_tokens, seed, **sampling)


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """The token ids of a conversation up to where the assistant speaks. UserError without a chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path or 'this model'} has no chat template, so it is no chat model; complete "
            "text with python -m hf_llm.generate, or make a chat model of it with python -m hf_llm.sft"
        )
    return encode_chat(tokenizer, conversation, add_generation_prompt=True)[0]


def fit(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, room: int) -> Conversation:
    """The conversation without as many of its oldest exchanges as make it more than `room` tokens long.

    The system message stays, and so does the last message, however long.
    """
    system = conversation[:1] if conversation and conversation[0]["role"] == "system" else []
    turns = conversation[len(system) :]
    while len(turns) > 1 and len(render(tokenizer, system + turns)) > room:
        turns = turns[1:]
        while len(turns) > 1 and turns[0]["role"] != "user":
            turns = turns[1:]
    return system + turns


def usual_length(model: PreTrainedModel) -> int:
    """How many new tokens to make where the user names no number: 256, or half of a short context."""
    return min(256, model.config.max_position_embeddings // 2)


def prompt_room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """How many tokens of the context a prompt may take. UserError where `max_new_tokens` leaves none."""
    context = model.config.max_position_embeddings
    if max_new_tokens >= context:
        raise UserError(f"max_new_tokens: {max_new_tokens} leave no room for a prompt in a context of {context} tokens")
    return context - max_new_tokens


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends an answer: the model's own end tokens, the tokenizer's end of text, and the end of a turn."""
    own = model.generation_config.eos_token_id
    return sorted({*(own if isinstance(own, list) else [own]), *ends_of_answers(tokenizer)} - {None})


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Let `generate` stop at the end of a turn as at the end of a text, and where it did before."""
    model.generation_config.eos_token_id = stop_tokens(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def batch_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[list[int]]) -> dict[str, Any]:
    """`input_ids` and `attention_mask`, padded on the left to the longest text, on the model's device."""
    padded = tokenizer.pad({"input_ids": texts}, padding_side="left", return_tensors="pt")
    return {name: padded[name].to(model.device) for name in ("input_ids", "attention_mask")}


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random numbers from `seed`, and the process's own state back afterwards; None changes nothing."""
    with torch.random.fork_rng() if seed is not None else nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[list[int]],
    max_new_tokens: int,
    seed: int | None,
    **sampling: Any,
) -> list[str]:
    room = prompt_room(model, max_new_tokens)
    batch = batch_of(model, tokenizer, [text[-room:] for text in texts])
    training = model.training
    model.eval()
    try:
        with seeded(seed):
            tokens = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                eos_token_id=stop_tokens(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
    finally:
        model.train(training)
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
