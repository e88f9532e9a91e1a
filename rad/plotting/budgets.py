"""What a memory budget buys: final values against memory, and the curves of each budget."""

from __future__ import annotations

import math

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rad.errors import UsageError
from rad.plotting.curves import caption, check_column, draw_curve, style_axes
from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, common_legend, label_of, log_ticks, ordered


def final_against_memory(summaries: pd.DataFrame, column: str = "train_loss") -> Figure:
    """The final value of `column` against parameter plus saved bytes, a line for each variant.

    Means over seeds; bars go from the lowest seed to the highest. `summaries` is as
    `rad.results` reads it, with one set of overrides.

    Raises:
        UsageError: a column that the summaries lack or that is empty.
    """
    name = f"final.{column}"
    if name not in summaries or summaries[name].isna().all():
        there = ", ".join(str(c)[6:] for c in summaries if str(c).startswith("final."))
        raise UsageError(f"there is no final {column!r}: choose one of {there}")
    memory = summaries["memory.parameter_bytes"] + summaries["memory.saved_bytes"]
    runs = summaries.assign(megabytes=memory / 1e6)
    with mpl.rc_context(RC):
        height = 2.4 + 0.13 * math.ceil(runs["variant"].nunique() / 2)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for variant in ordered(runs["variant"]):
            colour, marker = STYLES.get(variant, ("#777777", "."))
            points = runs[runs["variant"] == variant].groupby("megabytes")[name]
            mean = points.mean()
            bars = [mean - points.min(), points.max() - mean]
            label = variant.replace("_", " ")
            axes.errorbar(
                mean.index, mean, bars, color=colour, marker=marker, label=label, elinewidth=0.8
            )
        axes.set(xscale="log", xlabel="parameter and saved MB", ylabel=f"final {label_of(column)}")
        log_ticks(axes.xaxis, (1, 1.5, 2, 3, 5, 7))
        axes.grid(color="0.9", linewidth=0.5)
        if column.endswith("loss"):
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        title = caption(runs, runs)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, title=title)
    return figure


def curves_by_budget(
    metrics: pd.DataFrame,
    summaries: pd.DataFrame,
    column: str = "train_loss",
    *,
    x: str = "iteration",
) -> Figure:
    """`column` against `x`, a panel for each budget; the baseline, which has none, in all.

    `metrics` and `summaries` are as `rad.results` reads them, with one set of overrides.

    Raises:
        UsageError: a column that the metrics lack or that is empty, or no budget.
    """
    for name in (x, column):
        check_column(metrics, name)
    baseline = metrics[metrics["variant"] == "baseline"]
    others = metrics[metrics["variant"] != "baseline"]
    budgets = sorted(set(others["budget"].astype(str)))
    if not budgets:
        raise UsageError("there are no runs with a budget: sweep some, budget=0.05,0.1,0.3")
    variants = ordered(metrics["variant"])
    rows = math.ceil(len(budgets) / 2)
    with mpl.rc_context(RC):
        size = (2.1 * COLUMN_WIDTH, 0.5 + 0.13 * len(variants) + 1.7 * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, budget in zip(grid, budgets, strict=False):
            shown = pd.concat([baseline, others[others["budget"].astype(str) == budget]])
            for variant in ordered(shown["variant"]):
                label = variant.replace("_", " ")
                draw_curve(axes, shown[shown["variant"] == variant], x, column, variant, label)
            style_axes(axes, metrics, column)
            axes.set_title(f"budget {budget}", fontsize=8)
        for axes in grid[len(budgets) :]:
            axes.set_axis_off()
        for axes in grid[max(0, len(budgets) - 2) : len(budgets)]:
            axes.set_xlabel(label_of(x))
            axes.tick_params(labelbottom=True)
        common_legend(figure, caption(metrics, summaries), columns=3)
    return figure
