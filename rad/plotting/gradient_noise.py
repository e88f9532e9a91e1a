"""Gradient noise against saved bytes: measured as markers, predicted as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rad.plotting import RC, STYLES, log_ticks

WIDTH = 6.9  # inches: two columns of text
# Linear layers give these two the same noise: both markers are to be seen.
SIZES = {"same_sample": 6.0, "project": 3.0}


class Kind(NamedTuple):
    """How a part of the noise is drawn."""

    fill: Any
    line: Any
    label: str


KINDS = {
    "total": Kind("full", "-", "minibatch and sketch noise: marker measured, line closed form"),
    "sketch": Kind("none", ":", "sketch noise alone"),
}


def noise_figure(table: pd.DataFrame) -> Figure:
    """A row for each weight, a column for each iteration; both axes are logarithmic.

    `table` has the columns of `rad.gradient_noise.measure` and `iteration`. Filled markers and
    solid lines are the mean squared deviation from the full gradient, hollow ones and dotted
    lines the sketch noise in it, both over the full gradient's squared norm. Bars are two
    standard errors; the horizontal line is the noise of the baseline's batch.
    """
    weights, iterations = list(dict.fromkeys(table["weight"])), sorted(set(table["iteration"]))
    present = [variant for variant in STYLES if variant in set(table["variant"])]
    with mpl.rc_context(RC):
        size = (min(WIDTH, 1.2 + 2.1 * len(iterations)), 0.9 + 1.35 * len(weights))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(
            len(weights), len(iterations), squeeze=False, sharex=True, sharey="row"
        )
        for line, weight in zip(grid, weights, strict=True):
            for axes, iteration in zip(line, iterations, strict=True):
                rows = table[(table["weight"] == weight) & (table["iteration"] == iteration)]
                _panel(axes, rows, present)
            line[0].set_ylabel(_name(table, weight))
        for axes, iteration in zip(grid[0], iterations, strict=True):
            axes.set_title(f"iteration {iteration:,}", fontsize=8)
        for axes in grid[-1]:
            axes.set_xlabel("saved MB")
        figure.supylabel("mean squared deviation / |full gradient|²", fontsize=8)
        figure.legend(handles=_kinds(), loc="outside upper center", ncols=2, frameon=False)
        figure.legend(
            handles=_variants(present),
            loc="outside lower center",
            ncols=min(len(present), 4 if len(iterations) > 1 else 2),
            frameon=False,
        )
    return figure


def _name(table: pd.DataFrame, weight: str) -> str:
    shape = table.loc[table["weight"] == weight, "shape"].iloc[0]
    return weight if pd.isna(shape) or not shape else f"{weight}\n{shape}"


def _panel(axes: Axes, rows: pd.DataFrame, variants: Sequence[str]) -> None:
    for variant in variants:
        of_variant = rows[rows["variant"] == variant].sort_values("saved_bytes")
        for part in KINDS:
            if not of_variant.empty and (of_variant[part] > 0).all():
                _draw(axes, of_variant, part)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis)
    axes.grid(color="0.9", linewidth=0.5)


def _draw(axes: Axes, rows: pd.DataFrame, part: str) -> None:
    """One variant's measured and predicted values over its budgets."""
    colour, marker = STYLES[rows["variant"].iloc[0]]
    kind = KINDS[part]
    saved, scale = rows["saved_bytes"] / 1e6, rows["squared_norm"]
    predicted = rows[f"{part}_predicted"] / scale
    if len(rows) == 1:
        axes.axhline(predicted.iloc[0], color=colour, linestyle=kind.line, linewidth=0.5)
    else:
        axes.plot(saved, predicted, kind.line, color=colour, linewidth=0.8)
    axes.errorbar(
        saved,
        rows[part] / scale,
        yerr=2 * rows[f"{part}_error"] / scale,
        fmt=marker,
        color=colour,
        fillstyle=kind.fill,
        markersize=SIZES.get(rows["variant"].iloc[0]),
        elinewidth=0.8,
        markeredgewidth=0.7,
    )


def _variants(variants: Sequence[str]) -> list[Line2D]:
    styles = {v: STYLES[v] for v in variants}
    return [
        Line2D([], [], color=colour, marker=marker, label=v.replace("_", " "))
        for v, (colour, marker) in styles.items()
    ]


def _kinds() -> list[Line2D]:
    return [
        Line2D([], [], color="0.3", marker="o", fillstyle=k.fill, linestyle=k.line, label=k.label)
        for k in KINDS.values()
    ]
