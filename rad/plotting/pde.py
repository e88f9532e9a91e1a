"""Figure 6: what is sampled, how training goes, what control does, and what memory buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from rad.plotting import COLUMN_WIDTH, LABELS, PROGRAMS, RC, STYLES, byte_text

MARKERS = "v^<>dPX"
FIELD = {"origin": "lower", "extent": (0, 1, 0, 1), "interpolation": "nearest"}
CAPTION = "mean of {} seeds; band: lowest to highest"


def loss_figure(metrics: pd.DataFrame, summaries: pd.DataFrame, conditions: str = "") -> Figure:
    """Figure 6b: loss against iterations for each fraction, and its ratio to the exact run's.

    Ratios are taken seed by seed.
    Both frames are as `rad.results` reads them; `baseline` must be among the runs. In all figures
    here `conditions`, such as the problem's size, stand in the title.
    """
    curves = _by_budget(metrics)
    exact = curves["full"].set_index(["seed", "iteration"])["train_loss"]
    every = max(1, curves["full"]["iteration"].nunique() // 8)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1.0])
        for number, (budget, rows) in enumerate(curves.items()):
            style = _look(number, len(curves))
            saved = summaries.loc[summaries["budget"].astype(str) == budget, "memory.saved_bytes"]
            name = "exact" if budget == "full" else budget
            look: dict[str, Any] = {"markevery": (number * every // len(curves), every), **style}
            losses = rows.set_index(["seed", "iteration"])["train_loss"]
            _band(above, losses, label=f"{name}, {byte_text(int(saved.iloc[0]))}", **look)
            _band(below, (losses / exact).dropna(), **look)
        above.set(ylabel="loss", yscale="log")
        above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter(NullFormatter())
        below.set(xlabel=LABELS["iteration"], ylabel="loss / exact run's")
        below.xaxis.set_major_locator(MaxNLocator(5))
        for axes in (above, below):
            axes.grid(color="0.9", linewidth=0.5)
        seeds_there = metrics["seed"].nunique()
        title = (
            f"{conditions}\n{CAPTION.format(seeds_there)}\nfraction of states, saved bytes".strip()
        )
        handles, labels = above.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False, title=title
        )
    return figure


def samples_figure(
    state: np.ndarray, points: Mapping[str, np.ndarray], time: float, conditions: str = ""
) -> Figure:
    """Figure 6a: a state (points, points), and what each fraction keeps of it.

    `points` has, for the name of a fraction, the coordinates of the samples: (k, 2), x and y.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 1.5), layout="constrained")
        _head(figure, conditions)
        panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
        for axes, (name, places) in zip(panels, points.items(), strict=True):
            image = axes.imshow(state.T, cmap="viridis", vmin=0, **FIELD)
            axes.plot(
                *places.T, "o", color="white", markeredgecolor="black",
                markersize=3, markeredgewidth=0.4, clip_on=False,
            )  # fmt: skip
            axes.set_title(name, fontsize=7)
            axes.set(xlabel="$x$", xticks=[0, 1], yticks=[0, 1])
            _frame(axes)
        panels[0].set_ylabel("$y$")
        bar = figure.colorbar(image, ax=panels, shrink=0.72, aspect=10, pad=0.02)
        bar.set_label(rf"$\phi$ at $t = {time:g}$")
        bar.outline.set_linewidth(0.4)
    return figure


def filmstrip(
    times: Sequence[float],
    target: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    conditions: str = "",
) -> Figure:
    """Target, state and error at some times, before and after control: each (times, n, n)."""
    states = {"target": target, "before": before, "after": after}
    errors = {"error\nbefore": before - target, "error\nafter": after - target}
    top = max(values.max() for values in states.values())
    most = max(np.abs(values).max() for values in errors.values())
    with mpl.rc_context(RC):
        close = ConstrainedLayoutEngine(w_pad=0.015, h_pad=0.015, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=(COLUMN_WIDTH, 3.2), layout=close)
        _head(figure, conditions)
        panels = figure.subplots(5, len(times), squeeze=False)
        _film_rows(panels[:3], states, r"$\phi$", {"cmap": "viridis", "vmin": 0, "vmax": top})
        _film_rows(panels[3:], errors, "error", {"cmap": "RdBu_r", "vmin": -most, "vmax": most})
        for axes, time in zip(panels[0], times, strict=True):
            axes.set_title(f"$t = {time:g}$", fontsize=7, pad=2)
    return figure


def _film_rows(
    panels: np.ndarray, rows: Mapping[str, np.ndarray], label: str, look: Mapping[str, Any]
) -> None:
    """Rows of states, each (times, n, n), that share a colour bar."""
    for line, (name, states) in zip(panels, rows.items(), strict=True):
        for axes, state in zip(line, states, strict=True):
            image = axes.imshow(state.T, **look, **FIELD)
            axes.set(xticks=[], yticks=[])
            _frame(axes)
        line[0].set_ylabel(name, fontsize=7)
    bar = panels[0, 0].figure.colorbar(image, ax=panels, aspect=8 * len(rows), pad=0.02)
    bar.set_label(label)
    bar.outline.set_linewidth(0.4)


POINTS = (
    ("start", "-", (STYLES["different_sample"][0], "#D55E00")),
    ("trained", ":", ("#56B4E9", "#E69F00")),
)
"""Points of training, their lines, and the colours with and without replacement."""


def variance_figure(table: pd.DataFrame, conditions: str = "") -> Figure:
    """Gradient error and time against saved bytes; checkpointing has no error but takes time.

    `table` has the columns `variant, replacement, saved_bytes, time_ratio, noise_start,
    norm_start, noise_trained`.
    """
    sampled = table[table["variant"] == "different_sample"]
    marker = STYLES["different_sample"][1]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 4.6), layout="constrained")
        _head(figure, conditions)
        above, below = figure.subplots(2, 1, sharex=True)
        for point, line, colours in POINTS:
            for replacement, colour, size in zip((True, False), colours, (3.0, 6.0), strict=True):
                fill = colour if replacement else "none"
                rows = sampled[sampled["replacement"] == replacement]
                kind = "with" if replacement else "without"
                above.plot(
                    rows["saved_bytes"] / 1e6, rows[f"noise_{point}"], line, marker=marker,
                    color=colour, markerfacecolor=fill, markersize=size, linewidth=0.8,
                    label=f"{kind} replacement, {point}",
                )  # fmt: skip
        norm = table["norm_start"].iloc[0]
        above.axhline(norm, color="0.5", linewidth=0.7, linestyle="--")
        above.annotate(
            "norm of the gradient at the start", (1, norm), (0, 2), fontsize=6, color="0.35",
            xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        )  # fmt: skip
        above.set(yscale="log", ylabel="rms error of the gradient")
        for variant in ("baseline", "checkpointing", "different_sample"):
            rows = table[(table["variant"] == variant) & (table["replacement"] != False)]  # noqa: E712
            shade, sign = {**STYLES, **PROGRAMS}[variant]
            label = {"baseline": "exact"}.get(variant, variant.replace("_", " "))
            below.plot(
                rows["saved_bytes"] / 1e6, rows["time_ratio"], "-", marker=sign, color=shade,
                markersize=5 if sign == "*" else 3.5, label=label,
            )  # fmt: skip
        below.axhline(1, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
        below.set(xscale="log", ylim=(0, None), xlabel="saved MB", ylabel="time / exact adjoint's")
        for axes, top in ((above, 0.93), (below, 1.0)):
            axes.grid(color="0.9", linewidth=0.5)
            axes.legend(frameon=False, fontsize=6.5, loc="upper right", bbox_to_anchor=(1, top))
    return figure


def _by_budget(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each budget: `full` first, then from the most to the least."""
    budgets = metrics["budget"].astype(str)
    order = sorted(set(budgets), key=lambda b: -2.0 if b == "full" else -float(b))
    return {budget: metrics[budgets == budget] for budget in order}


def _band(axes: Axes, values: pd.Series, **look: Any) -> None:
    """The mean over seeds of values by seed and iteration, and a band from least to most."""
    seeds = values.groupby("iteration")
    mean = seeds.mean()
    axes.fill_between(
        mean.index, seeds.min(), seeds.max(), color=look["color"], alpha=0.15, linewidth=0
    )
    axes.plot(mean.index, mean, **look)


def _look(number: int, count: int) -> dict[str, Any]:
    """Black for the exact run, then colours from dark to light, each with its marker."""
    if number == 0:
        return {"color": STYLES["baseline"][0], "marker": STYLES["baseline"][1]}
    shade = mpl.colormaps["viridis"](0.12 + 0.75 * (number - 1) / max(1, count - 2))
    return {"color": mpl.colors.to_hex(shade), "marker": MARKERS[(number - 1) % len(MARKERS)]}


def _head(figure: Figure, conditions: str) -> None:
    if conditions:
        figure.suptitle(conditions, fontsize=7)


def _frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.4)
