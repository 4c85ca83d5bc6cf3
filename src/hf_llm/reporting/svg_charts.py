"""Draw line charts as inline SVG that scales to any width, without a library or the network."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from hf_llm.core.format import format_short
from hf_llm.reporting import templates

Point = tuple[float, float]
MAX_POINTS = 800  # points of one line: as many as can be told apart on a wide screen
MAX_LOG_TICKS = 6
X_NAMES = {"step": "steps"}  # the axis of what the label names, where that is not the label
MAX_DOTS = 40  # a line of no more points has a dot at each: two points or one are hard to see as a line


@dataclass
class Series:
    """One line of a chart. A y that is not finite is a gap in it."""

    name: str
    """Its name in the legend."""
    points: list[Point]
    """(x, y) pairs, in the order of x."""
    is_line: bool = True
    """Whether its points are joined; else each is a dot."""


def draw_line_chart(
    title: str,
    series: list[Series],
    from_zero: bool = False,
    x_label: str = "step",
    x_from_zero: bool = True,
    note: str = "",
    x_is_log10: bool = False,
) -> Markup:
    """Draw one or more lines as HTML: an SVG that is stretched to the page's width, with labels of constant size.

    `x_label` names the axis, in the singular; `note` stands beside the title. With `from_zero` the y axis starts at
    zero, with `x_from_zero` the x axis. With `x_is_log10` the x of the points are logarithms, and the axis is labelled
    with the numbers themselves. Returns an empty string where no line has a value.
    """
    lines = [Series(line.name, thin_points(line.points), line.is_line) for line in series]
    lines = [line for line in lines if last_finite(line.points) is not None]
    if not lines:
        return Markup("")

    finite_points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    x_low, x_high = _value_range([x for x, _ in finite_points], x_from_zero)
    y_low, y_high = _value_range([y for _, y in finite_points], from_zero)
    x_ticks = ticks_of_log10(x_low, x_high) if x_is_log10 else ticks_within(x_low, x_high, 5)
    y_ticks = ticks_around(y_low, y_high, 3)

    # The plot's y axis reaches from the lowest tick to the highest.
    y_low = y_ticks[0]
    y_high = y_ticks[-1]

    def to_plot(point: Point) -> Point:
        """Convert (x, y) to the plot's coordinates: 0 to 1000 across its width and height, from the top left."""
        x, y = point
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return round(1000 * across, 1), round(1000 * (1 - up), 1)

    def format_x(x: float) -> str:
        return format_power(10**x) if x_is_log10 else format_short(x)

    # What page.js shows at the pointer: x, y, and the point's place in the plot.
    hover_data = []
    for line in lines:
        points = [[10**x if x_is_log10 else x, y, *to_plot((x, y))] for x, y in line.points if math.isfinite(y)]
        hover_data.append({"name": line.name, "points": points})

    drawn = []
    for line in lines:
        finite = [point for point in line.points if math.isfinite(point[1])]
        dots = len(finite) <= MAX_DOTS or not line.is_line
        drawn.append(
            {
                "name": line.name,
                "path": svg_path(line.points, to_plot) if line.is_line else "",
                "dots": svg_dots(finite, to_plot) if dots else "",
            }
        )

    template = templates.html_environment().get_template("chart.html")
    figure = template.render(
        title=title,
        note=note,
        x_name=X_NAMES.get(x_label, x_label),
        lines=drawn,
        y_ticks=[(format_short(y), to_plot((x_low, y))[1] / 10) for y in y_ticks],
        x_ticks=[(format_x(x), to_plot((x, y_low))[0] / 10) for x in x_ticks],
        data=json.dumps({"x": x_label, "series": hover_data}, allow_nan=False, separators=(",", ":")),
        summary="; ".join(f"{line.name} {format_short(last_finite(line.points))}" for line in lines),
    )
    return Markup(figure)


def svg_dots(points: list[Point], to_plot: Callable[[Point], Point]) -> str:
    """Write the SVG path of dots: lines too short to be seen, whose round ends are the dots."""
    return "".join(f"M{x:g} {y:g}h.01" for x, y in map(to_plot, points))


def svg_path(points: list[Point], to_plot: Callable[[Point], Point]) -> str:
    """Write the SVG path of a line, interrupted where a value is not finite. A single point is drawn as a dot."""
    commands = []
    is_drawing = False
    for index, point in enumerate(points):
        if not math.isfinite(point[1]):
            is_drawing = False
            continue

        x, y = to_plot(point)
        commands.append(f"{'L' if is_drawing else 'M'}{x:g} {y:g}")
        is_last = index + 1 == len(points) or not math.isfinite(points[index + 1][1])
        if is_last and not is_drawing:
            commands.append("h.01")  # too short to be seen as a line; its round ends are the dot
        is_drawing = True
    return "".join(commands)


def thin_points(points: list[Point], max_points: int = MAX_POINTS) -> list[Point]:
    """Thin a line to about `max_points` points, without losing a spike or a gap.

    The line is divided into stretches; each keeps its lowest and its highest point, and a gap if it has one.
    """
    if len(points) <= max_points:
        return points

    stretch_length = math.ceil(2 * len(points) / max_points)
    kept = []
    for start in range(0, len(points), stretch_length):
        stretch = points[start : start + stretch_length]
        finite = [point for point in stretch if math.isfinite(point[1])]
        gaps = [point for point in stretch if not math.isfinite(point[1])]
        chosen = set(gaps[:1])
        if finite:
            chosen |= {min(finite, key=_y_value), max(finite, key=_y_value)}
        kept += sorted(chosen)
    return kept


def ticks_within(low: float, high: float, about: int) -> list[float]:
    """Choose round values, about `about` of them, within `low` to `high`."""
    step = _tick_step(low, high, about)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return _multiples(step, first, last)


def ticks_around(low: float, high: float, about: int) -> list[float]:
    """Choose round values, about `about` of them, the first at or below `low` and the last at or above `high`."""
    step = _tick_step(low, high, about)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return _multiples(step, first, last)


def ticks_of_log10(low: float, high: float) -> list[float]:
    """Choose logarithms of round numbers within `low` to `high`: of powers of ten, and of 2 and 5 times them where
    that leaves few."""
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [power + math.log10(factor) for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]
        if len(ticks) > 2:
            break
    every = math.ceil(len(ticks) / MAX_LOG_TICKS)
    return ticks[::every]


def format_power(value: float) -> str:
    """Write a large number by its power of ten: 2.5e13."""
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _tick_step(low: float, high: float, about: int) -> float:
    """Return the distance between ticks: 1, 2 or 5 times a power of ten."""
    exact_step = (high - low) / about
    power = 10.0 ** math.floor(math.log10(exact_step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact_step * 0.7)


def _multiples(step: float, first: int, last: int) -> list[float]:
    # Rounded to 12 digits, so that 3 * 0.1 is 0.3.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def last_finite(points: list[Point]) -> float | None:
    """Return the last finite value of a line; None where there is none."""
    return next((y for _, y in reversed(points) if math.isfinite(y)), None)


def _y_value(point: Point) -> float:
    return point[1]


def _value_range(values: list[float], from_zero: bool) -> tuple[float, float]:
    """Return the lowest and the highest value of an axis, which differ even where all values are the same."""
    low = min(values)
    high = max(values)
    if from_zero:
        low = min(0, low)
    if high > low:
        return low, high
    return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
