"""What every benchmark of the evaluation stage has in common: its settings, the documents it scores, and its scores.

A benchmark is a set of documents with a way to score a model's response to each: a task of the Language Model
Evaluation Harness, HumanEval, BLEU on held-out rows. `hf_llm.evaluation.run_benchmark` runs one for a model. Plain
values: nothing here imports torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_llm.core.format import format_value
from hf_llm.evaluation.intervals import bootstrap_interval, wilson_interval

if TYPE_CHECKING:
    from hf_llm.evaluation.evaluated_model import EvaluatedModel
    from hf_llm.evaluation.journal import Journal

PromptFormat = Literal["auto", "plain", "chat", "both"]


@dataclass
class TaskSettings:
    """One entry of `evaluate.tasks`."""

    name: str
    """A task or group of tasks of the Language Model Evaluation Harness (`hellaswag`, `mmlu`), a YAML file of a task of
    that kind, or one of ours: humaneval, mbpp, crows_pairs, winobias, bbq, toxicity."""
    data: str | None = None
    """A local file or folder that holds its rows; default: what `evaluate.task_data` has of that name, else the Hub."""
    shots: int | None = None
    """Solved examples before each question; default: as the task says, else none."""
    limit: int | None = None
    """How many documents to score, the first ones; default: all."""
    prompt_format: PromptFormat = "auto"
    """`plain` text, the model's `chat` template, or `both`, one after the other; `auto` takes the template for models
    that are trained to chat."""
    samples: int = 1
    """Completions of each problem that are run, for pass@k; continuations of each prompt of toxicity."""
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings of generation that replace the task's own, such as `max_gen_toks` and `temperature`."""
    classifier: str | None = None
    """For toxicity: the folder or Hub id of a text classifier that says what is toxic; default: a list of words."""
    classifier_label: str | None = None
    """The classifier's label that means toxic; default: the one that is called so."""

    def __post_init__(self) -> None:
        for key in ("shots", "limit", "samples"):
            value = getattr(self, key)
            smallest = 0 if key == "shots" else 1
            if value is not None and value < smallest:
                raise ValueError(f"{key} is {value}; give a whole number from {smallest}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number that a benchmark gives a model."""

    metric: str
    """What it is: `acc`, `acc_norm`, `exact_match`, `pass@1`, `bleu`."""
    value: float
    documents: int
    """How many documents it is measured on."""
    low: float | None = None
    """The 95% interval; None where it cannot be said."""
    high: float | None = None
    chance: float | None = None
    """What a model that guesses would have, on these documents; None where there is no such value."""
    majority: float | None = None
    """What a model would have that always gives the label that is right most often."""
    better: Literal["higher", "lower"] | None = "higher"
    number_format: str = ".1%"
    """How a value is shown (`hf_llm.core.format.format_value`)."""
    is_primary: bool = False
    """Whether it stands for the benchmark where there is room for one number."""

    @property
    def is_at_chance(self) -> bool:
        """Whether it is not distinguishable from chance: the interval holds it, or a constant label does as well."""
        if self.chance is None or self.low is None or self.high is None:
            return False
        guesses = [self.chance] if self.majority is None else [self.chance, self.majority]
        return any(self.low <= guess <= self.high for guess in guesses)

    def format_number(self, value: float) -> str:
        """Write a value of this kind, such as the chance."""
        return format_value(value, self.number_format)

    def format_value(self) -> str:
        """Write the value with its interval: `31.2% (27.3% to 35.4%)`."""
        text = self.format_number(self.value)
        if self.low is None or self.high is None:
            return text
        return f"{text} ({self.format_number(self.low)} to {self.format_number(self.high)})"

    def to_json(self) -> dict[str, Any]:
        """Return it as a plain value, with `at_chance`."""
        return {**asdict(self), "at_chance": self.is_at_chance}


def score_shares(
    metric: str,
    values: Sequence[float],
    *,
    choices: Sequence[int] | None = None,
    labels: Sequence[Any] | None = None,
    is_primary: bool = False,
) -> Score:
    """Return the mean of a share that each document has (0 or 1, or between) as a score, with its Wilson interval.

    `choices` is how many answers each document offers: chance is the mean of one by that. `labels` are the answers that
    are right, as positions: the majority is the share of the most frequent one, given only where all documents offer
    as many, since a position means nothing else.
    """
    documents = len(values)
    low, high = wilson_interval(float(np.sum(values)), documents)
    chance = majority = None
    if choices is not None:
        chance = float(np.mean([1 / number for number in choices]))
    if labels is not None and (choices is None or len(set(choices)) == 1):
        _, counts = np.unique(np.asarray(labels, dtype=str), return_counts=True)
        majority = float(counts.max()) / documents
    return Score(
        metric=metric,
        value=float(np.mean(values)),
        documents=documents,
        low=low,
        high=high,
        chance=chance,
        majority=majority,
        is_primary=is_primary,
    )


def score_means(
    metric: str,
    values: Sequence[float],
    *,
    better: Literal["higher", "lower"] | None = "higher",
    number_format: str = ".3f",
    is_primary: bool = False,
) -> Score:
    """Return the mean of a number that each document has as a score, with its bootstrap interval over documents."""
    numbers = np.asarray(values, dtype=float)
    interval = bootstrap_interval(len(numbers), lambda draws: draws @ numbers / draws.sum(axis=1))
    low, high = interval or (None, None)
    return Score(
        metric=metric,
        value=float(numbers.mean()),
        documents=len(numbers),
        low=low,
        high=high,
        better=better,
        number_format=number_format,
        is_primary=is_primary,
    )


class Benchmark(ABC):
    """A set of documents with a way to score a model on them."""

    name: str
    """What it is called in results, unique in an evaluation: `hellaswag`, `mmlu_anatomy`, `hellaswag (chat)`."""
    group: str = ""
    """The group it was asked for by (`mmlu`); empty where it was asked for itself."""
    settings: dict[str, Any]
    """What is shown beside its scores: `shots`, `prompt_format`, `limit`, where its rows are from."""

    @abstractmethod
    def identify(self) -> dict[str, Any]:
        """Return everything but the model that its scores depend on: settings, digests of its files, a version of the
        method. A benchmark that was scored with the same is not scored again."""

    @abstractmethod
    def score_documents(self, model: "EvaluatedModel", journal: "Journal") -> None:
        """Score the documents of this process that the journal lacks, and append them batch by batch.

        A row of the journal has `id`, unique in the benchmark, `prompt`, `response`, `target` (what is right) and
        `scores`, numbers by metric; and what else `summarize` needs.
        """

    @abstractmethod
    def summarize(self, rows: list[dict[str, Any]]) -> list[Score]:
        """Return the scores of these rows of the journal, of all documents or of a part of them; the primary first."""

    @abstractmethod
    def read_texts(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the id of each document with the texts that a model must not have been trained on: question, answer."""

    def describe_documents(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return what else there is to say of the documents of these rows, a sentence each: how many were cut, what
        programs came to."""
        return []


class NotRunError(Exception):
    """A benchmark cannot be scored: what it needs and lacks. The others of the evaluation are scored all the same."""
