"""Finished runs as what the page's script reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rad.plotting.curves import OF_THE_RUN
from rad.plotting.selection import overrides_of
from rad.plotting.style import ordered
from rad.results import NoRuns, metrics, summaries

DIGITS = 6
"""Significant digits of a point: more than a screen shows."""


def there(root: str | Path) -> list[str]:
    """The experiments below `root` that have finished runs, by name."""
    return sorted({file.parts[-5] for file in Path(root).glob("*/*/budget=*/seed=*/summary.json")})


def collect(root: str | Path, experiments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Every finished run of `experiments` (None: of all there are), with its rows.

    Raises:
        UsageError: no finished run at all, or one that is damaged.
    """
    names = there(root) if experiments is None else list(experiments)
    if not names:
        raise NoRuns(f"no finished run in {root}; make some: python scripts/train.py")
    return [run for name in names for run in _runs(root, name)]


def _runs(root: str | Path, experiment: str) -> list[dict[str, Any]]:
    table, rows = summaries(root, experiment), metrics(root, experiment)
    order = {variant: place for place, variant in enumerate(ordered(table["variant"]))}
    table = table.sort_values(["variant", "path"], key=lambda c: c.map(lambda v: order.get(v, v)))
    by_path = {str(path): own for path, own in rows.groupby("path")}
    return [_run(experiment, run, by_path[str(run["path"])]) for _, run in table.iterrows()]


def _run(experiment: str, run: pd.Series, rows: pd.DataFrame) -> dict[str, Any]:
    columns = [name for name in rows if name not in OF_THE_RUN and not rows[name].isna().all()]
    notes = ("scale", "kind", "allocation", "device", "iterations", "commit")
    return {
        "experiment": experiment,
        "variant": run["variant"],
        "seed": int(run["seed"]),
        "budget": str(run["budget"]),
        "overrides": overrides_of(str(run["path"])),
        "path": run["path"],
        "batch": int(run["batch_size"]),
        "keep": _number(run["keep_fraction"]),
        "bits": _number(run["bits"]),
        "saved": int(run["memory.saved_bytes"]),
        "parameters": int(run["memory.parameter_bytes"]),
        "peak": _number(run["memory.peak_bytes"]),
        "notes": {name: str(run[name]) for name in notes if name in run and not pd.isna(run[name])},
        "columns": {str(name): [_number(each) for each in rows[name]] for name in columns},
    }


def _number(value: Any) -> float | int | None:
    """As JSON holds it: None where it is not finite."""
    if pd.isna(value) or math.isinf(value):
        return None
    short = float(f"{float(value):.{DIGITS}g}")
    return int(value) if float(value).is_integer() else short
