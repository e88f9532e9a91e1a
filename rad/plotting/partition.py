"""Time against saved bytes of ways to compile a network."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rad.plotting.benchmark import PROGRAMS
from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, common_legend, log_ticks

COLUMNS = 2

LOOKS = {
    "torch": ("torch", PROGRAMS["torch"]),
    "checkpointing": ("checkpointing of each block", STYLES["checkpointing"]),
    "compiled": ("torch.compile, activation_memory_budget", ("#0072B2", "s")),
    "rad_compile": ("rad.compile", STYLES["dithered_rounding"]),
}
"""By method: its label, colour and marker."""


def partition_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """Time over plain torch's against saved bytes, a panel for each network.

    `table` has the columns `network, method, saved_bytes, time_ratio`; rows without numbers are
    left out. A line joins the budgets of a method that no other of its budgets beats in both.
    `conditions`, under which all was measured, head the legend.
    """
    networks = list(dict.fromkeys(table["network"]))
    lines = -(-len(networks) // COLUMNS)
    with mpl.rc_context(RC):
        size = (2 * COLUMN_WIDTH, 0.7 + 1.7 * lines)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axes in panels[len(networks) :]:
            axes.set_axis_off()
        for axes, network in zip(panels, networks, strict=False):
            _panel(axes, table[(table["network"] == network) & (table["saved_bytes"] > 0)])
            axes.set_title(network, fontsize=8)
        common_legend(figure, conditions)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    for method, (label, (colour, marker)) in LOOKS.items():
        own = rows[rows["method"] == method].sort_values(["saved_bytes", "time_ratio"])
        if own.empty:
            continue
        front = own[own["time_ratio"] < own["time_ratio"].cummin().shift(fill_value=float("inf"))]
        axes.plot(front["saved_bytes"] / 1e6, front["time_ratio"], color=colour, zorder=1)
        axes.plot(
            own["saved_bytes"] / 1e6, own["time_ratio"], marker, color=colour, label=label, zorder=2
        )
    axes.axhline(1, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
    axes.set(xscale="log", xlabel="saved MB", ylabel="time / torch's")
    log_ticks(axes.xaxis)
