"""What is reached with how many bytes and in how much time, variants beside each other."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rad.errors import UsageError
from rad.plotting.curves import caption, check_column, draw_curve, style_axes
from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, common_legend, label_of, log_ticks, ordered


def front(metrics: pd.DataFrame, summaries: pd.DataFrame, column: str = "test_loss") -> Figure:
    """The final value of `column` against saved bytes, and its curve against seconds of training.

    The untrained network is left out. Means over seeds; bars and bands go from the lowest seed to
    the highest. Frames are as `rad.results` reads them and hold one budget
    (`rad.plotting.select`).

    Raises:
        UsageError: a column that the metrics lack or that is empty.
    """
    for name in ("seconds", column):
        check_column(metrics, name)
    final = f"final.{column}"
    if final not in summaries:
        raise UsageError(f"no run ends with {column!r}: choose a column of the last row")
    with mpl.rc_context(RC):
        rows = -(-summaries["variant"].nunique() // 3)
        size = (2.1 * COLUMN_WIDTH, 2.4 + 0.15 * rows)
        figure = Figure(figsize=size, layout="constrained")
        left, right = figure.subplots(1, 2)
        _ends(left, summaries, final, label_of(column))
        trained = metrics[metrics["iteration"] > 0]
        for variant in ordered(metrics["variant"]):
            of_variant = trained[trained["variant"] == variant]
            draw_curve(right, of_variant, "seconds", column, variant, variant.replace("_", " "))
        style_axes(right, trained, column)
        right.set_xlabel(label_of("seconds"))
        common_legend(figure, caption(metrics, summaries), columns=4)
    return figure


def _ends(axes: Axes, summaries: pd.DataFrame, final: str, label: str) -> None:
    for variant in ordered(summaries["variant"]):
        runs = summaries[summaries["variant"] == variant]
        values, saved = runs[final], runs["memory.saved_bytes"].mean() / 1e6
        colour, marker = STYLES.get(variant, ("#777777", "."))
        bars = [[values.mean() - values.min()], [values.max() - values.mean()]]
        named = variant.replace("_", " ")
        axes.errorbar(
            saved, values.mean(), bars, color=colour, marker=marker, label=named, markersize=5
        )
    axes.set(xscale="log", yscale="log", xlabel="saved MB", ylabel=f"final {label}")
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis)
    axes.grid(color="0.9", linewidth=0.5)
