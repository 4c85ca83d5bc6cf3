"""Format numbers, sizes, durations and texts for people to read, in pages, tables and printed lines.

`monitoring/page.js` has the same formatters for the live page, by the names in `STYLES`.
"""

import re
from collections.abc import Callable

from hf_llm.core.console import terminal_width

MAGNITUDES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def format_score(value: float) -> str:
    """Write a loss or a score: 3.412, 0.0312, 4.5e-05."""
    value += 0.0  # a negative zero becomes zero
    if abs(value) >= 0.1 or value == 0:
        return f"{value:.3f}"
    return f"{value:.3g}"


def format_short(value: float) -> str:
    """Write a number as on an axis: 3.21, 2,500, 12k, 1.5M, 6e-4."""
    value += 0.0  # a negative zero becomes zero
    size = abs(value)
    if size >= 1e4:
        for limit, letter in MAGNITUDES:
            if size >= limit:
                return f"{value / limit:.3g}{letter}"
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}"


def format_learning_rate(value: float) -> str:
    """Write a learning rate with two digits: 5.9e-4, 0.01."""
    return format_short(float(f"{value:.2g}"))


def format_count(value: float) -> str:
    """Write a count: 12, 8.2k, 6.9M, 124M, 1.1B."""
    for limit, letter in MAGNITUDES:
        if value < limit:
            continue
        scaled = value / limit
        text = f"{scaled:.1f}" if scaled < 100 else f"{scaled:.0f}"
        return re.sub(r"\.0$", "", text) + letter
    return f"{value:.0f}"


def format_duration(seconds: float) -> str:
    """Write seconds as a duration: 8.4 s, 61 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"

    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def format_estimate(seconds: float) -> str:
    """Write an estimated duration: as `format_duration` does, but 1 min 44 s below ten minutes."""
    whole = round(seconds)
    if 60 <= whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    return format_duration(seconds)


def format_dollars(value: float) -> str:
    """Write an amount of money: $1,234.50."""
    return f"${value:,.2f}"


def format_megabytes(size: float) -> str:
    """Write a number of bytes in millions of them: 1,234.5 MB; in a smaller unit where that would say 0.0: 12 kB."""
    if size < 1e5:
        return format_bytes(size)
    return f"{size / 1e6:,.1f} MB"


def format_bytes(size: float) -> str:
    """Write a number of bytes in the unit that fits it: 0 bytes, 980 bytes, 12 kB, 3.1 MB, 1.2 GB, 2,300 TB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # What rounds up to the next unit's 1 is written in that: 1 MB, not 1,000 kB.
        if size >= 0.9995 * limit:
            scaled = size / limit
            digits = 1 if scaled < 99.95 else 0
            return f"{scaled:,.{digits}f}".removesuffix(".0") + f" {unit}"
    return "1 byte" if size == 1 else f"{size:,.0f} bytes"


def format_gib(size: int) -> str:
    """Format bytes as GiB, with two decimals."""
    return f"{size / 2**30:,.2f}"


def format_hours(hours: float) -> str:
    """Format hours so that minutes show too."""
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"


def format_number(value: float) -> str:
    """Format 12,345 in full, from a million on as 1.2M or 3.4B."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:,.0f}"


def format_percent(share: float) -> str:
    """Format a share in whole per cent."""
    return f"{100 * share:.0f}%"


# The names that a metric's `format` may have, besides Python's format specifications.
STYLES: dict[str, Callable[[float], str]] = {
    "score": format_score,
    "short": format_short,
    "learning rate": format_learning_rate,
    "count": format_count,
    "duration": format_duration,
    "dollars": format_dollars,
}


def format_value(value: float, style: str) -> str:
    """Write a number in one of `STYLES`, or by a format specification such as `.1%`."""
    if style in STYLES:
        return STYLES[style](value)
    return format(value, without_negative_zero(style))


def without_negative_zero(style: str) -> str:
    """Return a format specification that writes what rounds to zero without a sign (PEP 682)."""
    return re.sub(r"^([-+ ]?)(?=[\d,_.]*[eEfFgG%]$)", r"\1z", style)


def one_line(text: object) -> str:
    """Convert anything (an error, a completion) to text on one line, with single spaces between words."""
    return " ".join(str(text).split())


def align_columns(rows: list[list[str]], left_columns: int = 1, width: int | None = None) -> str:
    """Pad columns to their widest cell: the first `left_columns` of them are flush left, the others right.

    Columns that do not fit in `width` (None: the terminal's) follow below, after the first column once more.
    """
    width = width or terminal_width()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    used = 2 + widths[0]
    fitting = 1
    while fitting < len(widths) and used + 2 + widths[fitting] <= width:
        used += 2 + widths[fitting]
        fitting += 1
    if 1 < fitting < len(widths):
        first = [row[:fitting] for row in rows]
        rest = [[row[0], *row[fitting:]] for row in rows]
        return f"{align_columns(first, left_columns, width)}\n\n{align_columns(rest, 1, width)}"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    lines = []
    for row in rows:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if index < left_columns else cell.rjust(width))
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
