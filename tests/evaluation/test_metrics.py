"""The table of metrics, and what is derived from it."""

import re
import subprocess
import sys
from importlib.resources import files

import pytest

from hf_llm.core.format import STYLES
from hf_llm.evaluation.metrics import (
    METRICS,
    Chart,
    Metric,
    Tile,
    format_headline,
    format_last_evaluation,
    format_scores,
    list_charts,
    list_tiles,
    score_columns,
    title_chart,
)
from hf_llm.monitoring.callbacks.console_format import format_evaluation, format_progress
from hf_llm.monitoring.callbacks.gradient_norms import OTHER, PARTS
from hf_llm.pipeline.stages import STAGES


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.key)
def test_a_record_can_be_shown_where_it_says(metric):
    assert metric.format_value(0.5)
    assert metric.format_table_value(0.5)
    assert ("{}" in metric.label) == bool(metric.label)
    needs_label = {"progress line", "evaluation line", "terminal curve"} & set(metric.views)
    assert metric.label or not needs_label
    if "table of runs" in metric.views:
        assert "tile" in metric.views


def test_no_key_and_no_chart_has_two_records():
    keys = [key for lines in list_charts().values() for _, key in lines]
    titles = [chart.title for chart in list_charts()]
    assert len(keys) == len(set(keys))
    assert len(titles) == len(set(titles))


def test_list_charts_names_charts_and_lines_by_what_was_measured():
    charts = {chart.title: (chart.from_zero, lines) for chart, lines in list_charts().items()}
    assert next(iter(charts)) == "Loss"
    assert charts["Loss"] == (False, [("training", "loss"), ("validation", "eval_loss")])
    assert charts["Bits per byte, validation"] == (False, [("validation", "eval_bits_per_byte")])
    assert charts["KL to the reference, nats"] == (True, [("training", "kl"), ("validation", "eval_kl")])
    assert charts["Memory, GiB"] == (True, [("peak so far", "memory_gib"), ("now", "memory_now_gib")])


def test_a_chart_is_hidden_only_by_one_that_comes_before_it():
    titles = [chart.title for chart in list_charts()]
    for number, chart in enumerate(list_charts()):
        assert not chart.hidden_by or chart.hidden_by in titles[:number]


def test_every_part_of_the_gradient_has_a_line():
    lines = {chart.title: lines for chart, lines in list_charts().items()}["Gradient norm by part"]
    assert {legend: key for legend, key in lines} == {part: f"grad_norm/{part}" for part in (*PARTS, OTHER)}


def test_the_live_page_knows_the_format_of_every_tile():
    script = files("hf_llm.monitoring").joinpath("page.js").read_text(encoding="utf-8")
    styles = re.search(r"const STYLES = \{(.*?)\n\};", script, re.DOTALL)[1]
    for tile in list_tiles():
        if tile.format in STYLES:
            assert re.search(rf"\b{tile.format}\b", styles), tile
        else:
            assert re.fullmatch(r"\.\d[f%]", tile.format), tile


def test_scores_are_columns_where_any_model_has_them():
    causal = {"loss": 4.2, "perplexity": 66.69, "bits_per_byte": 1.7313, "tokens": 4096}
    masked = {"loss": 3.1, "masked_accuracy": 0.4321, "pseudo_perplexity": 21.234}
    keys = [metric.key for metric in score_columns([causal, masked])]
    assert keys == ["bits_per_byte", "masked_accuracy", "pseudo_perplexity", "perplexity"]
    assert format_scores(causal) == [("bits per byte", "1.7313"), ("perplexity", "66.69")]
    assert format_scores(masked) == [("masked-token accuracy", "43.2%"), ("pseudo-perplexity", "21.23")]
    assert score_columns([]) == []


def test_the_last_evaluation_has_its_interval_and_the_value_of_chance():
    values = {"eval_loss": 0.61234, "eval_accuracy": 0.7, "eval_accuracy_low": 0.61, "eval_accuracy_high": 0.78}
    assert format_last_evaluation({**values, "eval_pairs": 90, "eval_runtime": 1.0}, "held-out pairs") == [
        ("loss on held-out pairs (lower is better)", "0.6123 (90 pairs)"),
        (
            "preference accuracy on held-out pairs (higher is better; chance: 50%)",
            "70.0% (63 of 90 pairs; 95% interval 61.0% to 78.0%)",
        ),
    ]


def test_a_perplexity_says_of_which_texts_it_is():
    values = {"eval_perplexity": 45.92}
    [(of_answers, _)] = format_last_evaluation(values, STAGES["sft"].evaluated_on)
    [(of_text, _)] = format_last_evaluation(values, STAGES["base"].evaluated_on)
    assert of_answers == "perplexity on held-out answers (lower is better)"
    assert of_text == "perplexity on the validation text (lower is better)"
    charts = {chart.title: chart for chart in list_charts()}
    chart = charts["Perplexity, validation"]
    assert (title_chart(chart, "held-out answers"), chart.note) == ("Perplexity on held-out answers", "lower is better")
    assert title_chart(charts["Loss"], "held-out answers") == "Loss"


@pytest.mark.parametrize("stage", [stage for stage in STAGES.values() if stage.makes_model], ids=lambda s: s.folder)
def test_every_training_stage_says_what_it_is_evaluated_on(stage):
    assert stage.evaluated_on


@pytest.mark.parametrize(
    ("key", "value", "entry", "count"),
    [
        ("stop_rate", 0.85, {"stop_prompts": 20}, "17 of 20 prompts"),
        ("rewards/accuracies", 45.5 / 50, {"eval_pairs": 50}, "of 50 pairs"),  # a share that 50 pairs cannot have
        ("rewards/accuracies", 51 / 56, {"eval_pairs": 56.0}, "51 of 56 pairs"),
        ("mean_token_accuracy", 0.34, {"eval_tokens": 1_234_567}, "of 1,234,567 tokens"),
        ("loss", 2.5, {"eval_tokens": 8123}, "8,123 tokens"),
        ("loss", 2.5, {"eval_pairs": 12}, "12 pairs"),
        ("reward", 1.5, {"eval_completions": 20}, "20 completions"),
        ("loss", 2.5, {}, ""),
        ("accuracy", 0.5, {"eval_pairs": 0}, ""),
    ],
)
def test_a_value_has_the_number_of_what_it_counts(key, value, entry, count):
    assert METRICS[key].describe_count(value, entry) == count


def test_a_share_in_a_headline_has_the_number_of_what_it_counts():
    headline = "loss {eval_loss:.3f}, accuracy {eval_rewards/accuracies:.0%}, EOS rate {stop_rate:.0%}"
    values = {"eval_loss": 2.5, "eval_rewards/accuracies": 0.9, "eval_pairs": 10, "stop_rate": 0.85, "stop_prompts": 20}
    assert format_headline(headline, values) == (
        "loss 2.500, accuracy 90% (9 of 10 pairs), EOS rate 85% (17 of 20 prompts)"
    )
    assert format_headline("{eval_accuracy:.0%}", {"eval_accuracy": 0.5}) == "50%"


def test_a_headline_has_no_minus_at_zero():
    metrics = {"eval_rewards/margins": -0.0001, "eval_kl": -0.5, "eval_pairs": 3, "name": "x"}
    template = "{name}: margin {eval_rewards/margins:.2f}, KL {eval_kl:.2f} on {eval_pairs:.0f} pairs, {eval_pairs}"
    assert format_headline(template, metrics) == "x: margin 0.00, KL -0.50 on 3 pairs, 3"
    assert format_headline("done", metrics) == "done"


def test_schedules_sums_and_maxima_are_not_smoothed():
    kept = {"learning_rate", "tokens_seen", "memory_gib", "cost", "energy_kwh", "eta_seconds"}
    assert {metric.key for metric in METRICS.values() if not metric.can_smooth} == kept


def test_one_record_brings_a_new_metric_to_every_view(monkeypatch):
    record = Metric(
        "new", "new metric", ".1f", better="higher", measured_on="validation", chart=Chart(), label="new {}",
        views=("progress line", "evaluation line", "tile", "model card", "scores"),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "new", record)
    assert "new 0.5" in format_progress(5, 10, {}, {"eval_new": 0.5})
    assert "new 0.5" in format_evaluation(5, 10, {"eval_new": 0.5})
    assert list_charts()[Chart("New metric, validation", note="higher is better")] == [("validation", "eval_new")]
    assert Tile("eval_new", "validation new metric", ".1f", in_table_of_runs=False) in list_tiles()
    assert format_last_evaluation({"eval_new": 0.5}, "text") == [("new metric on text (higher is better)", "0.5")]
    assert format_scores({"new": 0.5}) == [("new metric", "0.5")]


def test_importing_the_table_needs_no_torch():
    code = "import sys, hf_llm.evaluation.metrics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_value_above_what_is_possible_is_shown_with_a_word():
    assert METRICS["mfu"].format_value(0.42) == "42%"
    assert METRICS["mfu_of_measured_peak"].format_value(1.51) == "151% (above the peak)"
