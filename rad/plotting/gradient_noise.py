"""Gradient noise against saved bytes: measured as markers, predicted as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rad.plotting import COLUMN_WIDTH, RC, STYLES, log_ticks, ordered

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


def noise_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """A row for each weight, a column for each iteration; both axes are logarithmic.

    `table` has the columns of `rad.gradient_noise.measure` and `iteration`. Filled markers and
    solid lines are the mean squared deviation from the full gradient, hollow ones and dotted
    lines the sketch noise in it, both over the full gradient's squared norm. Bars are two
    standard errors; the horizontal line is the noise of the baseline's batch. `conditions`, under
    which all was measured, head the legend.
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
            title=f"{conditions}\nbars: 2 s.e.; to the lower edge where they include zero".strip(),
        )
    return figure


def ratio_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """The noise over that of the smaller batch of equal bytes, in one panel, one column wide.

    `table` is as in `noise_figure`; drawn are all weights together at the first point after the
    start; `conditions` head the legend. Below 1 a variant is better than a smaller batch. Bars are
    two standard errors of both, lines closed forms.
    """
    trained = [int(each) for each in sorted(set(table["iteration"])) if each > 0]
    shown = (trained or [0])[0]
    whole = list(dict.fromkeys(table["weight"]))[-1]
    rows = table[(table["iteration"] == shown) & (table["weight"] == whole)]
    smaller = rows[rows["variant"] == "reduced_batch"].set_index("budget")
    point = f"{conditions}\niteration {shown:,}, {whole}".strip()
    others = rows[~rows["variant"].isin(["reduced_batch", "baseline"])]
    others = others[others["budget"].isin(smaller.index)].sort_values(["budget"])
    others = others.drop_duplicates(["variant", "saved_bytes"])  # the same bits for two budgets
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 3.7), layout="constrained")
        axes = figure.subplots()
        for variant in ordered(others["variant"]):
            _ratio(axes, others[others["variant"] == variant].sort_values("saved_bytes"), smaller)
        colour = STYLES["reduced_batch"][0]
        axes.axhline(1, color=colour, linewidth=0.8, linestyle="--")
        axes.annotate(
            "smaller batch", (1, 1), (0, 2), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", color=colour, fontsize=7,
        )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="saved MB")
        axes.set_ylabel("gradient noise / smaller batch's")
        for axis in (axes.xaxis, axes.yaxis):
            log_ticks(axis)
        axes.grid(color="0.9", linewidth=0.5)
        figure.legend(
            loc="outside lower center",
            ncols=2,
            frameon=False,
            title=f"{point}\nmarkers measured (bars: 2 s.e.), lines closed form",
        )
    return figure


def _ratio(axes: Axes, rows: pd.DataFrame, smaller: pd.DataFrame) -> None:
    """One variant's noise over the smaller batch's, at each budget."""
    variant = rows["variant"].iloc[0]
    colour, marker = STYLES[variant]
    base = smaller.loc[rows["budget"]]
    ratio = rows["total"].to_numpy() / base["total"].to_numpy()
    relative = (rows["total_error"] / rows["total"]).to_numpy() ** 2
    relative += (base["total_error"] / base["total"]).to_numpy() ** 2
    saved = rows["saved_bytes"] / 1e6
    predicted = rows["total_predicted"].to_numpy() / base["total_predicted"].to_numpy()
    axes.plot(saved, predicted, color=colour, linewidth=0.8)
    axes.errorbar(
        saved,
        ratio,
        yerr=2 * ratio * relative**0.5,
        fmt=marker,
        color=colour,
        markersize=SIZES.get(variant),
        elinewidth=0.8,
        label=variant.replace("_", " "),
    )


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
