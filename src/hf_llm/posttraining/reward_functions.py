"""Reward functions: a reward model of the run or the Hub, or the user's own Python functions.

Both are called as TRL calls reward functions: with `prompts` and `completions` (message lists), `completion_ids`, and
every other column of the rows by its name. They return one number for each completion.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.data.chat.messages import load_tools
from hf_llm.model.load import load_scorer, load_tokenizer
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.tokenization.checks import renders_alike

Conversation = list[dict[str, str]]
RewardFunction = Callable[..., list[float]]

BATCH_SIZE = 32  # conversations scored at once


def load_reward_functions(
    names: list[str], model: Path | str | None, tokenizer: PreTrainedTokenizerBase
) -> list[RewardFunction]:
    """Load the functions called `names` (`module:function`), then the reward model at `model` where one is given.

    `tokenizer` is that of the model to be trained. Raises UserError for what cannot be imported or loaded, for a reward
    model with another tokenizer, and where there is no reward function at all.
    """
    functions = [import_reward_function(name) for name in names]
    if model is not None:
        functions.append(RewardModel(model, tokenizer))
    if not functions:
        raise UserError("nothing gives a reward: name a reward_model or reward_functions, or write a `reward` section")
    return functions


def import_reward_function(name: str) -> RewardFunction:
    """Import the function named `module:function`. Raises UserError where there is none."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"reward_functions: {name!r} is not module:function, as in my_rewards:is_polite")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise UserError(
            f"reward_functions: {name}: {one_line(error)}. A module of your own must lie in the folder you start from"
        ) from error
    except AttributeError as error:
        raise UserError(f"reward_functions: {name}: the module {module_name} has no {function_name}") from error
    if not callable(function):
        raise UserError(f"reward_functions: {name} is not a function but a {type(function).__name__}")
    return function


class RewardModel:
    """A reward model as a reward function: it scores each conversation as the chat template renders it.

    The same conversation gets the same score alone and in a batch. One longer than the model's context loses its
    beginning. Raises UserError for a model without a score, or with another tokenizer than `tokenizer`.
    """

    def __init__(self, path: Path | str, tokenizer: PreTrainedTokenizerBase):
        own_tokenizer = load_tokenizer(path)
        check_same_tokenizer(path, own_tokenizer, tokenizer)
        model, has_score = load_scorer(path, torch.float32)
        if not has_score:
            raise UserError(
                f"reward_model: {path} is a language model and has no score; name a folder that hf_llm.reward made"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = own_tokenizer
        self.model.config.pad_token_id = own_tokenizer.pad_token_id
        self.__name__ = "reward_model"  # under this name TRL logs its scores

    @torch.no_grad()
    def __call__(self, prompts: list[Conversation], completions: list[Conversation], **columns: Any) -> list[float]:
        self.model.to(PartialState().device)
        conversations = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        tools = columns.get("tools") or [None] * len(conversations)
        encoded = self._encode(conversations, tools)

        # Conversations of similar length are scored together, so that there is little padding.
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        scores = torch.empty(len(encoded))
        for start in range(0, len(encoded), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            scores[rows] = self._score([encoded[row] for row in rows])
        return scores.tolist()

    def _encode(self, conversations: list[Conversation], tools: list[str | None]) -> list[list[int]]:
        context = getattr(self.model.config, "max_position_embeddings", None) or 0  # a slice from -0 keeps all tokens
        encoded = []
        for conversation, listed in zip(conversations, tools, strict=True):
            ids, _ = encode_chat(self.tokenizer, conversation, load_tools({"tools": listed}))
            encoded.append(ids[-context:])
        return encoded

    def _score(self, encoded: list[list[int]]) -> torch.Tensor:
        batch = self.tokenizer.pad({"input_ids": encoded}, padding_side="right", return_tensors="pt")
        inputs = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        return self.model(**inputs, use_cache=False).logits[:, 0].float().cpu()  # B


def check_same_tokenizer(path: Path | str, own: PreTrainedTokenizerBase, trained: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the reward model at `path` encodes text as the model to be trained does."""
    remedy = "train a reward model from this run's own model (python -m hf_llm.reward), or name one of the same family"
    if own.get_vocab() != trained.get_vocab():
        raise UserError(f"reward_model: {path} has another tokenizer than the model to be trained; {remedy}")
    if not renders_alike(own, trained):
        raise UserError(f"reward_model: {path} has another chat template than the model to be trained; {remedy}")


def score_completions(
    functions: list[RewardFunction], prompts: list[Conversation], completions: list[Conversation], columns: dict
) -> torch.Tensor:
    """Score each completion by each function; returns float32 of shape (functions, completions).

    Raises UserError for a function that returns too few numbers or one that is not finite.
    """
    rows = []
    for function in functions:
        name = getattr(function, "__name__", repr(function))
        values = function(prompts=prompts, completions=completions, **columns)
        try:
            scores = torch.tensor([float(value) for value in values])
        except TypeError as error:
            raise UserError(f"the reward function {name} returned no list of numbers: {one_line(error)}") from error
        is_finite = torch.isfinite(scores)
        if len(scores) != len(prompts) or not is_finite.all():
            raise UserError(
                f"the reward function {name} returned {len(scores)} numbers for {len(prompts)} completions, "
                f"{(~is_finite).sum()} of them not finite; return one finite number for each completion"
            )
        rows.append(scores)
    return torch.stack(rows)
