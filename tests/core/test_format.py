"""Numbers, durations and texts as people read them."""

import pytest

from hf_llm.core.format import (
    format_bytes,
    format_count,
    format_dollars,
    format_duration,
    format_estimate,
    format_learning_rate,
    format_megabytes,
    format_score,
    format_short,
    format_value,
    one_line,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        (6_912_000, "6.9M"),
        (124_439_808, "124M"),
        (2_000_000, "2M"),
        (1_100_000_000, "1.1B"),
        (8_192, "8.2k"),
    ],
)
def test_format_count_has_two_or_three_digits_and_a_letter(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.2149, "3.21"),
        (250, "250"),
        (2500, "2,500"),
        (12_000, "12k"),
        (1_500_000, "1.5M"),
        (0.25, "0.25"),
        (6e-4, "6e-4"),
        (-0.00125, "-0.00125"),
    ],
)
def test_format_short_writes_a_number_as_on_an_axis(value, text):
    assert format_short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.44, "8.4 s"), (61.25, "61 s"), (99.9, "2 min"), (725, "12 min"), (11_100, "3 h 05 min"),
        (190_000, "2 d 4 h"),
    ],
)  # fmt: skip
def test_format_duration_has_two_units_at_most(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4 s"), (59.6, "1 min 0 s"), (104, "1 min 44 s"), (725, "12 min")]
)
def test_format_estimate_keeps_the_seconds_of_some_minutes(seconds, text):
    assert format_estimate(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(3.41234, "3.412"), (0, "0.000"), (0.0004, "0.0004"), (-0.02, "-0.02")])
def test_format_score_has_three_decimals_or_three_digits(value, text):
    assert format_score(value) == text


def test_money_bytes_and_learning_rates():
    assert format_dollars(1234.5) == "$1,234.50"
    assert format_megabytes(800_000) == "0.8 MB"
    assert format_megabytes(12_345) == "12.3 kB"  # and not 0.0 MB
    assert format_learning_rate(5.87e-4) == "5.9e-4"


@pytest.mark.parametrize(("style", "text"), [("count", "41.2k"), ("short", "41.2k"), (",.0f", "41,234")])
def test_format_value_takes_a_style_or_a_format_specification(style, text):
    assert format_value(41_234, style) == text


def test_one_line_folds_all_white_space():
    assert one_line(ValueError("two\n  lines\tof text ")) == "two lines of text"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"), (1, "1 byte"), (980, "980 bytes"), (999.6, "1 kB"), (12_345, "12.3 kB"), (999_600, "1 MB"),
        (3 << 20, "3.1 MB"), (1.25e9, "1.2 GB"), (250e9, "250 GB"), (2.3e15, "2,300 TB"),
    ],
)  # fmt: skip
def test_format_bytes_takes_the_unit_that_fits(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize("value", [-0.0, -0.0004, -1e-9, 0.0, 1e-9])
@pytest.mark.parametrize("style", [".3f", ".2f", "+.2f", ".0%", ".1%", ",.2f", "10.2f", "score", "short"])
def test_what_rounds_to_zero_has_no_minus(value, style):
    text = format_value(value, style)
    if style in ("score", "short") and value:  # these keep the digits of small numbers
        assert float(text) == pytest.approx(value, rel=0.01)
    else:
        assert "-" not in text and set(text.strip("+% ")) <= {"0", "."}
