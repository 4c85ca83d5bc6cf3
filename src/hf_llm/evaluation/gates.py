"""Gates: bounds that the scores of an evaluation have to meet, as `evaluate.gates` names them.

    gates: {perplexity: "< 20", hellaswag.acc_norm: "> 0.3", dpo.answered_right: "> 80%"}
    gates: mission                                  # the figures of `MISSION`
    gates: {mission: true, training_cost: "< 100"}  # the same, with a target of yours

A bound holds for the last model of the evaluation, unless the key begins with a model's name. A metric that was not
measured fails. The value counts, not its interval.
"""

import json
import math
import operator
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_llm.core.console import print_main
from hf_llm.core.errors import GATES_MISSED_CODE, UserError
from hf_llm.core.similar_names import suggest_names
from hf_llm.evaluation.metrics import METRICS, metrics_in
from hf_llm.pipeline.stage_inputs import list_inputs
from hf_llm.pipeline.stages import MODELS
from hf_llm.pipeline.status import FINISHED, GATES_MISSED, STATUS, read_status, write_status

State = Literal["met", "missed", "not measured"]
MET: State = "met"
MISSED: State = "missed"
NOT_MEASURED: State = "not measured"

KEY = "evaluate.gates"
Gates = dict[str, Any] | str | None  # as a recipe has them

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
BOUND = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*")
PASS_AT = re.compile(r"pass@\d+")
FORMAT_SUFFIX = re.compile(r" \(.*\)$")  # of a benchmark that is run in several prompt formats: `gsm8k (chat)`

# Metrics that a results file has of each model, besides those of the view "scores".
MODEL_METRICS = ("loss", "memory_gib")
# What benchmarks are scored by, from 0 to 1 and from 0 to 100. Tasks of the harness have more: `task.metric` takes all.
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em", "mc1", "mc2", "rouge1", "rouge2", "rougeL", "rougeLsum")
POINTS = ("bleu", "chrf")
OTHER_METRICS = ("word_perplexity", "byte_perplexity")

# What is measured of a run, or of a service, and not of a model: where it is measured.
RUN_METRICS = {
    "human_score": "the arena's stars; this version's arena has votes and no stars",
    "user_satisfaction": "the ratings of a served model's users; this version does not serve",
    "uptime": "the log of a served model; this version does not serve",
    "cost_per_thousand_tokens": "the log of a served model and its price; this version does not serve",
    "training_cost": "the training logs of all stages; give the recipe `price_per_hour`",
}


HELD_OUT_ANSWERS = "held_out_answers"  # the benchmark of `text_metrics/held_out_answers.py`, which takes libraries


@dataclass(frozen=True)
class MissionFigure:
    """One figure of the mission's set of gates."""

    metric: str
    bound: str | None
    """None: a target that only the recipe can state."""
    measured: str
    """Where it is measured."""
    meaning: str
    """What meeting it means, and at which size it is to be expected."""


MISSION_SET = "mission"
MISSION = (
    MissionFigure(
        "perplexity", "< 20", "the test split of the run's corpus",
        "per token of the run's own tokenizer, so it compares with no other tokenizer's. On open web text it takes "
        "hundreds of millions of parameters (GPT-2 reaches 19.9 on WikiText-2 at 762M); narrow text, or a small "
        "vocabulary, takes far fewer.",
    ),
    MissionFigure(
        "bleu", "> 30", "held-out SFT answers and `evaluate.references`",
        "sacrebleu's units, 0.3 in others. A figure for translation (the Transformer of 2017: 28.4 for English to "
        "German); free answers to open questions stay far below it at any size.",
    ),
    MissionFigure(
        "human_score", "> 4", "stars of the arena, 1 to 5",
        "people read the answers; expect it of chat models from about 1B parameters, or on a narrow subject.",
    ),
    MissionFigure(
        "user_satisfaction", "> 4.5", "ratings of a served model's users, 1 to 5",
        "says as much about what the users ask as about the model, at any size.",
    ),
    MissionFigure(
        "ms_per_token", "< 100", "one sequence on the machine that evaluates",
        "ten tokens a second. Each token reads all weights: two CPU cores at 20 GB/s do it to 1B parameters in 16 "
        "bits, any GPU far beyond.",
    ),
    MissionFigure(
        "memory_gib", "< 16", "the process that evaluates, or its GPU",
        "weights in 16 bits take 2 GB for 1B parameters, so about 7B with their cache.",
    ),
    MissionFigure(
        "uptime", "> 99.9%", "the log of a served model",
        "43 minutes of outage in a month; does not depend on the size.",
    ),
    MissionFigure(
        "cost_per_thousand_tokens", None, "the log of a served model and its price",
        "grows with the parameters; state a target of your own.",
    ),
    MissionFigure(
        "training_cost", None, "the training logs of all stages, at `price_per_hour`",
        "grows with parameters times tokens; state a target of your own.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """A bound on a value: `< 20`, `>= 80%`."""

    text: str
    comparison: str
    limit: float
    is_percent: bool

    def holds_for(self, value: float) -> bool:
        """Whether a value meets it; not a number meets none."""
        return not math.isnan(value) and OPERATORS[self.comparison](value, self.limit)

    def find_worst(self, values: Iterable[tuple[float, str]]) -> tuple[float, str]:
        """Return the value, with its name, that is furthest from meeting the bound."""
        ordered = sorted(values, key=lambda pair: (not math.isnan(pair[0]), pair[0]))
        is_upper = self.comparison.startswith("<") and not math.isnan(ordered[0][0])
        return ordered[-1] if is_upper else ordered[0]

    def format_value(self, value: float) -> str:
        """Write a value in the bound's own unit."""
        return f"{value:.4g}" if not self.is_percent else f"{100 * value:.4g}%"


@dataclass(frozen=True)
class Gate:
    """One bound of the recipe."""

    key: str
    """As the recipe has it: `perplexity`, `dpo.answered_right`, `hellaswag.acc_norm`."""
    bound: Bound | None
    """None where no target is stated."""


@dataclass(frozen=True)
class Outcome:
    """Whether a gate is met."""

    key: str
    bound: str
    """As the recipe has it; empty where no target is stated."""
    state: State
    value: str
    """What was measured, in the bound's unit; empty where nothing was."""
    subject: str
    """The model, and the benchmark where the key does not name it; empty for what is measured of the run."""
    reason: str = ""
    """Why it was not measured."""

    def describe(self) -> str:
        """Say it in one line: `missed: perplexity of dpo is 25.3, bound < 20`."""
        subject = f" of {self.subject}" if self.subject else ""
        bound = f", bound {self.bound}" if self.bound else ""
        if self.state == NOT_MEASURED:
            return f"{self.state}: {self.key}{subject}{bound} ({self.reason})"
        return f"{self.state}: {self.key}{subject} is {self.value}{bound}"


def parse_gates(gates: Gates) -> list[Gate]:
    """Read the gates of a recipe; those of a ready set first. Raises UserError that names each bound it cannot read."""
    bounds, problems = _read_bounds(gates)
    if problems:
        raise UserError("\n  ".join(problems))
    return [Gate(key, bound) for key, bound in bounds.items()]


def find_gate_problems(tree: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the gates in a recipe's tree, each with its key: unreadable bounds, unknown metrics."""
    bounds, problems = _read_bounds(gates_of(tree))
    if not bounds:
        return problems
    models = [name for name in list_inputs("evaluation", dict(tree)) if name != "tokens"]
    tasks = list_benchmark_names(tree)
    has_unnamed_tasks = any(task.endswith((".yaml", ".yml")) for task in tasks)  # a file's task has its own name
    for key, bound in bounds.items():
        problem = _find_unknown_metric(key, models, tasks) if not has_unnamed_tasks else None
        problem = problem or _find_wrong_unit(key, bound)
        if problem:
            problems.append(f"{KEY}.{key}: {problem}")
    return problems


def list_benchmark_names(tree: Mapping[str, Any]) -> list[str]:
    """List the names of the benchmarks that a recipe's tree asks for, those of its texts with references too."""
    section = tree["evaluate"]
    names = [HELD_OUT_ANSWERS]
    for entry in section.get("tasks") or []:
        names.append(str(entry["name"] if isinstance(entry, dict) else entry))
    for entry in section.get("references") or []:
        file = entry.get("path") or entry.get("hypotheses") or entry.get("prompts")
        names.append(str(entry.get("name") or Path(str(file)).stem))
    return names


def check_gates(results: Mapping[str, Any], gates: Gates, measured: Mapping[str, float] | None = None) -> list[Outcome]:
    """Compare the results of an evaluation, as results.json has them, with the gates of a recipe.

    `measured` are the values of the run itself (`read_run_measurements`).
    """
    return [_check_gate(gate, results, measured or {}) for gate in parse_gates(gates)]


def check_run_gates(root: Path, tree: Mapping[str, Any]) -> list[Outcome]:
    """Compare what a run has measured, in its folder `root`, with the gates of its recipe; empty without gates.

    Raises UserError that lists what is wrong with the gates.
    """
    problems = find_gate_problems(tree)
    if problems:
        raise UserError("\n  ".join(problems))
    gates = gates_of(tree)
    if not gates:
        return []
    try:
        results = json.loads((root / "evaluation" / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        results = {}
    return check_gates(results, gates, read_run_measurements(root))


def enforce_gates(root: Path, tree: Mapping[str, Any]) -> None:
    """Print whether a run meets its gates, write it to `run_status.json` in its folder, and exit with 3 where it does
    not. Without gates only a status of earlier ones is removed."""
    outcomes = check_run_gates(root, tree)
    if not outcomes:
        if read_status(root):
            (root / STATUS).unlink()
        return
    failed = [outcome.describe() for outcome in outcomes if outcome.state != MET]
    print_main(f"\nGates: {len(outcomes) - len(failed)} of {len(outcomes)} are met")
    for outcome in outcomes:
        print_main(f"  {outcome.describe()}")
    if not failed:
        write_status(root, FINISHED, None, gates=f"{len(outcomes)} are met")
        return
    write_status(root, GATES_MISSED, None, exit_code=GATES_MISSED_CODE, missed=failed)
    sys.exit(GATES_MISSED_CODE)


def gates_of(tree: Mapping[str, Any]) -> Gates:
    """Return the gates in a recipe's tree; None where it has none."""
    section = tree.get("evaluate")
    return section.get("gates") if isinstance(section, dict) else None


def read_run_measurements(root: Path) -> dict[str, float]:
    """Return what was measured of a run itself, by metric: what training all its models has cost, where prices are
    known."""
    costs = []
    for folder in MODELS:
        path = root / folder / "trainer_state.json"
        if not path.exists():
            continue
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        logged = [entry["cost"] for entry in history if isinstance(entry.get("cost"), int | float)]
        if not logged:
            return {}  # a sum without it would be too small
        costs.append(logged[-1])
    return {"training_cost": sum(costs)} if costs else {}


# ---- reading the recipe


def _read_bounds(gates: Gates) -> tuple[dict[str, Bound | None], list[str]]:
    """Return the bounds by key, and what is wrong with those that cannot be read."""
    if not gates:
        return {}, []
    if isinstance(gates, str):
        gates = {gates: True}
    bounds: dict[str, Bound | None] = {}
    problems = []
    for key, value in _flatten(gates):
        if value is True:
            if key == MISSION_SET:
                bounds = {figure.metric: _parse_bound(figure.bound) for figure in MISSION} | bounds
            else:
                problems.append(f"{KEY}: there is no set of gates called {key!r}; write {MISSION_SET}, or bounds")
            continue
        bound = _parse_bound(value)
        if bound is None:
            problems.append(f'{KEY}.{key}: cannot read {value!r} as a bound; write one in quotes: "< 20" or "> 80%"')
        bounds[key] = bound
    return bounds, problems


def _flatten(gates: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each gate by its full key: `{dpo: {perplexity: "< 20"}}` is `dpo.perplexity`."""
    for key, value in gates.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_bound(value: Any) -> Bound | None:
    """Return the bound that a text states; None where it states none."""
    match = BOUND.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    comparison, number, percent = match.groups()
    limit = float(number.replace("_", ""))
    return Bound(" ".join(value.split()), comparison, limit / 100 if percent else limit, bool(percent))


def _split_model(key: str, models: Collection[str]) -> tuple[str | None, str]:
    """Return the model that a key begins with, None without one, and the rest of the key."""
    for model in sorted(models, key=len, reverse=True):  # `base` begins the name of no model called `base.2`
        if key.startswith(f"{model}."):
            return model, key.removeprefix(f"{model}.")
    return None, key


def _list_model_metrics() -> list[str]:
    return [*(metric.key for metric in metrics_in("scores")), *MODEL_METRICS]


def _find_unknown_metric(key: str, models: Collection[str], tasks: Collection[str]) -> str | None:
    """Return what is wrong with the name of a metric, with the nearest one; None where it may be measured."""
    _, name = _split_model(key, models)
    metrics = [*_list_model_metrics(), *RUN_METRICS, *SHARES, *POINTS, *OTHER_METRICS]
    if name in metrics or PASS_AT.fullmatch(name):
        return None
    for task in tasks:
        # A group has the tasks `<group>_<subject>`; a task in two formats is called `<task> (chat)`.
        if name == task or re.match(rf"{re.escape(task)}[._ ]", name):
            return None
    candidates = [*metrics, *tasks, *(f"{model}.{metric}" for model in models for metric in _list_model_metrics())]
    known = f"known: {', '.join([*metrics, *tasks])}"
    hint = suggest_names(key, candidates) or suggest_names(name, candidates, otherwise=known)
    return f"no such metric, and no such task in evaluate.tasks; {hint}"


def _find_wrong_unit(key: str, bound: Bound | None) -> str | None:
    """Return what is wrong with a bound that only another unit can mean; None where it may be meant."""
    name = key.rpartition(".")[2]
    if bound is None:
        return None
    if name in POINTS and (bound.is_percent or 0 < bound.limit <= 1):
        points = 100 * bound.limit
        return f"{name} is from 0 to 100 here; write {bound.comparison} {points:g}"
    is_share = name in SHARES or PASS_AT.fullmatch(name) or (name in METRICS and METRICS[name].is_share)
    if is_share and bound.limit > 1:
        return f"{bound.text} is beyond a share, from 0 to 1; write {bound.comparison} {bound.limit:g}%"
    return None


# ---- comparing with results


def _check_gate(gate: Gate, results: Mapping[str, Any], measured: Mapping[str, float]) -> Outcome:
    models = results.get("models", {})
    model, name = _split_model(gate.key, models)
    if gate.bound is None:
        reason = f'no target is stated; write {gate.key}: "< ..." below {KEY}'
        return Outcome(gate.key, "", NOT_MEASURED, "", "", reason)
    if name in RUN_METRICS:
        if name not in measured:
            reason = f"it is measured by {RUN_METRICS[name]}"
            return Outcome(gate.key, gate.bound.text, NOT_MEASURED, "", "", reason)
        return _compare(gate.key, gate.bound, measured[name], "")
    if not models:
        return Outcome(gate.key, gate.bound.text, NOT_MEASURED, "", "", "no model was evaluated")

    model = model or list(models)[-1]
    values = list(_find_values(name, models[model]))
    if not values:
        reason = _explain_missing(name, models[model])
        return Outcome(gate.key, gate.bound.text, NOT_MEASURED, "", model, reason)
    value, benchmark = gate.bound.find_worst(values)
    return _compare(gate.key, gate.bound, value, f"{model} ({benchmark})" if benchmark else model)


def _compare(key: str, bound: Bound, value: float, subject: str) -> Outcome:
    state = MET if bound.holds_for(value) else MISSED
    return Outcome(key, bound.text, state, bound.format_value(value), subject)


def _find_values(name: str, scores: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Yield the values of one model that a key means, each with the benchmark where the key does not say which.

    A key is one of the model's own metrics, a benchmark (its primary score), a group (the mean of its tasks, by their
    documents), one of these with a metric, or a metric alone: then every benchmark that has it counts.
    """
    if isinstance(scores.get(name), int | float):
        yield float(scores[name]), ""
        return

    benchmarks = {title: result for title, result in scores.get("benchmarks", {}).items() if result.get("scores")}
    named, _, metric_behind = name.rpartition(".")
    for title, metric in ((name, None), (named, metric_behind)):
        if title in benchmarks:
            yield from ((value, "") for value, _ in _read_scores(benchmarks[title], metric))
            return
        formats = [key for key in benchmarks if FORMAT_SUFFIX.sub("", key) == title]
        if formats:
            yield from ((value, key) for key in formats for value, _ in _read_scores(benchmarks[key], metric))
            return
        members = [result for result in benchmarks.values() if title and result.get("group") == title]
        values = [pair for result in members for pair in _read_scores(result, metric)]
        if values:
            documents = sum(count for _, count in values)
            yield sum(value * count for value, count in values) / documents, f"mean of {len(values)} tasks"
            return

    for title, result in benchmarks.items():
        yield from ((value, title) for value, _ in _read_scores(result, name))


def _read_scores(result: Mapping[str, Any], metric: str | None) -> list[tuple[float, int]]:
    """Return the value of a benchmark's metric, of its primary one for None, with its documents; empty without it."""
    scores = [score for score in result["scores"] if score["metric"] == metric]
    if metric is None:
        scores = [score for score in result["scores"] if score.get("is_primary")] or result["scores"]
    return [(float(score["value"]), score["documents"]) for score in scores[:1]]


def _explain_missing(name: str, scores: Mapping[str, Any]) -> str:
    """Say why a metric has no value: a benchmark that was not run has a reason, what was not asked for has none."""
    for title, result in scores.get("benchmarks", {}).items():
        asked = {title, FORMAT_SUFFIX.sub("", title), result.get("group")}
        if result.get("not_run") and (name in asked or name.rpartition(".")[0] in asked):
            return result["not_run"]
    return "the evaluation has no such value"
