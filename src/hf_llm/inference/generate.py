"""Text from a model: prompts completed and conversations answered, in batches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerationMixin

from hf_llm.core.errors import UserError
from hf_llm.model.decoding import decode
from hf_llm.model.evaluation_mode import evaluation_mode
from hf_llm.model.load import load_model, load_tokenizer
from hf_llm.tokenization.chat_encoding import encode_chat, stop_token_ids
from hf_llm.tokenization.compare_tokenizers import check_ids_fit
from hf_llm.tokenization.text_boundaries import encode_prompt

MAX_DEFAULT_NEW_TOKENS = 256
KEPT_FROM_CUSTOM_LOOPS = {"tokenizer", "assistant_tokenizer", "synced_gpus"}  # arguments that generate does not hand on

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...]


def load_for_generation(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a folder or Hub id, ready to generate: on the GPU in bfloat16 where there is one."""
    if torch.cuda.is_available():
        model = load_model(path, torch.bfloat16).eval().to("cuda")
    else:
        model = load_model(path, torch.float32).eval()
    tokenizer = load_tokenizer(path)
    check_ids_fit(tokenizer, model.config.get_text_config().vocab_size, str(path))
    return model, tokenizer


def complete_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    seed: int | None = None,
    **settings: Any,
) -> list[str]:
    """Generate the completion of each prompt, without the prompt and without special tokens.

    `settings` are those of `generate_tokens`. A prompt too long for the context loses its beginning.

    Raises UserError where the context has no room for `max_new_tokens`.
    """
    encoded = encode_prompts(model, tokenizer, prompts, max_new_tokens)
    tokens = generate_tokens(model, tokenizer, encoded, max_new_tokens, seed, **settings)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[list[int]]:
    """Return the token ids of each prompt; one too long for the context loses its beginning.

    Raises UserError where the context has no room for `max_new_tokens`.
    """
    max_tokens = max_prompt_tokens(model, max_new_tokens)
    return [encode_prompt(tokenizer, prompt, max_tokens) for prompt in prompts]


def describe_cut_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[str]:
    """Return a line for each prompt that loses its beginning, since the context has no room for it."""
    limit = max_prompt_tokens(model, max_new_tokens)
    lines = []
    for number, prompt in enumerate(prompts, 1):
        excess = len(tokenizer(prompt, verbose=False)["input_ids"]) - limit
        if excess > 0:
            lines.append(
                f"prompt {number} is {excess} tokens longer than the {limit} that fit beside {max_new_tokens} new "
                "ones; its beginning is left out"
            )
    return lines


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Conversation],
    max_new_tokens: int,
    seed: int | None = None,
    **settings: Any,
) -> list[str]:
    """Generate the assistant's next message in each conversation, to the end of its turn; otherwise as
    `complete_prompts` does.

    A conversation too long for the context loses its oldest turns, but not the system message; a last message too
    long for it loses its beginning. Raises UserError where the tokenizer does not have a chat template.
    """
    max_tokens = max_prompt_tokens(model, max_new_tokens)
    encoded = []
    for conversation in conversations:
        encoded.append(encode_conversation(tokenizer, fit_conversation(tokenizer, conversation, max_tokens)))
    tokens = generate_tokens(model, tokenizer, encoded, max_new_tokens, seed, **settings)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def fit_conversation(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_tokens: int) -> Conversation:
    """Return a conversation that fits into `max_tokens`, shortened as `generate_replies` says.

    Raises UserError where the tokenizer does not have a chat template.
    """
    shortened = drop_oldest_turns(tokenizer, conversation, max_tokens)
    shortened, _ = shorten_last_message(tokenizer, shortened, max_tokens)
    return shortened


def encode_conversation(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation up to where the assistant's next message begins.

    Raises UserError where the tokenizer does not have a chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path or 'this model'} has no chat template, so it is not a chat model; complete "
            "text with python -m hf_llm.generate, or make a chat model of it with python -m hf_llm.sft"
        )
    token_ids, _ = encode_chat(tokenizer, conversation, add_generation_prompt=True)
    return token_ids


def drop_oldest_turns(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_tokens: int) -> Conversation:
    """Drop the oldest exchanges of a conversation until the rest fits into `max_tokens`.

    The system message stays, and so does the last message, however long.
    """
    has_system = bool(conversation) and conversation[0]["role"] == "system"
    system = conversation[:1] if has_system else []
    turns = conversation[len(system) :]
    while len(turns) > 1 and len(encode_conversation(tokenizer, system + turns)) > max_tokens:
        turns = turns[1:]
        while len(turns) > 1 and turns[0]["role"] != "user":  # an answer goes with its question
            turns = turns[1:]
    return system + turns


def shorten_last_message(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_tokens: int
) -> tuple[Conversation, int]:
    """Cut the beginning of the last message where the conversation is longer than `max_tokens`; its header stays.

    Returns the conversation, and how many tokens it was too long. Raises UserError where it is too long without the
    last message, as with a long system message.
    """
    excess = len(encode_conversation(tokenizer, conversation)) - max_tokens
    too_long = max(0, excess)
    last = conversation[-1]
    ids = tokenizer(last["content"], add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    while excess > 0:
        if not ids:
            raise UserError(
                f"the conversation is {excess} tokens longer than the {max_tokens} that fit even without its last "
                "message; shorten the system message, or lower --max-new-tokens"
            )
        ids = ids[excess:]
        content = tokenizer.decode(ids).lstrip("\ufffd")  # the rest of a character that was cut in two
        conversation = [*conversation[:-1], {**last, "content": content}]
        excess = len(encode_conversation(tokenizer, conversation)) - max_tokens
    return conversation, too_long


def default_max_new_tokens(model: PreTrainedModel) -> int:
    """Return how many new tokens to generate where the user names no number: 256, or half of a short context."""
    return min(MAX_DEFAULT_NEW_TOKENS, model.config.max_position_embeddings // 2)


def max_prompt_tokens(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Return how many tokens of the context a prompt may take. Raises UserError where `max_new_tokens` leaves none."""
    context = model.config.max_position_embeddings
    if max_new_tokens >= context:
        raise UserError(f"max_new_tokens: {max_new_tokens} leave no room for a prompt in a context of {context} tokens")
    return context - max_new_tokens


def generation_stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a completion: the model's own, the tokenizer's end of text, and the end of a turn."""
    own = model.generation_config.eos_token_id
    own_ids = own if isinstance(own, list) else [own]
    return sorted({*own_ids, *stop_token_ids(tokenizer)} - {None})


def suppressed_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return the ids that are never to be generated; None where there are none.

    A padded vocabulary has rows beyond the tokenizer (and within it, where an id is unused). No text has their ids, so
    training never shows the model one, and they decode to nothing. `generate` takes the list as `suppress_tokens`.
    """
    with_token = set(tokenizer.get_vocab().values())
    vocabulary = range(model.config.get_text_config().vocab_size)
    return [number for number in vocabulary if number not in with_token] or None


def suppress_unused_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Let `generate` never propose an id without a token; the saved model keeps this in its generation_config.json."""
    if model.can_generate():
        model.generation_config.suppress_tokens = suppressed_ids(model, tokenizer)
    return model


def set_stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Let `generate` stop at the end of a turn as at the end of a text, and where it did before; and propose only ids
    that have a token."""
    suppress_unused_ids(model, tokenizer)
    model.generation_config.eos_token_id = generation_stop_ids(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def pad_left(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: list[list[int]]) -> dict[str, Any]:
    """Return `input_ids` and `attention_mask` (B T) of lists of token ids, padded on the left to the longest, on the
    model's device."""
    padded = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
    return {name: padded[name].to(model.device) for name in ("input_ids", "attention_mask")}


@contextmanager
def fork_random_state(seed: int | None) -> Iterator[None]:
    """Draw random numbers from `seed` within, and restore the process's own state afterwards; None changes nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def generate_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    seed: int | None = None,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Generate the tokens after each prompt, all given as token ids: up to and with the one that ends a text or a turn.

    `settings` are keys of transformers' GenerationConfig (`do_sample`, `temperature`, `top_p`, `top_k` ...) and
    arguments of its `generate`. With a `seed` the result is the same each time and the process's own random state stays
    as it was. A prompt that leaves no room in the context loses its beginning. The model stays in train or eval mode as
    it was.
    """
    max_tokens = max_prompt_tokens(model, max_new_tokens)
    batch = pad_left(model, tokenizer, [token_ids[-max_tokens:] for token_ids in prompts])
    end_tokens = generation_stop_ids(model, tokenizer)
    if takes_custom_loop(model, settings):
        settings["custom_generate"] = partial(decode, streamer=streamer)  # generate keeps the streamer to itself

    with evaluation_mode(model), fork_random_state(seed):
        tokens = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            eos_token_id=end_tokens,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=suppressed_ids(model, tokenizer),
            streamer=streamer,
            **settings,
        )  # B (prompt and completion)

    prompt_length = batch["input_ids"].shape[1]
    return [cut_after_end(row, end_tokens) for row in tokens[:, prompt_length:].tolist()]


def takes_custom_loop(model: PreTrainedModel, settings: dict[str, Any]) -> bool:
    """Whether `decode` may be given to the model's `generate`: for one greedy or sampled token after the other.

    Beams and assistants are left to transformers, and so are encoder-decoders and classes with a loop of their own;
    HfLlmForCausalLM enters `decode` by itself. What else `decode` cannot do it leaves to transformers' loop.
    """
    config = copy.deepcopy(model.generation_config)
    config.update(**{key: value for key, value in settings.items() if value is not None})
    mode = config.get_generation_mode(settings.get("assistant_model"))
    is_plain = mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
    has_own_loop = model._sample.__func__ is not GenerationMixin._sample
    reaches_loop = not KEPT_FROM_CUSTOM_LOOPS & settings.keys()
    return is_plain and reaches_loop and not has_own_loop and not model.config.is_encoder_decoder


def cut_after_end(tokens: list[int], end_tokens: list[int]) -> list[int]:
    """Return the tokens up to the first end token, with it; what follows is padding."""
    for place, token in enumerate(tokens, 1):
        if token in end_tokens:
            return tokens[:place]
    return tokens
