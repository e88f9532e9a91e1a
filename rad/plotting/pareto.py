"""RAD beside what else saves memory."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rad.plotting.benchmark import PROGRAMS
from rad.plotting.style import COLUMN_WIDTH, RC, STYLES, common_legend, log_ticks

EXACT = ("torch", "lean_exact", "accumulation", "checkpointing", "compiled", "exact")
"""Methods whose gradient is the baseline's."""

METHODS = {**PROGRAMS, **STYLES}
COLUMNS = {
    "loss": "loss,\nequal iterations",
    "loss_at_equal_time": "loss,\nequal time",
    "variance_ratio": "gradient variance /\nfull batch's",
}
NETWORKS = {
    "feedforward": "feedforward, MNIST",
    "convnet": "convnet, CIFAR-10",
    "irnn": "IRNN, 49 steps",
    "pde": "PDE control",
}
WITHOUT_BATCH = {"pde": "gradient variance /\nsquared gradient"}
"""What `variance_ratio` is where the exact gradient has no variance."""


def pareto_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """Losses and variance against saved bytes: a line of panels for each network.

    `table` has the columns `network, method, saved_bytes` and those of `COLUMNS`; a line joins the
    methods that no other beats in both. Values of 0 and panels without values are left out.
    `conditions`, of all networks, head the legend.
    """
    networks = list(dict.fromkeys(table["network"]))
    with mpl.rc_context(RC):
        size = (2.1 * COLUMN_WIDTH, 1.0 + 1.75 * len(networks))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(networks), len(COLUMNS), squeeze=False)
        for line, network in zip(grid, networks, strict=True):
            saved = table.loc[table["network"] == network, "saved_bytes"] / 1e6
            for axes, (column, label) in zip(line, COLUMNS.items(), strict=True):
                rows = table[(table["network"] == network) & (table[column] > 0)]
                if rows.empty:
                    axes.set_axis_off()
                    continue
                _panel(axes, rows, column, (0.75 * saved.min(), 1.35 * saved.max()))
                own = column == "variance_ratio" and network in WITHOUT_BATCH
                axes.set_ylabel(WITHOUT_BATCH[network] if own else label)
                axes.set_title(NETWORKS.get(network, network), fontsize=8)
        common_legend(figure, conditions, columns=4)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, column: str, megabytes: tuple[float, float]) -> None:
    front = rows.sort_values(["saved_bytes", column])
    front = front[front[column] < front[column].cummin().shift(fill_value=float("inf"))]
    axes.step(front["saved_bytes"] / 1e6, front[column], where="post", color="0.8", zorder=0)
    for method, saved, value in zip(rows["method"], rows["saved_bytes"], rows[column], strict=True):
        colour, marker = METHODS.get(method, ("#777777", "."))
        axes.plot(
            saved / 1e6, value, marker, color=colour, markersize=5, label=method.replace("_", " ")
        )
    axes.set(xscale="log", yscale="log", xlabel="saved MB", xlim=megabytes)
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis)
    axes.grid(color="0.9", linewidth=0.5)
