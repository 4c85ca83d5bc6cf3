"""Prompts to tokens: the loop that generates. This file travels with the weights.

`generate` of transformers spends a third of a small model's time on its own bookkeeping: it concatenates cache, masks
and positions for every token again. The loop here takes over where `generate` would enter its own
(`GenerationMixin._sample`), so everything before it, and what its arguments mean, is as there. HfLlmForCausalLM enters
it by itself; for another class give it to `generate` as `custom_generate=decode`. Its memory is in decoding_cache.py, a
step of the model in decoding_step.py.

Shapes at line ends:
    B batch   T tokens   V vocab_size
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerationMixin
from transformers.utils import logging

from .decoding_cache import TokenRoom, preallocate
from .decoding_step import next_logits_function

logger = logging.get_logger(__name__)

# Arguments of a forward pass that the loop knows how to continue from one token to the next.
KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # B T
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Any:
    """Return the prompts with the tokens generated after them, B T; greedy or sampled, as `generation_config` has it.

    The arguments are those of transformers' own loop. That one generates where this one cannot (`asks_for_other_loop`;
    `unsupported_model`, which is logged). Draws and processed scores are the same as there, and so is the result.
    """
    needs_other_loop = asks_for_other_loop(input_ids, generation_config, synced_gpus, model_kwargs)
    reason = "" if needs_other_loop else unsupported_model(model, input_ids, model_kwargs)
    if reason:
        logger.warning_once(f"{type(model).__name__} generates in transformers' own, slower loop: {reason}")
    if needs_other_loop or reason:
        return GenerationMixin._sample(  # pyright: ignore[reportAttributeAccessIssue] - a mixin's method
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus,
            streamer,
            **model_kwargs,
        )

    max_length = generation_config.max_length
    preallocate(model_kwargs["past_key_values"], max_length)
    outputs = model._prefill(input_ids, generation_config, model_kwargs)  # pyright: ignore[reportCallIssue]
    logits = outputs.logits[:, -1]  # B V
    del outputs

    processors = [quicken(processor) for processor in logits_processor]
    end = EndCheck(stopping_criteria, len(input_ids), generation_config)
    room = TokenRoom(input_ids, max_length)
    compute_next_logits = next_logits_function(model, max_length, model_kwargs)

    with keep_cast_weights(model.device.type), model._optimize_model_for_decode():  # pyright: ignore[reportCallIssue]
        while True:
            # A copy: a view would keep the logits of the whole prompt, and processors may write into their scores.
            scores = logits.to(device=input_ids.device, dtype=torch.float32, copy=True)  # B V
            del logits
            for processor in processors:
                scores = processor(room.tokens, scores)
            if generation_config.do_sample:
                probabilities = torch.softmax(scores, dim=-1)
                chosen = torch.multinomial(probabilities, num_samples=1).squeeze(1)  # B
            else:
                chosen = torch.argmax(scores, dim=-1)  # B
            chosen = end.pad_ended(chosen)

            room.append(chosen)
            if streamer is not None:
                streamer.put(chosen.cpu())
            if end.update(chosen, room.tokens):
                break
            logits = compute_next_logits(chosen)

    if streamer is not None:
        streamer.end()
    return room.tokens.clone()


def keep_cast_weights(device_type: str) -> AbstractContextManager:
    """Keep the weights that an autocast within casts (a Trainer wraps one around each forward pass) from token to
    token: they are forgotten where the outermost autocast ends. The precision within is as it was."""
    is_enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, torch.get_autocast_dtype(device_type), enabled=is_enabled)


def asks_for_other_loop(
    input_ids: torch.Tensor, generation_config: GenerationConfig, synced_gpus: bool, model_kwargs: dict[str, Any]
) -> bool:
    """Whether the arguments ask for what only transformers' own loop does: sharded weights that all processes gather
    together, prompts with more than token ids, no cache, one that is given, returned, static, quantised or offloaded, a
    prompt in chunks, scores beside the tokens."""
    cache = model_kwargs.get("past_key_values")
    has_other_cache = cache is not None and (
        type(cache) is not DynamicCache
        or cache.offloading
        or getattr(cache, "_is_user_defined", False)
        or cache.get_seq_length() > 0
    )
    return (
        synced_gpus
        or has_other_cache
        or not model_kwargs.get("use_cache")
        or not set(model_kwargs) <= KNOWN_INPUTS
        or generation_config.max_length is None
        or bool(generation_config.return_dict_in_generate)
        or bool(generation_config.is_assistant)
        or generation_config.prefill_chunk_size is not None
    )


def unsupported_model(model: PreTrainedModel, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> str:
    """Return why a model cannot be run by this loop; nothing where it can."""
    is_plain_class = all(
        getattr(getattr(model, name), "__func__", None) is getattr(GenerationMixin, name)
        for name in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "_prefill")
    )
    cache = model_kwargs.get("past_key_values")
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if not is_plain_class or (model.is_remote_code() and "cache_position" in signature(model.forward).parameters):
        return "its class prepares its inputs in a way of its own"
    if cache is None or not cache.layers:  # without a config the cache adds layers as they come
        return "it does not have a cache of keys and values per layer"
    if model.device.type == "mps":
        return "on MPS transformers checks for the end some tokens late"
    if model.device != input_ids.device:
        return f"the prompts are on {input_ids.device}, the model on {model.device}"
    return ""


# ---- choosing a token


class FastSuppression:
    """transformers' `suppress_tokens`, which looks for its ids among those of the whole vocabulary at every step."""

    def __init__(self, processor: SuppressTokensLogitsProcessor):
        self.processor = processor
        self.suppressed: torch.Tensor | None = None  # those that the vocabulary has

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, B V, with -inf at the ids."""
        if self.suppressed is None:
            ids = self.processor.suppress_tokens.to(scores.device, torch.long)
            self.suppressed = ids[(ids >= 0) & (ids < scores.shape[1])]
        return scores.index_fill(1, self.suppressed, -torch.inf)


def quicken(processor: Any) -> Callable:
    """Return what gives the same scores as a processor in less time, or the processor."""
    if type(processor) is SuppressTokensLogitsProcessor:
        return FastSuppression(processor)
    return processor


class EndCheck:
    """Which rows have ended, and whether all have. Ended rows get padding."""

    def __init__(self, criteria: StoppingCriteriaList, batch: int, generation_config: GenerationConfig):
        self.pad: Any = generation_config._pad_token_tensor  # a tensor, where there are end tokens
        self.max_length: int | None = None
        self.has_end_tokens = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.end_tokens: set[int] = set()
        self.others = StoppingCriteriaList()
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self.end_tokens |= set(criterion.eos_token_id.tolist())
            elif is_plain_limit(criterion):
                self.max_length = criterion.max_length
            else:
                self.others.append(criterion)
        self.active = list(range(batch))  # rows
        self.is_active: torch.Tensor | None = None  # B; None while all are

    def pad_ended(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the chosen tokens, B, with padding in rows that have ended."""
        if self.is_active is None or not self.has_end_tokens:
            return chosen
        return torch.where(self.is_active, chosen, self.pad.to(chosen))

    def update(self, chosen: torch.Tensor, tokens: torch.Tensor) -> bool:
        """Take note of the rows that have ended with their last token, and return whether generation is over."""
        before = len(self.active)
        if self.end_tokens:
            ids = chosen.tolist()
            self.active = [row for row in self.active if ids[row] not in self.end_tokens]
        if self.others:
            is_done = self.others(tokens, None).tolist()  # pyright: ignore[reportArgumentType] - as transformers does
            self.active = [row for row in self.active if not is_done[row]]
        if len(self.active) < before:
            is_active = torch.zeros_like(chosen, dtype=torch.bool)
            is_active[self.active] = True
            self.is_active = is_active
        return not self.active or tokens.shape[1] == self.max_length


def is_plain_limit(criterion: Any) -> bool:
    """Whether a criterion only compares the length with `max_length`, and warns of no context that is too short."""
    if type(criterion) is not MaxLengthCriteria:
        return False
    context = criterion.max_position_embeddings
    return context is None or criterion.max_length <= context
