"""Table 1 as a figure."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rad.plotting.style import COLUMN_WIDTH, RC

MEMORY_COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "printed_mb": (
        "paper, printed",
        {"color": "#000000", "marker": "x", "markersize": 6, "linestyle": "none", "zorder": 5},
    ),
    "honest_mb": ("by hand, corrected", {"color": "#E69F00", "linewidth": 2.2}),
    "saved_mb": ("saved, measured", {"color": "#0072B2", "linestyle": "--", "marker": "o"}),
    "peak_mb": ("peak, measured", {"color": "#777777", "linestyle": ":", "marker": "."}),
}


def memory_figure(table: pd.DataFrame) -> Figure:
    """Table 1 against the keep fraction: printed, by hand, measured. One panel per network.

    `table` has the columns of results/table1/table1.csv.
    """
    networks = list(dict.fromkeys(table["model"]))
    with mpl.rc_context(RC):
        height = 0.9 + 1.5 * len(networks)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        panels = figure.subplots(len(networks), 1, squeeze=False, sharex=True)[:, 0]
        for axes, network in zip(panels, networks, strict=True):
            rows = table[table["model"] == network]
            for column, (label, style) in MEMORY_COLUMNS.items():
                axes.plot(rows["keep_fraction"], rows[column], label=label, **style)
            axes.set(ylabel=f"{network}\nMB", ylim=(0, None))
            axes.grid(color="0.9", linewidth=0.5)
        panels[-1].set_xlabel("keep fraction")
        handles, labels = panels[0].get_legend_handles_labels()
        title = "parameters included; batch of 150"
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False, title=title
        )
    return figure
