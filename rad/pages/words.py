"""Numbers as the documents print them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; `header` and `rows` are cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def significant(value: float, digits: int = 3) -> str:
    """Rounded once, to so many significant digits; 1 is written 1.00, and 0 is 0."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "-"
    power = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if not -4 <= power < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Mean and standard deviation, both to the last place that the deviation fixes.

    The deviation has one significant digit, two where the first is 1 or 2; the mean has four at
    most, and a deviation below its last place is left out. A single value has four digits, too.
    """
    mean = float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    exponent = int(f"{mean:.3e}".partition("e")[2])
    last = exponent - 3
    if deviation > 0:
        last = max(last, _power(deviation) - (f"{deviation:.0e}"[0] in "12"))
    digits = max(0, exponent - last)
    if exponent < -3:
        text, beside = f"{mean:.{digits}e}", f"{deviation:.{max(0, _power(deviation) - last)}e}"
    else:
        text, beside = (f"{value:,.{max(0, -last)}f}" for value in (mean, deviation))
    return f"{text} ± {beside}{unit}" if deviation >= 0.5 * 10.0**last else f"{text}{unit}"


def _power(value: float) -> int:
    """The power of ten of the first significant digit, once rounded to it."""
    return int(f"{value:.0e}".partition("e")[2])


def whole(values: Iterable[float]) -> str:
    """A count, or the smallest and the largest of several."""
    counts = [int(value) for value in values]
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def cell(column: str, value: object) -> str:
    """A cell of a measurement's table: what its unit is, the end of the column's name says."""
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    if math.isnan(number):
        return "-"
    if column.endswith("_bytes"):
        unit, name = (1e9, "GB") if number >= 1e9 else (1e6, "MB")
        return f"{significant(number / unit)} {name}"
    if column.endswith("_mb"):
        return f"{number:.2f}"
    if column.endswith("time_ratio"):
        return f"{number:.2f}x"
    if column.startswith("over_"):
        return f"{number:.4f}"
    if number == int(number) and abs(number) >= 1:
        return f"{int(number):,}"
    return significant(number)
