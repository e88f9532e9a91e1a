"""Tables in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from rad.plotting.style import label_of, ordered


def summary_table(summaries: pd.DataFrame) -> str:
    """A Markdown table, one row for each variant and budget.

    Losses and what else the test set was evaluated on, such as accuracy, are mean and standard
    deviation over seeds; the training loss is that over the original training set, and runs on a
    bootstrap sample show theirs beside it.
    `summaries` is as `rad.results.summaries` reads it.
    """
    scores = [name for name in map(str, summaries) if re.match(r"final\.test_(?!loss$)", name)]
    header = ("variant", "budget", "batch", "keep", "saved bytes", "training loss")
    bootstrap = ("bootstrap loss",) if "final.bootstrap_loss" in summaries else ()
    rows: list[tuple[str, ...]] = [
        (*header, *(label_of(name.removeprefix("final.")) for name in scores), *bootstrap, "seeds")
    ]
    for variant in ordered(summaries["variant"]):
        of_variant = summaries[summaries["variant"] == variant]
        for budget, runs in of_variant.groupby("budget", sort=True):
            rows.append(_table_row(variant, str(budget), runs, scores))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_table_line(row, widths) for row in rows]
    lines.insert(1, _table_line(["-" * width for width in widths], widths))
    return "\n".join(lines)


def _table_row(
    variant: str, budget: str, runs: pd.DataFrame, scores: Sequence[str]
) -> tuple[str, ...]:
    first = runs.iloc[0]
    keep = "" if pd.isna(first["keep_fraction"]) else f"{first['keep_fraction']:.4g}"
    return (
        variant,
        budget,
        str(int(first["batch_size"])),
        keep,
        f"{int(first['memory.saved_bytes']):,}",
        _spread(runs["final.train_loss"]),
        *(_score(runs[name]) for name in scores),
        *([_spread(runs["final.bootstrap_loss"])] if "final.bootstrap_loss" in runs else []),
        str(runs["seed"].nunique()),
    )


def _score(values: pd.Series) -> str:
    """Accuracy in percent, what else there is as it is."""
    if str(values.name).endswith("accuracy"):
        return _spread(100 * values, " %")
    return _spread(values)


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
