"""Line charts as inline SVG: no library, no network, any width, light and dark."""

import json
import math
from dataclasses import dataclass

from markupsafe import Markup

from hf_llm.reporting import templates

Point = tuple[float, float]
MOST_POINTS = 800  # of one line: what a wide screen can tell apart


@dataclass
class Series:
    """One line: its name in the legend and its (x, y) points by rising x. A y that is not finite is a gap."""

    name: str
    points: list[Point]


def line_chart(
    title: str, series: list[Series], from_zero: bool = False, x_label: str = "step", x_from_zero: bool = True
) -> Markup:
    """A chart of one or more lines as HTML: an SVG stretched to the width it gets, with labels of constant size
    over it. `from_zero` and `x_from_zero` say which axes start at zero, whatever the data."""
    series = [Series(line.name, thinned(line.points)) for line in series]
    series = [line for line in series if last_finite(line.points) is not None]
    if not series:
        return Markup("")
    finite = [point for line in series for point in line.points if math.isfinite(point[1])]
    xs, ys = [point[0] for point in finite], [point[1] for point in finite]
    x_low, x_high = _widened(min(0, min(xs)) if x_from_zero else min(xs), max(xs))
    y_ticks = ticks(*_widened(min(0, min(ys)) if from_zero else min(ys), max(ys)), about=3, around=True)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(point: Point) -> Point:
        """Per mille of the plot's width and height, from its top left."""
        across, up = (point[0] - x_low) / (x_high - x_low), (point[1] - y_low) / (y_high - y_low)
        return round(1000 * across, 1), round(1000 * (1 - up), 1)

    data = [
        {"name": s.name, "points": [[x, y, *place((x, y))] for x, y in s.points if math.isfinite(y)]} for s in series
    ]
    return Markup(
        templates.html()
        .get_template("chart.html")
        .render(
            title=title,
            x_label=x_label,
            lines=[(line.name, path(line.points, place)) for line in series],
            y_ticks=[(short(value), place((x_low, value))[1] / 10) for value in y_ticks],
            x_ticks=[(short(v), place((v, y_low))[0] / 10) for v in ticks(x_low, x_high, 5)],
            data=json.dumps({"x": x_label, "series": data}, allow_nan=False, separators=(",", ":")),
            summary="; ".join(f"{line.name} {short(last_finite(line.points))}" for line in series),
        )
    )


def path(points: list[Point], place) -> str:
    """The SVG path of a line, broken where a value is not finite. A point alone is drawn as a dot."""
    pieces, drawing = [], False
    for index, point in enumerate(points):
        if not math.isfinite(point[1]):
            drawing = False
            continue
        x, y = place(point)
        alone = not drawing and (index + 1 == len(points) or not math.isfinite(points[index + 1][1]))
        pieces.append(f"{'L' if drawing else 'M'}{x:g} {y:g}" + ("h.01" if alone else ""))
        drawing = True
    return "".join(pieces)


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: of each stretch the lowest and the highest, and every gap, so no spike is lost."""
    if len(points) <= most:
        return points
    width = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        finite = [point for point in stretch if math.isfinite(point[1])]
        gap = [point for point in stretch if not math.isfinite(point[1])][:1]
        kept += sorted({*gap, *([min(finite, key=_height), max(finite, key=_height)] if finite else [])})
    return kept


def ticks(low: float, high: float, about: int, around: bool = False) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart, about so many: within `low` to `high`, or `around` both."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.7)
    first, last = (low / step + 1e-9, high / step - 1e-9) if around else (low / step - 1e-9, high / step + 1e-9)
    indices = range(math.floor(first), math.ceil(last) + 1) if around else range(math.ceil(first), math.floor(last) + 1)
    return [float(f"{index * step:.12g}") for index in indices]


def short(value: float) -> str:
    """A number as a person would write it on an axis: 3.21, 12k, 1.5M, 6e-4."""
    size = abs(value)
    if size >= 1e4:
        for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
            if size >= limit:
                return f"{value / limit:.3g}{letter}"
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}"


def last_finite(points: list[Point]) -> float | None:
    """The last value of a line that is a number."""
    return next((y for _, y in reversed(points) if math.isfinite(y)), None)


def _height(point: Point) -> float:
    return point[1]


def _widened(low: float, high: float) -> Point:
    """A range with some extent, also where all values are the same."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
