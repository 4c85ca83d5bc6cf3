"""One number for many benchmarks: the mean of their scores, each centred on chance.

A task's centred score is (score - chance) / (1 - chance): 0 for a model that guesses, 1 for one without a mistake (Li
et al. 2024, DataComp-LM, https://arxiv.org/abs/2406.11794, where the mean over 22 tasks is called CORE). Chance is
computed from the documents here; the paper takes fixed values, some of which are wrong.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_llm.core.format import format_value

NORMAL_95 = 1.959964  # standard deviations of a normal distribution on each side of its 95%
FORMAT_SUFFIX = re.compile(r" \(.*\)$")  # of a task that is run in several prompt formats: `gsm8k (chat)`


MAX_NAMES_SHOWN = 6  # benchmarks that a line lists by name; more are counted


@dataclass(frozen=True)
class CoreTask:
    """One of the 22 tasks of CORE."""

    names: tuple[str, ...]
    """What the harness calls it; the first one is the paper's own way to score it."""
    shots: int


# The paper's table of CORE tasks. The harness has no Jeopardy: a task file of that name has to be given.
CORE = (
    CoreTask(("agieval_lsat_ar",), 3),
    CoreTask(("arc_easy",), 10),
    CoreTask(("arc_challenge",), 10),
    CoreTask(("bigbench_qa_wikidata_generate_until",), 10),
    CoreTask(("bigbench_dyck_languages_generate_until", "bigbench_dyck_languages_multiple_choice"), 10),
    CoreTask(("bigbench_operators_generate_until",), 10),
    CoreTask(("bigbench_repeat_copy_logic_generate_until",), 10),
    CoreTask(("bigbench_cs_algorithms_generate_until", "bigbench_cs_algorithms_multiple_choice"), 10),
    CoreTask(
        ("bigbench_language_identification_multiple_choice", "bigbench_language_identification_generate_until"), 10
    ),
    CoreTask(("boolq",), 10),
    CoreTask(("commonsense_qa",), 10),
    CoreTask(("copa",), 0),
    CoreTask(("coqa",), 0),
    CoreTask(("hellaswag",), 0),
    CoreTask(("hellaswag",), 10),
    CoreTask(("jeopardy",), 10),
    CoreTask(("lambada_openai",), 0),
    CoreTask(("openbookqa",), 0),
    CoreTask(("piqa",), 10),
    CoreTask(("squad_completion", "squadv2"), 10),
    CoreTask(("wsc273",), 0),
    CoreTask(("winogrande",), 0),
)


@dataclass(frozen=True)
class Aggregate:
    """The mean over tasks of what lies above chance."""

    name: str
    """CORE where exactly its tasks are there, else `centred mean of 5 tasks`."""
    value: float
    """0: a model that guesses; 1: no mistake."""
    low: float | None
    """The 95% interval, from the documents of each task; None where a task has none."""
    high: float | None
    tasks: dict[str, float]
    """The centred score of each task. A group is one task: the mean of those that belong to it."""
    left_out: dict[str, str]
    """The benchmarks that do not count, each with the reason."""

    def describe(self) -> str:
        """Say it in one line: `centred mean of 5 tasks 12.3% (10.1% to 14.5%); 0% is chance`."""
        value = format_value(self.value, ".1%")
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" ({format_value(self.low, '.1%')} to {format_value(self.high, '.1%')})"
        names = list(self.left_out)
        shown = ", ".join(names) if len(names) <= MAX_NAMES_SHOWN else f"{len(names)} benchmarks"
        left_out = f"; not counted: {shown}" if names else ""
        return f"{self.name} {value}{interval}; 0% is chance{left_out}"

    def to_json(self) -> dict[str, Any]:
        """Return it as a plain value."""
        return asdict(self)


@dataclass(frozen=True)
class _CentredScore:
    value: float
    deviation: float | None
    """The standard deviation of the score; None where its interval is not known."""


def centre_scores(benchmarks: Mapping[str, Mapping[str, Any]]) -> Aggregate | None:
    """Return the mean of a model's benchmarks, as results.json has them by name; None where none counts.

    A benchmark counts by its primary score, which has to be a share where more is better. Without a value for chance it
    is 0, as for an answer that is generated. Tasks that are run in several prompt formats count once.
    """
    left_out = {}
    members: dict[tuple[str, int], list[_CentredScore]] = {}  # by task, or group, and shots
    for name, result in benchmarks.items():
        reason = _find_reason_to_leave_out(result)
        if reason:
            left_out[name] = reason
            continue
        task = (result.get("group") or FORMAT_SUFFIX.sub("", name), result.get("settings", {}).get("shots") or 0)
        members.setdefault(task, []).append(_centre(_primary(result)))
    if not members:
        return None

    means = {task: _mean(scores) for task, scores in members.items()}
    overall = _mean(list(means.values()))
    low = high = None
    if overall.deviation is not None:
        low = overall.value - NORMAL_95 * overall.deviation
        high = overall.value + NORMAL_95 * overall.deviation
    is_core = len(members) == len(CORE) and not find_missing_core_tasks(members)
    plural = "" if len(means) == 1 else "s"
    return Aggregate(
        name="CORE" if is_core else f"centred mean of {len(means)} task{plural}",
        value=overall.value,
        low=low,
        high=high,
        tasks={_title_task(task, members): score.value for task, score in means.items()},
        left_out=left_out,
    )


def find_missing_core_tasks(tasks: Collection[tuple[str, int]]) -> list[CoreTask]:
    """Return the tasks of CORE that are not among these, given by name and number of shots."""
    missing = []
    for core_task in CORE:
        if not any((name, core_task.shots) in tasks for name in core_task.names):
            missing.append(core_task)
    return missing


def _title_task(task: tuple[str, int], tasks: Collection[tuple[str, int]]) -> str:
    """Return the name of a task, with its shots where it is there with several numbers of them."""
    name, shots = task
    is_alone = sum(other == name for other, _ in tasks) == 1
    return name if is_alone else f"{name}, {shots} shots"


def _find_reason_to_leave_out(result: Mapping[str, Any]) -> str | None:
    if result.get("not_run"):
        return f"not run: {result['not_run']}"
    if not result.get("scores"):
        return "no score"
    score = _primary(result)
    if score.get("better") != "higher":
        return f"{score['metric']} is not a score where more is better"
    is_share = str(score.get("number_format", "")).endswith("%")
    if not is_share or not 0 <= score["value"] <= 1:
        return f"{score['metric']} is not a share from 0 to 1"
    if (score.get("chance") or 0) >= 1:
        return "every answer is right by chance"
    return None


def _primary(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((score for score in result["scores"] if score.get("is_primary")), result["scores"][0])


def _centre(score: Mapping[str, Any]) -> _CentredScore:
    chance = score.get("chance") or 0.0
    deviation = None
    if score.get("low") is not None and score.get("high") is not None:
        deviation = (score["high"] - score["low"]) / (2 * NORMAL_95) / (1 - chance)
    return _CentredScore((score["value"] - chance) / (1 - chance), deviation)


def _mean(scores: list[_CentredScore]) -> _CentredScore:
    """Return the mean of scores whose documents are independent."""
    deviations = [score.deviation for score in scores]
    deviation = None
    if None not in deviations:
        deviation = math.sqrt(float(np.sum(np.square(np.asarray(deviations, float))))) / len(scores)
    return _CentredScore(float(np.mean([score.value for score in scores])), deviation)
