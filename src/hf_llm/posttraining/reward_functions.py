"""Reward functions: a reward model of the run or the Hub, or the user's own Python functions.

Both are called as TRL calls reward functions: with `prompts` and `completions` (message lists), `completion_ids`, and
every other column of the rows by its name. They return one number for each completion, or None where a function does
not apply and another one does.
"""

import asyncio
import importlib
import inspect
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerState

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.data.chat.messages import load_tools
from hf_llm.model.load import load_scorer, load_tokenizer
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.tokenization.checks import renders_alike

Conversation = list[dict[str, str]]
RewardFunction = Callable[..., list[float | None]]

BATCH_SIZE = 32  # conversations scored at once
ROWS_TRIED = 4  # rows on which reward functions are called before any work

# Columns of the rows that reward functions get under other names, or not at all.
PROMPT_COLUMNS = ("prompt", "prompt_ids", "completion", "completion_ids")


def load_reward_functions(
    names: list[str], model: Path | str | None, tokenizer: PreTrainedTokenizerBase
) -> list[RewardFunction]:
    """Load the functions called `names` (`module:function`), then the reward model at `model` where one is given.

    `tokenizer` is that of the model to be trained. Raises UserError for what cannot be imported or loaded, for a reward
    model with another tokenizer, and where there is no reward function at all.
    """
    functions: list[RewardFunction] = [import_reward_function(name) for name in names]
    if model is not None:
        functions.append(RewardModel(model, tokenizer))
    if not functions:
        raise UserError("nothing gives a reward: name a reward_model or reward_functions, or write a `reward` section")
    return functions


def import_reward_function(name: str) -> "CheckedReward":
    """Import the function named `module:function`. Raises UserError where there is none."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"reward_functions: {name!r} is not module:function, as in my_rewards:is_polite")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"reward_functions: {name}: {one_line(error)}. A module of your own must lie in the folder you start from"
        ) from error
    except Exception as error:  # of the user's own module, which runs when it is imported
        raise UserError(
            f"reward_functions: {name}: {module_name} cannot be imported: {describe_error(error)}"
        ) from error
    if not hasattr(module, function_name):
        raise UserError(f"reward_functions: {name}: the module {module_name} has no {function_name}")
    function = getattr(module, function_name)
    if not callable(function):
        raise UserError(f"reward_functions: {name} is not a function but a {type(function).__name__}")
    return CheckedReward(function, name)


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


class CheckedReward:
    """A user's reward function that returns finite numbers, one for each completion, or says what it does instead.

    An async function is run to its end. `lowest` and `highest` are those of all numbers since `forget`. Raises
    UserError that names the function.
    """

    lowest = math.inf
    highest = -math.inf

    def __init__(self, function: Callable[..., Any], name: str):
        self.function = function
        self.name = name
        self.__name__ = getattr(function, "__name__", type(function).__name__)  # under this name TRL logs its rewards

    def __call__(self, **arguments: Any) -> list[float | None]:
        self._check_signature(arguments)
        try:
            values = self.function(**arguments)
            if inspect.isawaitable(values):
                values = asyncio.run(_wait_for(values))
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise UserError(f"reward_functions: {self.name} raised {describe_error(error)}") from error
        numbers = self._check_values(values, len(arguments["completions"]))
        given = [number for number in numbers if number is not None]
        self.lowest = min([self.lowest, *given])
        self.highest = max([self.highest, *given])
        return numbers

    def forget(self) -> None:
        """Forget the numbers so far."""
        self.lowest = math.inf
        self.highest = -math.inf

    def _check_signature(self, arguments: dict[str, Any]) -> None:
        """Raise UserError where the function does not take the arguments that it is called with."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # some built-in functions have none
            return
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise UserError(
                f"reward_functions: {self.name}{signature} cannot be called: {error}. It gets {', '.join(arguments)} "
                "by name; write those that it needs and `**columns` for the others"
            ) from None

    def _check_values(self, values: Any, count: int) -> list[float | None]:
        """Return the values as numbers. Raises UserError unless they are `count` finite numbers or None."""
        remedy = "return a list with one finite number for each completion, or None where the function does not apply"
        if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
            raise UserError(f"reward_functions: {self.name} returned {_shorten(values)}; {remedy}")

        numbers: list[float | None] = []
        try:
            for value in values:
                if isinstance(value, (str, bytes)):
                    raise TypeError(f"{value!r} is text")
                numbers.append(None if value is None else float(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"reward_functions: {self.name} returned no list of numbers: {one_line(error)}; {remedy}"
            ) from None

        if len(numbers) != count:
            raise UserError(
                f"reward_functions: {self.name} returned {len(numbers)} numbers for {count} completions; {remedy}"
            )
        not_finite = [number for number in numbers if number is not None and not math.isfinite(number)]
        if not_finite:
            raise UserError(
                f"reward_functions: {self.name} returned {count} numbers for {count} completions, {len(not_finite)} of "
                f"them not finite ({not_finite[0]}); {remedy}"
            )
        return numbers


async def _wait_for(values: Any) -> Any:
    return await values


def _shorten(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"


def describe_error(error: Exception) -> str:
    """Return an error's kind and text in one line, with the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(error)}{where}"


def reward_columns(rows: dict[str, list[Any]], state: TrainerState) -> dict[str, Any]:
    """Return what reward functions get besides `prompts`, `completions` and `completion_ids`: every other column of
    the rows by its name, and what TRL adds."""
    columns: dict[str, Any] = {name: values for name, values in rows.items() if name not in PROMPT_COLUMNS}
    columns["trainer_state"] = state
    columns["log_extra"] = _ignore
    columns["log_metric"] = _ignore
    return columns


def _ignore(name: str, value: Any) -> None:
    """Take what a reward function logs and do nothing."""


def try_reward_functions(
    functions: list[RewardFunction], rows: Dataset, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Call each of the user's functions on the first rows, before any work, as it will be called in training.

    The completions are the data's own answers where there are any. Raises UserError for a function that cannot be
    called so, raises, or does not return one finite number for each completion.
    """
    own_functions = [function for function in functions if not isinstance(function, RewardModel)]
    scores = [try_reward_function(function, rows, tokenizer) for function in own_functions]
    if scores and len(scores) == len(functions):
        check_every_completion_scored(torch.stack(scores), functions)


def try_reward_function(
    function: RewardFunction, rows: Dataset, tokenizer: PreTrainedTokenizerBase | None = None
) -> torch.Tensor:
    """Call one function as `try_reward_functions` does; returns its scores (float32), NaN where it does not apply."""
    batch = rows[:ROWS_TRIED]
    prompts = batch["prompt"]
    texts = [_own_answer(row) for row in rows.select(range(len(prompts)))]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = reward_columns(batch, TrainerState())
    columns["completion_ids"] = [_encode(text, tokenizer) for text in texts]
    return _score(function, prompts, completions, columns)


def _own_answer(row: dict[str, Any]) -> str:
    """Return the answer that a row holds itself, else a short one."""
    answer = row.get("answer")
    if isinstance(answer, str) and answer.strip():
        return answer
    chosen = row.get("chosen")
    if isinstance(chosen, list) and chosen and isinstance(chosen[-1].get("content"), str):
        return chosen[-1]["content"]
    return "It is so."


def _encode(text: str, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if tokenizer is None:
        return list(range(len(text.split())))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def score_completions(
    functions: list[RewardFunction], prompts: list[Conversation], completions: list[Conversation], columns: dict
) -> torch.Tensor:
    """Score each completion by each function; returns float32 of shape (functions, completions), NaN where a function
    does not apply.

    Raises UserError for a completion to which no function gives a number.
    """
    scores = torch.stack([_score(function, prompts, completions, columns) for function in functions])
    check_every_completion_scored(scores, functions)
    return scores


def _score(
    function: RewardFunction, prompts: list[Conversation], completions: list[Conversation], columns: dict
) -> torch.Tensor:
    """Return a function's scores (float32, one for each completion); NaN where it does not apply."""
    if not isinstance(function, (CheckedReward, RewardModel)):
        function = CheckedReward(function, getattr(function, "__name__", repr(function)))
    values = function(prompts=prompts, completions=completions, **columns)
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def check_every_completion_scored(scores: torch.Tensor, functions: list[RewardFunction]) -> None:
    """Raise UserError where a completion has no score (functions, completions) that is a finite number."""
    names = ", ".join(getattr(function, "__name__", repr(function)) for function in functions)
    if scores.isinf().any():
        raise UserError(f"reward_functions: {names}: a reward is too large for float32; divide the rewards")
    without = int(scores.isnan().all(0).sum())
    if without:
        raise UserError(
            f"reward_functions: {names} returned no list of numbers: None for {without} of {scores.shape[1]} "
            "completions; at least one function has to return a number for each"
        )
