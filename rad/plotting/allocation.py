"""Uniform and optimal allocation of a budget, side by side."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, ordered


def allocation_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """Relative variance of the gradient, uniform (hollow) and optimal (filled), by network.

    `table` has the columns of results/allocation/allocation.csv; bars are two standard errors.
    `conditions`, under which all was measured, head the legend.
    """
    networks = list(dict.fromkeys(table["network"]))
    variants = ordered(table["variant"])
    with mpl.rc_context(RC):
        size = (COLUMN_WIDTH, 1.0 + 1.5 * len(networks))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
        for axes, network in zip(panels, networks, strict=True):
            rows = table[table["network"] == network]
            moments = sorted(set(rows["iteration"]))
            places = {
                (moment, variant): i * (len(variants) + 1) + j
                for i, moment in enumerate(moments)
                for j, variant in enumerate(variants)
            }
            for (moment, variant, allocation), row in rows.groupby(
                ["iteration", "variant", "allocation"]
            ):
                colour, marker = STYLES.get(variant, ("#777777", "."))
                optimal = allocation == "optimal"
                axes.errorbar(
                    places[moment, variant],
                    row["measured"].iloc[0],
                    2 * row["standard_error"].iloc[0],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    markerfacecolor=colour if optimal else "white",
                    label=f"{variant.replace('_', ' ')}, {allocation}",
                )
            middle = (len(variants) - 1) / 2
            axes.set_xticks(
                [i * (len(variants) + 1) + middle for i in range(len(moments))],
                [f"iteration {moment}" for moment in moments],
            )
            axes.set(ylabel=f"{network}\nrelative variance")
            axes.set_ylim(0, 1.12 * rows["measured"].max())
            axes.grid(axis="y", color="0.9", linewidth=0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(
            unique.values(),
            unique.keys(),
            title=conditions or None,
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
    return figure
