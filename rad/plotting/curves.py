"""Learning curves: the mean over seeds, in a band from the lowest seed to the highest."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rad.errors import UsageError
from rad.plotting.style import (
    COLUMN_WIDTH,
    LABELS,
    RC,
    STYLES,
    byte_text,
    label_of,
    log_ticks,
    ordered,
)

OF_THE_RUN = ("variant", "budget", "seed", "path")
"""Columns that tell of which run a row is."""


def convergence(
    metrics: pd.DataFrame,
    summaries: pd.DataFrame,
    column: str = "train_loss",
    *,
    x: str = "iteration",
    second: str | None = None,
) -> Figure:
    """`column` against `x` for each variant, one column of text wide; `second` in a panel below.

    Losses stand on a log scale. The legend gives batch size and saved bytes. Both frames are as
    `rad.results` reads them and hold one budget (`select`).

    Raises:
        UsageError: a column that the metrics lack or that is empty.
    """
    columns = [column] if second is None else [column, second]
    height = 1.0 + 0.13 * metrics["variant"].nunique() + 1.4 * len(columns)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        shares = [1.6, 1.0][: len(columns)]
        panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False, height_ratios=shares)
        _draw(figure, list(panels[:, 0]), metrics, summaries, columns, x)
        panels[-1, 0].set_xlabel(label_of(x))
    return figure


def four_panels(metrics: pd.DataFrame, summaries: pd.DataFrame, *, x: str = "iteration") -> Figure:
    """Loss and accuracy, training and test, against `x`, two columns of text wide.

    Where the task has no accuracy, the metric that it has beside the loss. The training loss is
    that on the sample trained on, where one is used. Frames as in `convergence`.

    Raises:
        UsageError: a column that the metrics lack or that is empty.
    """
    training = "bootstrap_loss" if "bootstrap_loss" in metrics else "train_loss"
    metric = next((name for name in evaluated(metrics) if name != "loss"), "accuracy")
    columns = [training, "test_loss", f"train_{metric}", f"test_{metric}"]
    height = 4.2 + 0.13 * metrics["variant"].nunique()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(2.1 * COLUMN_WIDTH, height), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        _draw(figure, list(panels.flat), metrics, summaries, columns, x)
        for axes in panels[-1]:
            axes.set_xlabel(label_of(x))
    return figure


def _draw(
    figure: Figure,
    panels: Sequence[Axes],
    metrics: pd.DataFrame,
    summaries: pd.DataFrame,
    columns: Sequence[str],
    x: str,
) -> None:
    """Draw one column of the metrics into each panel, and the legend."""
    for name in (x, *columns):
        check_column(metrics, name)
    variants = ordered(metrics["variant"])
    for axes, name in zip(panels, columns, strict=True):
        for variant in variants:
            rows = metrics[metrics["variant"] == variant]
            draw_curve(axes, rows, x, name, variant, _legend_entry(summaries, variant))
        style_axes(axes, metrics, name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(panels) > 2 else 1,
        frameon=False,
        title=f"{caption(metrics, summaries)}\nvariant, batch size, saved bytes",
    )


def evaluated(metrics: pd.DataFrame) -> list[str]:
    """What the test set is evaluated on, by the columns `test_<metric>`."""
    return [str(name)[5:] for name in metrics if str(name).startswith("test_")]


def check_column(metrics: pd.DataFrame, name: str) -> None:
    """Raises UsageError for a column that the metrics lack, that is empty, or measures nothing."""
    measured = name in metrics and name not in OF_THE_RUN and not metrics[name].isna().all()
    if not measured or not pd.api.types.is_numeric_dtype(metrics[name]):
        own = [f"{split}_{metric}" for split in ("train", "test") for metric in evaluated(metrics)]
        there = ", ".join(name for name in dict.fromkeys([*LABELS, *own]) if name in metrics)
        raise UsageError(f"there is no {name!r} in the metrics: choose one of {there}")


def style_axes(axes: Axes, metrics: pd.DataFrame, name: str) -> None:
    """Label, grid, and a log scale for losses."""
    axes.set_ylabel(label_of(name))
    axes.grid(color="0.9", linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if name.endswith("loss"):
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    elif name.endswith("accuracy"):
        axes.set_ylim(*_range(metrics, name))


def caption(metrics: pd.DataFrame, summaries: pd.DataFrame) -> str:
    """What was trained on what, for how long, and how many seeds are behind a line."""
    seeds = metrics.groupby("variant")["seed"].nunique()
    least, most = int(seeds.min()), int(seeds.max())
    count = f"{least}" if least == most else f"{least} to {most}"
    many = f"mean of {count} seeds, lowest to highest" if most > 1 else "one seed"
    return f"{conditions(summaries)}\n{many}"


def conditions(summaries: pd.DataFrame) -> str:
    """Net, data, updates and scale, those that all runs have in common."""
    same = [name for name in summaries if len(set(map(str, summaries[name]))) == 1]
    common = summaries[same].iloc[0]
    there = [common[name] for name in ("model", "dataset") if isinstance(common.get(name), str)]
    words = [" on ".join(there)] if there else []
    words += [f"{int(common['iterations']):,} iterations"] if "iterations" in common else []
    scale = common.get("scale")
    words += [f"scale {scale}"] if isinstance(scale, str) and scale != "paper" else []
    return ", ".join(words).replace("_", " ")


def _range(metrics: pd.DataFrame, column: str) -> tuple[float | None, float | None]:
    """What there is after a quarter of training: the start would flatten all that follows."""
    late = metrics.loc[metrics["iteration"] >= metrics["iteration"].max() / 4, column]
    if late.isna().all():
        return None, None
    margin = max(0.002, 0.08 * (late.max() - late.min()))
    return max(0.0, late.min() - margin), min(1.0, late.max() + margin)


def draw_curve(
    axes: Axes, rows: pd.DataFrame, x: str, column: str, variant: str, label: str
) -> None:
    """Mean line, with ten markers or so, and band."""
    colour, marker = STYLES.get(variant, ("#777777", "."))
    rows = rows.dropna(subset=[column])
    by_iteration = rows.groupby("iteration")
    values = by_iteration[column]
    mean = values.mean()
    places = mean.index if x == "iteration" else by_iteration[x].mean()
    axes.fill_between(places, values.min(), values.max(), color=colour, alpha=0.18, linewidth=0)
    step = max(1, len(mean) // 10)
    axes.plot(places, mean, color=colour, marker=marker, markevery=step, label=label)


def _legend_entry(summaries: pd.DataFrame, variant: str) -> str:
    run = summaries[summaries["variant"] == variant].iloc[0]
    saved = byte_text(int(run["memory.saved_bytes"]))
    return f"{variant.replace('_', ' ')}, {int(run['batch_size'])}, {saved}"
