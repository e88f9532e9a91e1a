"""The README's figure: what is left of the loss, against the bytes that a step keeps."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from rad.pages.runs import Runs
from rad.plotting import COLUMN_WIDTH, RC, STYLES, byte_text, log_ticks

SHOWN = (
    ("fig5b_mnist/baseline/*", "full memory", (4, 9), "right"),
    ("fig5b_mnist/reduced_batch/*", "smaller batch", (-8, -1), "right"),
    ("fig5b_mnist/project/*", "project", (7, 3), "left"),
    ("fig5b_mnist/same_sample/*", "same_sample", (7, -3), "left"),
    ("fig5b_mnist/different_sample/*", "different_sample", (7, -2), "left"),
    ("beyond_mnist/stochastic_rounding/budget=0.1", "3 bits, stochastic_rounding", (7, 5), "left"),
    ("beyond_mnist/auto/budget=0.1", "3 bits, auto", (7, -9), "left"),
    ("beyond_mnist/stochastic_rounding/budget=0.05", "1 bit", (-7, -2), "right"),
)
"""Runs, their label, and where it stands beside the marker."""


def headline_figure(runs: Runs) -> Figure:
    """Loss on the bootstrap sample of MNIST after 20,000 iterations, against saved bytes.

    Markers are means over five bootstraps, bars reach from the least to the largest.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1.8 * COLUMN_WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        for source, label, offset, side in SHOWN:
            found = runs.of(source)
            loss = found["final.bootstrap_loss"]
            colour, marker = STYLES[str(found["variant"].iloc[0])]
            x, y = found["memory.saved_bytes"].mean(), loss.mean()
            axes.errorbar(
                [x],
                [y],
                yerr=[[y - loss.min()], [loss.max() - y]],
                color=colour,
                marker=marker,
                markersize=6,
                elinewidth=1.0,
            )
            axes.annotate(
                label,
                (float(x), float(y)),
                offset,
                textcoords="offset points",
                ha=side,
                va="center",
                color=colour,
            )
        axes.set(xscale="log", yscale="log", xlim=(4.2e4, 1.5e6), ylim=(3e-7, 3e-2))
        axes.xaxis.set_major_locator(FixedLocator([5e4, 1e5, 2e5, 5e5, 1e6]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: byte_text(int(value)))
        log_ticks(axes.yaxis)
        axes.set_xlabel("bytes kept between forward and backward pass")
        axes.set_ylabel("training loss (bootstrap sample)")
        axes.set_title(_title(runs.of("fig5b_mnist")), fontsize=8)
    return figure


def _title(found: pd.DataFrame) -> str:
    iterations = int(found["iterations"].iloc[0])
    seeds = found["seed"].nunique()
    return f"784-300-300-300-10 on MNIST, {iterations:,} iterations, {seeds} bootstraps each"
