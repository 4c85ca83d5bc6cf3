"""How the completions of a problem are generated: greedily for one, sampled from a fixed seed for several."""

from dataclasses import dataclass, field
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.similar_names import suggest_names
from hf_llm.evaluation.benchmark import TaskSettings

MAX_NEW_TOKENS = 512
SEED = 0
TEMPERATURE = 0.8  # of Chen et al. 2021 for pass@100
TOP_P = 0.95

# Keys of gen_kwargs: the harness's names, and those of transformers' GenerationConfig.
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens")
STOP_KEY = "until"
SAMPLING_KEYS = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class CompletionSettings:
    """How completions are generated."""

    stops: list[str]
    """Where a completion of plain text ends."""
    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: dict[str, Any] = field(default_factory=dict)
    """Arguments of `generate`."""

    @property
    def is_greedy(self) -> bool:
        """Whether the same prompt always has the same completion."""
        return not self.sampling["do_sample"]

    def describe(self) -> str:
        """Say how tokens are chosen: `greedy`, `do_sample True, temperature 0.8, seed 0`."""
        others = {key: value for key, value in self.sampling.items() if key != "do_sample"}
        parts = ["greedy" if self.is_greedy else "sampled", *(f"{key} {value}" for key, value in others.items())]
        if not self.is_greedy:
            parts.append(f"seed {SEED}")
        return ", ".join(parts)


def read_completion_settings(task: TaskSettings, stops: list[str]) -> CompletionSettings:
    """Return the settings of a task: those of its `gen_kwargs`, else greedy for one sample, and for several a
    temperature of 0.8 and a top_p of 0.95.

    Raises UserError for a key that is not known, a value that cannot be, and several samples that would be the same.
    """
    known = [*LENGTH_KEYS, STOP_KEY, *SAMPLING_KEYS]
    for key in task.gen_kwargs:
        if key not in known:
            hint = suggest_names(key, known, otherwise=f"there are {', '.join(known)}")
            raise UserError(f"evaluate.tasks: {task.name}: gen_kwargs.{key}: there is no such setting; {hint}")

    length = MAX_NEW_TOKENS
    for key in LENGTH_KEYS:
        length = task.gen_kwargs.get(key, length)
    if not isinstance(length, int) or length < 1:
        raise UserError(f"evaluate.tasks: {task.name}: gen_kwargs: {length!r} new tokens; give a whole number from 1")
    until = task.gen_kwargs.get(STOP_KEY, stops)
    stops = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise UserError(f"evaluate.tasks: {task.name}: gen_kwargs.until: {until!r} is not a list of texts")
    return CompletionSettings(stops, length, choose_sampling(task))


def choose_sampling(task: TaskSettings) -> dict[str, Any]:
    """Return the arguments of `generate` that choose tokens. Raises UserError where all samples would be the same."""
    given = {key: task.gen_kwargs[key] for key in SAMPLING_KEYS if key in task.gen_kwargs}
    temperature = given.get("temperature", TEMPERATURE if task.samples > 1 else 0)
    if not isinstance(temperature, int | float) or temperature < 0:
        raise UserError(f"evaluate.tasks: {task.name}: gen_kwargs.temperature is {temperature!r}; give a number from 0")
    do_sample = given.get("do_sample", temperature > 0) and temperature > 0
    if not do_sample:
        if task.samples > 1:
            raise UserError(
                f"evaluate.tasks: {task.name}: samples: {task.samples} would be {task.samples} times the same "
                "completion, since gen_kwargs ask for greedy ones; give a temperature above 0, or leave samples out"
            )
        penalty = {key: given[key] for key in ("repetition_penalty",) if key in given}
        return {"do_sample": False, **penalty}
    # top_k 0 is no limit: transformers' own default would be one of 50.
    defaults = {"do_sample": True, "temperature": float(temperature), "top_p": TOP_P, "top_k": 0}
    return {**defaults, **given, "do_sample": True, "temperature": float(temperature)}
