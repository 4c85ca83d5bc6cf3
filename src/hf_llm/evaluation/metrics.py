"""The metrics of a training and of an evaluation, one record each: every place that shows a metric is derived from it.

A label says what was measured, on which texts, and which values are better; a share has the number of what it counts.

Those places are the console, the live page, the report, the model card and the table of an evaluation. To add a metric,
log it under a key and give it a record in `_METRICS` (docs/layout.md). Plain values: nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from string import Formatter
from typing import Any, Literal

from hf_llm.core.format import format_value, without_negative_zero

View = Literal[
    "progress line",  # of the console, while a model trains
    "evaluation line",  # of the console, after an evaluation
    "terminal curve",  # of `python -m hf_llm.watch`
    "tile",  # a number at the top of the live page
    "table of runs",  # of the live page, where it shows several runs; always a tile too
    "report",  # a number at the top of the report: the median over pretraining
    "model card",  # the value of the last evaluation
    "scores",  # of the evaluation stage, which logs the key without a prefix
    "score of the last model",  # a number at the top of the report: how good is what came out; a score too
]


TEST_SPLIT = "the test split"


@dataclass(frozen=True)
class Chart:
    """A chart of the report and of the live page."""

    title: str = ""
    """Its heading; empty for the heading of its one metric."""
    _: KW_ONLY
    from_zero: bool = False
    """Whether the axis of values starts at zero, whatever the data."""
    note: str = ""
    """What stands beside the heading: which values are better."""
    marks_alerts: bool = False
    """Whether the live page marks alerts in it."""
    hidden_by: str = ""
    """The title of a chart that shows the same curve better: where that one has data, this one is left out."""


@dataclass(frozen=True)
class Metric:
    """What the rest of the package needs to know of one metric."""

    key: str
    """Its key in Trainer's log, where the value on the validation split has the prefix `eval_`; of a score, its key in
    the results of the evaluation stage."""
    title: str
    """What was measured, in a reader's words."""
    format: str
    """How a line of the console and a number of a page show a value (`hf_llm.core.format.format_value`)."""
    _: KW_ONLY
    unit: str = ""
    """The unit, where the title does not say it."""
    table_format: str = ""
    """How a table that compares models shows a value; empty for `format`."""
    better: Literal["lower", "higher"] | None = None
    """Which values are better; None where neither is."""
    counted: tuple[tuple[str, str], ...] = ()
    """What a share or a mean counts: keys of the number in the same log entry, each with its noun. The first that was
    logged is shown."""
    chance: float | None = None
    """The value of a model that guesses; None where that depends on the data, or there is none."""
    limit: tuple[float, str] | None = None
    """The largest possible value, and what it is called; a larger one, which was measured wrong, is shown with that."""
    measured_on: Literal["training", "validation", "both"] = "both"
    """The data whose values are shown."""
    can_smooth: bool = True
    """Whether the live page may smooth its training curve: not a schedule, a sum so far or a maximum."""
    scored_on: str = TEST_SPLIT
    """What the evaluation stage measures it on; empty where the title says it."""
    is_measured_once: bool = False
    """Whether it is measured on the finished model only, and has no prefix `eval_` in its key."""
    chart: Chart | None = None
    """The chart that it is drawn in. Metrics with equal charts share one."""
    legend: str = ""
    """The name of its line in a chart that it shares with other metrics; empty for training and validation."""
    label: str = ""
    """How the console names a value: `lr {}`."""
    validation_label: str = ""
    """How the console names the last validation value beside the training value; empty to leave it out there."""
    views: tuple[View, ...] = ()
    """Where else than in its chart it is shown."""

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def direction(self) -> str:
        """Which values are better, in words; empty where neither is."""
        return f"{self.better} is better" if self.better else ""

    @property
    def is_share(self) -> bool:
        """Whether a value is a share, which is written in per cent."""
        return self.format.endswith("%")

    @property
    def validation_key(self) -> str:
        """The key in Trainer's log of the value on the validation split."""
        return self.key if self.is_measured_once else f"eval_{self.key}"

    @property
    def chart_lines(self) -> list[tuple[str, str]]:
        """Its lines in its chart, as (legend, key in Trainer's log)."""
        training = (self.legend or "training", self.key)
        validation = (self.legend or "validation", self.validation_key)
        if self.measured_on == "both":
            return [training, validation]
        return [validation if self.measured_on == "validation" else training]

    def format_value(self, value: float) -> str:
        """Write a value for a line of the console or a number of a page."""
        text = format_value(value, self.format)
        if self.limit and value > self.limit[0]:
            text += f" (above {self.limit[1]})"
        return text

    def format_table_value(self, value: float) -> str:
        """Write a value for a table that compares models."""
        return format_value(value, self.table_format or self.format)

    def describe_count(self, value: float, entry: Mapping[str, Any]) -> str:
        """Say what a value counts, by the log entry it stands in: `17 of 20 prompts`, `8,123 tokens`.

        The number that is counted of a share is given only where the share is one of whole things. Empty where the
        entry has no count.
        """
        for key, noun in self.counted:
            total = entry.get(key)
            if not isinstance(total, int | float) or not total >= 1:
                continue
            total = round(total)
            part = value * total
            is_whole = abs(part - round(part)) < 1e-6 * max(total, 1)
            if self.is_share and is_whole and total <= MAX_COUNTED:
                return f"{round(part):,} of {total:,} {noun}"
            return f"of {total:,} {noun}" if self.is_share else f"{total:,} {noun}"
        return ""


# In a larger total a share written with three digits says enough.
MAX_COUNTED = 10_000

# How the title of a chart of validation values ends; a stage's page puts its texts in its place.
VALIDATION = ", validation"

TOKENS = ("eval_tokens", "tokens")
PAIRS = ("eval_pairs", "pairs")
COMPLETIONS = ("eval_completions", "completions")
PROMPTS = ("eval_prompts", "prompts")
QUESTIONS = ("eval_questions", "questions")

BITS_PER_BYTE = Chart("Bits per byte, validation", note="lower is better")
GRADIENT_PARTS = Chart("Gradient norm by part", from_zero=True)
MEMORY = Chart("Memory, GiB", from_zero=True)

CONSOLE: tuple[View, ...] = ("progress line", "evaluation line")

# The order is that of the console's lines, of charts (the first is drawn large), and of columns: of the scores of an
# evaluation, the one that matters first.
_METRICS = [
    Metric(
        "loss",  # nats per token where it is a likelihood, as in pretraining and SFT, not in DPO or PPO
        "loss", "score", table_format=".4f", better="lower", counted=(TOKENS, PAIRS, COMPLETIONS),
        chart=Chart(marks_alerts=True), label="loss {}", validation_label="val {}",
        views=(*CONSOLE, "terminal curve", "tile", "table of runs", "model card"),
    ),
    Metric(
        "objective", "objective: the loss with what is added to it", "score",
        better="lower", measured_on="training", chart=Chart(),
    ),
    Metric(
        "bits_per_byte", "bits per byte", ".3f", table_format=".4f", better="lower", counted=(TOKENS,),
        measured_on="validation", chart=BITS_PER_BYTE, label="{} bits/byte",
        views=(*CONSOLE, "tile", "table of runs", "model card", "scores"),
    ),
    Metric(
        "answered_right", "of the questions answered right", ".1%", better="higher", counted=(QUESTIONS,),
        scored_on="", views=("scores", "score of the last model"),
    ),
    Metric(
        "masked_accuracy", "masked-token accuracy", ".1%", better="higher", counted=(TOKENS,),
        measured_on="validation", chart=Chart(from_zero=True), label="masked-token accuracy {}",
        views=(*CONSOLE, "model card", "scores"),
    ),
    Metric("pseudo_perplexity", "pseudo-perplexity", ".2f", better="lower", views=("scores",)),
    Metric("span_exact_match", "span exact match", ".1%", better="higher", views=("scores",)),
    Metric(
        "target_accuracy",  # of the tokens of masked spans, each predicted from the true ones before it
        "span accuracy", ".1%", better="higher", counted=(TOKENS,),
        measured_on="validation", chart=Chart(from_zero=True), label="span accuracy {}",
        views=(*CONSOLE, "model card", "scores"),
    ),
    Metric(
        "reward", "reward", "score", better="higher", counted=(COMPLETIONS, PROMPTS), chart=Chart(), label="reward {}",
        views=(*CONSOLE, "terminal curve", "tile", "table of runs"),
    ),
    Metric(
        "kl",  # per token, in GRPO and RLOO; logs of PPO and KTO from before `kl_per_completion` have their sum here
        "KL to the reference", "short", unit="nats",
        chart=Chart(from_zero=True), label="KL {}", views=CONSOLE,
    ),
    Metric(
        "kl_per_completion",  # summed over a completion, in PPO and KTO
        "KL to the reference", "short", unit="nats per completion",
        chart=Chart(from_zero=True), label="KL per completion {}", views=CONSOLE,
    ),
    Metric(
        "rewards/accuracies",  # DPO: of the rewards that the policy implies
        "preference accuracy", ".0%", table_format=".1%", better="higher", chance=0.5, counted=(PAIRS,),
        chart=Chart(from_zero=True), label="preference accuracy {}", views=(*CONSOLE, "model card"),
    ),
    Metric(
        "accuracy",  # of a reward model's scores
        "preference accuracy", ".0%", table_format=".1%", better="higher", chance=0.5, counted=(PAIRS,),
        chart=Chart("Preference accuracy of the reward model", from_zero=True, note="higher is better"),
        label="preference accuracy {}", views=(*CONSOLE, "model card"),
    ),
    Metric(
        "rewards/margins", "reward margin", "score", better="higher",
        chart=Chart(from_zero=True), label="margin {}", views=CONSOLE,
    ),
    Metric(
        "margin", "score margin", "score", better="higher",
        chart=Chart(from_zero=True), label="margin {}", views=CONSOLE,
    ),
    Metric(
        "mean_token_accuracy", "token accuracy", ".0%", table_format=".1%", better="higher", counted=(TOKENS,),
        chart=Chart(from_zero=True), label="token accuracy {}", views=(*CONSOLE, "model card"),
    ),
    Metric("completions/mean_length", "completion length", ".0f", unit="tokens", label="length {}", views=CONSOLE),
    Metric("length", "completion length", ".0f", unit="tokens", label="length {}", views=CONSOLE),  # PPO's key
    Metric(
        "ended", "EOS rate", ".0%", better="higher", counted=(COMPLETIONS, PROMPTS), chart=Chart(from_zero=True),
        views=("model card",),
    ),
    Metric(
        "stop_rate",  # measured once, on the saved model
        "EOS rate", ".0%", better="higher", counted=(("stop_prompts", "prompts"),),
        measured_on="validation", scored_on="the prompts of the evaluation", is_measured_once=True,
        views=("model card", "scores"),
    ),
    Metric(
        "ms_per_token", "milliseconds per token", ".3g", better="lower",
        scored_on="the machine that evaluated it", is_measured_once=True, views=("scores",),
    ),
    Metric(
        "learning_rate", "learning rate", "learning rate",
        measured_on="training", can_smooth=False, chart=Chart(from_zero=True), label="lr {}",
        views=("progress line", "tile"),
    ),
    Metric(
        "grad_norm", "gradient norm", "short",
        measured_on="training", chart=Chart(from_zero=True, marks_alerts=True), label="|g| {}",
        views=("progress line", "terminal curve", "tile"),
    ),
    *(
        Metric(
            f"grad_norm/{part}", f"gradient norm of the {part}", "short",
            measured_on="training", chart=GRADIENT_PARTS, legend=part,
        )
        for part in ("embeddings", "attention", "mlp", "norms", "head", "other")
    ),
    Metric(
        "tokens_per_second", "tokens per second", "count", better="higher",
        measured_on="training", chart=Chart(from_zero=True), label="{} tok/s",
        views=("progress line", "tile", "table of runs", "report"),
    ),
    Metric("tokens_seen", "tokens seen", "short", measured_on="training", can_smooth=False, views=("tile",)),
    Metric(
        "mfu", "MFU", ".0%", better="higher", limit=(1.0, "the peak"), measured_on="training", label="MFU {}",
        views=("progress line", "tile", "report"),
    ),
    Metric(
        "mfu_of_measured_peak", "MFU against a measured peak", ".0%", better="higher", limit=(1.0, "the peak"),
        measured_on="training", label="MFU {}", views=("progress line", "tile", "report"),
    ),
    Metric(
        "memory_gib", "peak memory", ".1f", unit="GiB", better="lower",
        measured_on="training", can_smooth=False, chart=MEMORY, legend="peak so far", label="{} GiB",
        views=("progress line", "tile", "table of runs"),
    ),
    Metric(
        "memory_now_gib", "memory in use", ".1f", unit="GiB", measured_on="training", chart=MEMORY, legend="now",
    ),
    Metric(
        "cost", "cost so far", "dollars", better="lower", measured_on="training", can_smooth=False, label="{}",
        views=("tile", "table of runs"),
    ),
    Metric(
        "energy_kwh", "energy so far", "short", unit="kWh", measured_on="training", can_smooth=False, views=("tile",),
    ),
    Metric(
        "eta_seconds", "time left", "duration", measured_on="training", can_smooth=False, label="ETA {}",
        views=("tile", "table of runs"),
    ),
    Metric(
        "perplexity",  # the same curve as bits per byte, bent: shown last, or where the bytes of a token are not known
        "perplexity", ",.4g", table_format=".2f", better="lower", counted=(TOKENS,),
        measured_on="validation", chart=Chart(hidden_by=BITS_PER_BYTE.title), label="perplexity {}",
        views=("evaluation line", "model card", "scores"),
    ),
]  # fmt: skip

# Every metric by its key.
METRICS = {metric.key: metric for metric in _METRICS}


@dataclass(frozen=True)
class Tile:
    """A number at the top of the live page."""

    key: str
    """In Trainer's log."""
    title: str
    format: str
    in_table_of_runs: bool
    """Whether the table of several runs has it as a column."""
    limit: tuple[float, str] | None = None
    """As in `Metric`."""


def metrics_in(view: View) -> list[Metric]:
    """The metrics that a view shows, in its order."""
    return [metric for metric in METRICS.values() if view in metric.views]


def list_charts() -> dict[Chart, list[tuple[str, str]]]:
    """Every chart with its title, and its lines as (legend, key in Trainer's log)."""
    charts: dict[Chart, list[tuple[str, str]]] = {}
    for metric in METRICS.values():
        if metric.chart is None:
            continue
        chart = _entitle_chart(metric.chart, metric)
        charts.setdefault(chart, []).extend(metric.chart_lines)
    return charts


def list_tiles() -> list[Tile]:
    """The numbers at the top of the live page: of the training, or of the validation split where only that is shown."""
    tiles = []
    for metric in metrics_in("tile"):
        in_table = "table of runs" in metric.views
        key = metric.validation_key if metric.measured_on == "validation" else metric.key
        title = f"validation {metric.heading}" if metric.measured_on == "validation" else metric.heading
        tiles.append(Tile(key, title, metric.format, in_table, metric.limit))
        if metric.validation_label:
            tiles.append(Tile(metric.validation_key, f"validation {metric.heading}", metric.format, in_table))
    return tiles


def score_columns(results: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """The metrics that any model has among its scores: the results of the evaluation stage, one mapping a model."""
    results = list(results)
    return [metric for metric in metrics_in("scores") if any(metric.key in scores for scores in results)]


def format_scores(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One model's scores in an evaluation as (title, value), the one that matters first."""
    return [(metric.title, metric.format_table_value(scores[metric.key])) for metric in score_columns([scores])]


def format_test_scores(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One model's scores in an evaluation as (title, value), each with its direction and the tokens it counts."""
    rows = []
    for metric in score_columns([scores]):
        value = scores[metric.key]
        counts = {
            "eval_tokens": scores.get("tokens"),
            "eval_questions": scores.get("questions"),
            "stop_prompts": scores.get("stop_prompts"),
        }
        count = metric.describe_count(value, counts)
        text = metric.format_table_value(value)
        rows.append((title_measurement(metric, metric.scored_on), f"{text} ({count})" if count else text))
    return rows


def title_measurement(metric: Metric, texts: str) -> str:
    """Name a measurement: what was measured, on which texts, and which values are better.

    `perplexity on held-out answers (lower is better)`: a perplexity of answers compares with no perplexity of text.
    """
    notes = [metric.direction] if metric.better else []
    if metric.chance is not None:
        notes.append(f"chance: {format_value(metric.chance, '.0%')}")
    title = f"{metric.heading} on {texts}" if texts else metric.heading
    return f"{title} ({'; '.join(notes)})" if notes else title


def format_last_evaluation(values: Mapping[str, Any], texts: str) -> list[tuple[str, str]]:
    """The last evaluation of a training as (title, value): with what it counts, and its 95% interval.

    `texts` says what was evaluated, such as "held-out answers" (`Stage.evaluated_on`).
    """
    rows = []
    for metric in metrics_in("model card"):
        key = metric.validation_key
        value = values.get(key)
        if not isinstance(value, int | float):
            continue
        notes = [metric.describe_count(value, values)]
        if f"{key}_low" in values and f"{key}_high" in values:
            low = metric.format_table_value(values[f"{key}_low"])
            high = metric.format_table_value(values[f"{key}_high"])
            notes.append(f"95% interval {low} to {high}")
        text = metric.format_table_value(value)
        notes = [note for note in notes if note]
        rows.append((title_measurement(metric, texts), f"{text} ({'; '.join(notes)})" if notes else text))
    return rows


class _CountingFormatter(Formatter):
    """Formats a headline over the metrics of an evaluation; a share is followed by what it counts."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return (field_name, self.values[field_name]), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        key, number = value
        text = format(number, without_negative_zero(format_spec) if isinstance(number, int | float) else format_spec)
        metric = METRICS.get(key.removeprefix("eval_"))
        count = metric.describe_count(number, self.values) if metric and metric.is_share else ""
        return f"{text} ({count})" if count else text


def format_headline(headline: str, values: Mapping[str, Any]) -> str:
    """Fill a stage's headline, a format string over metrics: `EOS rate {stop_rate:.0%}` to `EOS rate 85% (17 of 20
    prompts)`."""
    return _CountingFormatter(values).vformat(headline, (), {})


def _entitle_chart(chart: Chart, metric: Metric) -> Chart:
    """Give a chart of one metric that metric's heading, and say which values are better."""
    if chart.title:
        return chart
    heading = metric.heading[0].upper() + metric.heading[1:]
    if metric.measured_on == "validation":
        heading += VALIDATION
    return replace(chart, title=heading, note=metric.direction)


def title_chart(chart: Chart, texts: str) -> str:
    """Name a chart of a stage whose validation data are `texts` (`Stage.evaluated_on`)."""
    if chart.title.endswith(VALIDATION):
        return f"{chart.title.removesuffix(VALIDATION)} on {texts}"
    return chart.title
