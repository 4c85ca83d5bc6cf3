"""Line charts: what is drawn is what was logged."""

import html
import json
import math
import re

import pytest

from hf_llm.reporting.svg_charts import Series, draw_line_chart, svg_path, thin_points, ticks_around, ticks_within

NAN = float("nan")


def chart_data(chart):
    return json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', chart)[1]))


def test_a_value_that_is_not_finite_is_a_gap():
    line = [(1, 1.0), (2, 2.0), (3, NAN), (4, 4.0), (5, 5.0), (6, float("inf")), (7, 7.0)]
    assert svg_path(line, lambda point: point) == "M1 1L2 2M4 4L5 5M7 7h.01"  # and a point alone is a dot


def test_few_points_are_dots_and_many_are_a_line():
    few = draw_line_chart(
        "Loss", [Series("training", [(x, 1.0 + x) for x in range(40)]), Series("validation", [(9, 2.0)])]
    )
    dots = re.findall(r'class="dots line-(\d)" d="([^"]*)"', few)
    assert [(number, d.count("M")) for number, d in dots] == [("0", 40), ("1", 1)]
    many = draw_line_chart("Loss", [Series("training", [(x, 1.0 + x) for x in range(41)])])
    assert "dots" not in many


def test_dots_alone_are_not_joined():
    chart = draw_line_chart("Law", [Series("measured", [(0, 1.0), (1, 2.0)], is_line=False)])
    assert 'class="line' not in chart
    assert chart.count("h.01") == 2


@pytest.mark.parametrize(("label", "name"), [("step", "steps"), ("tokens", "tokens"), ("hours", "hours")])
def test_the_axis_has_a_name(label, name):
    chart = draw_line_chart("Loss", [Series("training", [(1, 1.0), (2, 2.0)])], x_label=label, note="lower is better")
    assert f'<span class="axis">{name}</span>' in chart
    assert "lower is better" in chart and 'tabindex="0"' in chart


def test_a_logarithmic_axis_is_labelled_with_the_numbers_themselves():
    points = [(math.log10(flops), 2.0) for flops in (3e12, 1e13, 2.5e14)]
    chart = draw_line_chart("Law", [Series("law", points)], x_label="FLOPs", x_from_zero=False, x_is_log10=True)
    assert re.findall(r'class="x" style="[^"]*">([^<]*)<', chart) == ["5e12", "1e13", "2e13", "5e13", "1e14", "2e14"]
    assert [point[0] for point in chart_data(chart)["series"][0]["points"]] == pytest.approx([3e12, 1e13, 2.5e14])


def test_points_are_placed_by_their_values():
    chart = draw_line_chart("Loss", [Series("training", [(0, 4.0), (50, 2.0), (100, 0.0)])])
    assert [point[2:] for point in chart_data(chart)["series"][0]["points"]] == [[0, 0], [500, 500], [1000, 1000]]
    assert 'd="M0 0L500 500L1000 1000"' in chart


def test_names_are_escaped_everywhere():
    chart = draw_line_chart(
        "<script>alert(1)</script>", [Series('"><b>', [(0, 1.0), (1, 2.0)]), Series("b", [(0, 1.0)])]
    )
    assert "<script>" not in chart
    assert "<b>&gt;" not in chart
    assert '"><b>' not in re.sub(r"<b>", "", chart, count=1)  # the caption's own
    assert chart_data(chart)["series"][0]["name"] == '"><b>'


def test_the_data_of_a_chart_is_json_without_nan():
    data = chart_data(draw_line_chart("Loss", [Series("training", [(0, NAN), (1, 2.0), (2, math.inf)])]))
    assert [point[:2] for point in data["series"][0]["points"]] == [[1, 2.0]]


def test_without_a_finite_value_there_is_no_chart():
    assert draw_line_chart("Loss", [Series("training", []), Series("validation", [(1, NAN)])]) == ""


def test_a_single_value_and_a_constant_line_are_drawn():
    assert "h.01" in draw_line_chart("Loss", [Series("training", [(5, 2.5)])])
    assert 'class="line' in draw_line_chart("Loss", [Series("training", [(1, 0.0), (2, 0.0)])])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 400, [0, 100, 200, 300, 400]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks_within(low, high, 5) == expected


@pytest.mark.parametrize(("low", "high"), [(1.42, 5.46), (0, 6e-4), (2.4881, 2.5127), (0, 33_412), (0.1, 0.1001)])
def test_ticks_around_a_range_enclose_it(low, high):
    ticks = ticks_around(low, high, 3)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7


def test_a_long_line_is_thinned_without_losing_its_spikes_and_gaps():
    line = [(x, math.sin(x / 50)) for x in range(10_000)]
    line[5_003] = (5_003, 99.0)
    line[7_001] = (7_001, NAN)
    kept = thin_points(line, 500)
    assert len(kept) <= 502
    assert (5_003, 99.0) in kept
    assert any(math.isnan(y) for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
