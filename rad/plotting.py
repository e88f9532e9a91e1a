"""Figures and tables from the rows of `rad.results`.

Variants have the same colour, marker and place in every figure. A curve is the mean over seeds; its
band goes from the lowest seed to the highest.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from rad.errors import UsageError
from rad.results import write_atomic

COLUMN_WIDTH = 3.3  # inches
UNITS = ("B", "kB", "MB", "GB")

# Okabe and Ito's colours and darker or greyer relatives, told apart without colour by the marker.
STYLES = {
    "baseline": ("#000000", "o"),
    "reduced_batch": ("#D55E00", "s"),
    "same_sample": ("#E69F00", "^"),
    "different_sample": ("#0072B2", "v"),
    "project": ("#009E73", "D"),
    "different_project": ("#56B4E9", "d"),
    "stochastic_rounding": ("#CC79A7", "P"),
    "dithered_rounding": ("#882255", "X"),
    "sampled_rounding": ("#332288", "<"),
    "importance_sampling": ("#999933", ">"),
    "auto": ("#777777", "*"),
}
PROGRAMS = {
    "torch": ("#000000", "o"),
    "lean_exact": ("#777777", "o"),
    "checkpointing": ("#CC79A7", "*"),
    "dense_reference": ("#0072B2", "x"),
}
MEMORY_COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "printed_mb": (
        "paper, printed",
        {"color": "#000000", "marker": "x", "markersize": 6, "linestyle": "none", "zorder": 5},
    ),
    "honest_mb": ("by hand, corrected", {"color": "#E69F00", "linewidth": 2.2}),
    "saved_mb": ("saved, measured", {"color": "#0072B2", "linestyle": "--", "marker": "o"}),
    "peak_mb": ("peak, measured", {"color": "#777777", "linestyle": ":", "marker": "."}),
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


def select(
    frame: pd.DataFrame, budget: str | float | None = None, overrides: str | None = None
) -> pd.DataFrame:
    """The rows at one budget and with one set of overrides, `baseline` (of any budget) among them.

    `frame` has the columns `variant, budget, path`. None stands for the only one there is.

    Raises:
        UsageError: no such rows, or several budgets or sets of overrides and none chosen.
    """
    extra = frame["path"].map(_overrides)
    chosen = _choose("overrides", sorted(set(extra)), overrides)
    frame = frame[extra == chosen]
    baseline = frame["variant"] == "baseline"
    budgets = frame["budget"].astype(str)
    if budget is None and baseline.all():
        return frame
    budget = _choose("budget", sorted(set(budgets[~baseline])), budget)
    return frame[baseline | (budgets == budget)]


def _overrides(path: str) -> str:
    return Path(path).parent.name.partition(",")[2]


def _choose(what: str, there: Sequence[str], wanted: str | float | None) -> str:
    choices = ", ".join(repr(choice) for choice in there)
    if wanted is None:
        if len(there) > 1:
            raise UsageError(f"there are runs with several {what}: choose {what}= one of {choices}")
        return there[0]
    if str(wanted) not in there:
        raise UsageError(f"no runs with {what}={wanted}: choose one of {choices}")
    return str(wanted)


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
    for name in (x, *columns):
        if name not in metrics or metrics[name].isna().all():
            there = ", ".join(name for name in LABELS if name in metrics)
            raise UsageError(f"there is no {name!r} in the metrics: choose one of {there}")
    variants = _ordered(metrics["variant"])
    with mpl.rc_context(RC):
        height = 1.0 + 0.13 * len(variants) + 1.4 * len(columns)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        shares = [1.6, 1.0][: len(columns)]
        panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False, height_ratios=shares)[
            :, 0
        ]
        for axes, name in zip(panels, columns, strict=True):
            for variant in variants:
                rows = metrics[metrics["variant"] == variant]
                _curve(axes, rows, x, name, variant, _legend_entry(summaries, variant))
            axes.set_ylabel(LABELS[name])
            axes.grid(color="0.9", linewidth=0.5)
            if name.endswith("loss"):
                axes.set_yscale("log")
            elif name.endswith("accuracy"):
                axes.set_ylim(bottom=_floor(metrics, name))
        panels[-1].set_xlabel(LABELS[x])
        panels[-1].xaxis.set_major_locator(MaxNLocator(5))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            frameon=False,
            title=f"variant, batch size, saved bytes\n{_caption(metrics)}",
        )
    return figure


def memory_figure(table: pd.DataFrame) -> Figure:
    """Table 1: printed, by hand and measured, against the keep fraction; a panel a network.

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
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def benchmark_figure(table: pd.DataFrame) -> Figure:
    """Time against saved bytes, a panel for each network; torch at the dashed line.

    `table` has the columns `network, program, saved_bytes, time_ratio`.
    """
    networks = list(dict.fromkeys(table["network"]))
    with mpl.rc_context(RC):
        height = 1.3 + 1.5 * len(networks)
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        panels = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
        for axes, network in zip(panels, networks, strict=True):
            for _, row in table[table["network"] == network].iterrows():
                colour, marker = {**PROGRAMS, **STYLES}.get(row["program"], ("#777777", "."))
                label = row["program"].replace("_", " ")
                axes.plot(
                    row["saved_bytes"] / 1e6, row["time_ratio"], marker, color=colour, label=label
                )
            axes.axhline(1, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(ylabel=f"{network}\ntime / torch's", ylim=(0, None))
        panels[-1].set_xlabel("saved MB of one forward pass")
        handles = {
            label: handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False
        )
    return figure


def _caption(metrics: pd.DataFrame) -> str:
    seeds = metrics["seed"].nunique()
    return f"(mean of {seeds} seeds; band: lowest to highest)" if seeds > 1 else "(one seed)"


def _floor(metrics: pd.DataFrame, column: str) -> float | None:
    """The lowest value once training has begun: chance level would flatten the curves."""
    lowest = metrics.loc[metrics["iteration"] > 0, column].min()
    return None if pd.isna(lowest) else max(0.0, lowest - 0.02)


def _curve(axes: Axes, rows: pd.DataFrame, x: str, column: str, variant: str, label: str) -> None:
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


def _ordered(variants: pd.Series) -> list[str]:
    """Those present, in the order of `STYLES`, unknown ones last."""
    present = set(variants)
    known = [variant for variant in STYLES if variant in present]
    return [*known, *sorted(present - set(known))]


def _legend_entry(summaries: pd.DataFrame, variant: str) -> str:
    run = summaries[summaries["variant"] == variant].iloc[0]
    saved = byte_text(int(run["memory.saved_bytes"]))
    return f"{variant.replace('_', ' ')}, {int(run['batch_size'])}, {saved}"


def byte_text(count: int) -> str:
    """Three significant digits in B, kB, MB or GB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = 1 if count < 999_500 else 2 if count < 999_500_000 else 3
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `path` as PNG (300 dpi) and PDF, each whole or not at all; equal figures, equal bytes.

    Raises:
        UsageError: a suffix other than .png and .pdf, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix not in ("", ".png", ".pdf"):
        raise UsageError(f"{path} ends in {path.suffix}; a figure is written as .png and .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {path.parent} ({error.strerror}); choose another output"
        ) from error
    png, pdf = path.with_suffix(".png"), path.with_suffix(".pdf")
    with mpl.rc_context(RC):
        write_atomic(png, _rendered(figure, "png", {"Software": None}))
        write_atomic(pdf, _rendered(figure, "pdf", {"CreationDate": None}))
    return png, pdf


def _rendered(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=300, metadata=metadata)
    return buffer.getvalue()


def summary_table(summaries: pd.DataFrame) -> str:
    """A Markdown table, one row for each variant and budget.

    Losses and accuracy are mean and standard deviation over seeds; the training loss is that
    over the original training set, and runs on a bootstrap sample show theirs beside it.
    `summaries` is as `rad.results.summaries` reads it.
    """
    header = ("variant", "budget", "batch", "keep", "saved bytes", "training loss", "test accuracy")
    bootstrap = ("bootstrap loss",) if "final.bootstrap_loss" in summaries else ()
    rows: list[tuple[str, ...]] = [(*header, *bootstrap, "seeds")]
    for variant in _ordered(summaries["variant"]):
        of_variant = summaries[summaries["variant"] == variant]
        for budget, runs in of_variant.groupby("budget", sort=True):
            rows.append(_table_row(variant, str(budget), runs))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_table_line(row, widths) for row in rows]
    lines.insert(1, _table_line(["-" * width for width in widths], widths))
    return "\n".join(lines)


def _table_row(variant: str, budget: str, runs: pd.DataFrame) -> tuple[str, ...]:
    first = runs.iloc[0]
    keep = "" if pd.isna(first["keep_fraction"]) else f"{first['keep_fraction']:.4g}"
    return (
        variant,
        budget,
        str(int(first["batch_size"])),
        keep,
        f"{int(first['memory.saved_bytes']):,}",
        _spread(runs["final.train_loss"]),
        _spread(100 * runs["final.test_accuracy"], " %"),
        *([_spread(runs["final.bootstrap_loss"])] if "final.bootstrap_loss" in runs else []),
        str(runs["seed"].nunique()),
    )


def _spread(values: pd.Series, unit: str = "") -> str:
    """Mean to three or four significant digits, and the deviation to as many places."""
    mean = float(values.mean())
    if 0 < abs(mean) < 1e-4:
        deviation = f" ± {values.std():.1e}" if len(values) > 1 else ""
        return f"{mean:.2e}{deviation}{unit}"
    places = 2 if mean == 0 else max(2, 2 - math.floor(math.log10(abs(mean))))
    deviation = f" ± {values.std():.{places}f}" if len(values) > 1 else ""
    return f"{mean:.{places}f}{deviation}{unit}"


def _table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Variant and budget to the left, figures to the right."""
    aligned = [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(aligned)} |"
