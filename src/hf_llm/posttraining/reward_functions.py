"""What says how good an answer is: a reward model of the run or the Hub, or the user's own Python functions.

Both are called as TRL calls reward functions: with `prompts` and `completions` (message lists), `completion_ids`, and
every other column of the rows by its name. They return one number for each answer.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.model.load import load_scorer, load_tokenizer, one_line
from hf_llm.tokenization.chat_encoding import encode_chat

Conversation = list[dict[str, str]]
RewardFunction = Callable[..., list[float]]

BATCH = 32  # conversations scored at once


def reward_functions(
    names: list[str], model: Path | str | None, tokenizer: PreTrainedTokenizerBase
) -> list[RewardFunction]:
    """The functions called `names` (`module:function`), then the reward model at `model` where one is given.

    `tokenizer` is that of the model to be trained. Raises UserError for what cannot be imported or loaded, for a reward
    model of another tokenizer, and where there is nothing at all to judge by.
    """
    found = [imported(name) for name in names]
    if model is not None:
        found.append(RewardModel(model, tokenizer))
    if not found:
        raise UserError(
            "nothing says which answers are good: name a reward_model or reward_functions, or write a `reward` section"
        )
    return found


def imported(name: str) -> RewardFunction:
    """The function `module:function`. Raises UserError where there is none."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"reward_functions: {name!r} is no module:function, as in my_rewards:is_polite")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(
            f"reward_functions: {name}: {one_line(error)}. A module of your own must lie in the folder you start from"
        ) from error
    except AttributeError as error:
        raise UserError(f"reward_functions: {name}: the module {module} has no {function}") from error
    if not callable(found):
        raise UserError(f"reward_functions: {name} is no function but a {type(found).__name__}")
    return found


class RewardModel:
    """A reward model as a reward function: the score of each conversation as the chat template renders it, closed.

    The same conversation gets the same score alone and in a batch. One longer than the model's context loses its
    beginning. Raises UserError for a model that is none of rewards, or of another tokenizer than `tokenizer`.
    """

    def __init__(self, path: Path | str, tokenizer: PreTrainedTokenizerBase):
        own = load_tokenizer(path)
        check_same_tokenizer(path, own, tokenizer)
        model, has_score = load_scorer(path, torch.float32)
        if not has_score:
            raise UserError(
                f"reward_model: {path} is a language model and scores nothing; name what hf_llm.reward made"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = own
        self.model.config.pad_token_id = own.pad_token_id
        self.__name__ = "reward_model"  # what TRL logs it by

    @torch.no_grad()
    def __call__(self, prompts: list[Conversation], completions: list[Conversation], **columns: Any) -> list[float]:
        self.model.to(PartialState().device)
        texts = self._rendered([prompt + answer for prompt, answer in zip(prompts, completions, strict=True)])
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # equal lengths together: little padding
        scores = torch.empty(len(texts))
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            scores[rows] = self._scores([texts[row] for row in rows])
        return scores.tolist()

    def _rendered(self, conversations: list[Conversation]) -> list[list[int]]:
        context = getattr(self.model.config, "max_position_embeddings", None) or 0  # where there is none, all of it
        return [encode_chat(self.tokenizer, conversation)[0][-context:] for conversation in conversations]

    def _scores(self, texts: list[list[int]]) -> torch.Tensor:
        batch = self.tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
        inputs = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        return self.model(**inputs, use_cache=False).logits[:, 0].float().cpu()


def check_same_tokenizer(path: Path | str, own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless a reward model reads text as the model it is to judge writes it."""
    remedy = "train a reward model from this run's own model (python -m hf_llm.reward), or name one of the same family"
    if own.get_vocab() != other.get_vocab():
        raise UserError(f"reward_model: {path} has another tokenizer than the model to be trained; {remedy}")
    if own.chat_template != other.chat_template:
        raise UserError(f"reward_model: {path} has another chat template than the model to be trained; {remedy}")


def scores_of(
    functions: list[RewardFunction], prompts: list[Conversation], completions: list[Conversation], columns: dict
) -> torch.Tensor:
    """What each function says of each answer, float32 of shape (functions, answers).

    Raises UserError for a function that returns too few numbers or one that is not finite.
    """
    found = []
    for function in functions:
        name = getattr(function, "__name__", repr(function))
        values = function(prompts=prompts, completions=completions, **columns)
        try:
            scores = torch.tensor([float(value) for value in values])
        except TypeError as error:
            raise UserError(f"the reward function {name} returned no list of numbers: {one_line(error)}") from error
        if len(scores) != len(prompts) or not torch.isfinite(scores).all():
            raise UserError(
                f"the reward function {name} returned {len(scores)} numbers for {len(prompts)} answers, "
                f"{(~torch.isfinite(scores)).sum()} of them not finite; return one finite number for each answer"
            )
        found.append(scores)
    return torch.stack(found)
