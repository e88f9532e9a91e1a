"""Time against memory, measured."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, common_legend, log_ticks

PROGRAMS = {
    "torch": ("#000000", "o"),
    "lean_exact": ("#AAAAAA", "o"),
    "dense_reference": ("#17BECF", "x"),
    "compiled": ("#BCBD22", "x"),
    "exact": ("#404040", "o"),
    "same_sample_in_slices": ("#FF9DA7", "2"),
    "different_sample_in_slices": ("#7F7FFF", "2"),
}
"""Colour and marker of programs that are no variants."""


def benchmark_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """Time against saved bytes, a panel for each network; its first program at the dashed line.

    `table` has the columns `network, program, batch_size, saved_bytes, time_ratio, rounds`. A
    program looks like the first word of its name. `conditions`, under which all was measured, head
    the legend.
    """
    networks = list(dict.fromkeys(table["network"]))
    with mpl.rc_context(RC):
        height = 1.3 + 1.5 * len(networks)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        panels = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
        for axes, network in zip(panels, networks, strict=True):
            rows = table[table["network"] == network]
            for _, row in rows.iterrows():
                look, _, _ = row["program"].partition(" ")
                colour, marker = {**PROGRAMS, **STYLES}.get(look, ("#777777", "."))
                label = row["program"].replace("_", " ")
                axes.plot(
                    row["saved_bytes"] / 1e6, row["time_ratio"], marker, color=colour, label=label
                )
            axes.axhline(1, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
            axes.set_xscale("log")
            log_ticks(axes.xaxis)
            first = rows["program"].iloc[0].replace("_", " ")
            axes.set(ylabel=f"time / {first}'s", ylim=(0, None))
            batch, rounds = rows["batch_size"].iloc[0], rows["rounds"].iloc[0]
            words = f"{network.replace('_', ' ')}, batch {batch:g}, medians of {rounds:g}"
            axes.set_title(words, fontsize=7)
        panels[-1].set_xlabel("saved MB of one forward pass")
        common_legend(figure, conditions)
    return figure
