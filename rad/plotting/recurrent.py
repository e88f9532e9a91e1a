"""Sketch noise of a recurrent layer against its number of steps."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, ordered


def recurrent_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """Relative variance against steps: closed form as lines, measured as markers with 2 errors.

    `table` has the columns `sketch, steps, measured, standard_error, predicted`; `conditions`,
    under which all was measured, head the legend.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        for name in ordered(table["sketch"]):
            rows = table[table["sketch"] == name]
            colour, marker = STYLES.get(name, ("#777777", "."))
            axes.plot(rows["steps"], rows["predicted"], color=colour)
            axes.errorbar(
                rows["steps"],
                rows["measured"],
                2 * rows["standard_error"],
                color=colour,
                marker=marker,
                markerfacecolor="none",
                linestyle="none",
                label=name.replace("_", " "),
            )
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="relative variance")
        steps = sorted(set(table["steps"]))
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.grid(color="0.9", linewidth=0.5)
        figure.legend(
            loc="outside lower center",
            ncols=3,
            columnspacing=1,
            frameon=False,
            title=f"{conditions}\nmarkers: measured, 2 s.e.; lines: closed form".strip(),
        )
    return figure
