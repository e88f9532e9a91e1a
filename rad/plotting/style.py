"""What all figures share: variants have the same colour, marker and place in every one."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

COLUMN_WIDTH = 3.3  # inches
UNITS = ("B", "kB", "MB", "GB")

# Okabe and Ito's colours and darker or greyer relatives, told apart without colour by the marker.
STYLES = {
    "baseline": ("#000000", "o"),
    "reduced_batch": ("#D55E00", "s"),
    "accumulation": ("#D62728", "+"),
    "checkpointing": ("#8C564B", "8"),
    "activation_memory_budget": ("#1F3A93", "1"),
    "rad_compile": ("#C2185B", "2"),
    "same_sample": ("#E69F00", "^"),
    "different_sample": ("#0072B2", "v"),
    "project": ("#009E73", "D"),
    "different_project": ("#56B4E9", "d"),
    "stochastic_rounding": ("#CC79A7", "P"),
    "dithered_rounding": ("#882255", "X"),
    "rotated_rounding": ("#AA4499", "h"),
    "sampled_rounding": ("#332288", "<"),
    "residual_rounding": ("#117733", "p"),
    "importance_sampling": ("#999933", ">"),
    "principal_project": ("#44AA99", "H"),
    "auto": ("#777777", "*"),
}
LABELS = {
    "iteration": "iteration",
    "seconds": "seconds of training",
    "learning_rate": "learning rate",
    "batch_loss": "batch loss",
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "bootstrap_loss": "bootstrap loss",
}
RC: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
}


def label_of(column: str) -> str:
    """A column of metrics.csv in words: a known one's label, else what its name says."""
    split, _, metric = column.partition("_")
    words = {"train": "training", "test": "test"}
    named = f"{words[split]} {metric}" if split in words and metric else column
    return LABELS.get(column, named.replace("_", " "))


def ordered(variants: pd.Series) -> list[str]:
    """Those present, in the order of `STYLES`, unknown ones last."""
    present = set(variants)
    known = [variant for variant in STYLES if variant in present]
    return [*known, *sorted(present - set(known))]


def byte_text(count: int) -> str:
    """Three significant digits in B, kB, MB or GB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = 1 if count < 999_500 else 2 if count < 999_500_000 else 3
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def log_ticks(axis: Axis, subs: tuple[float, ...] = (1, 2, 5)) -> None:
    """Plain numbers at `subs` times the powers of ten; over many decades, at powers only."""
    low, high = axis.get_view_interval()
    narrow = low > 0 and high < 4 * low
    every = subs if high < 100 * low else (1.0,)
    ticks = LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 8) if narrow else every, numticks=8)
    axis.set_major_locator(ticks)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def common_legend(figure: Figure, title: str = "", columns: int = 2) -> None:
    """One legend below all panels, each label once; `title` says under which conditions."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        title=title or None,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
