"""Choosing rows by budget and by the overrides of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rad.errors import UsageError


def select(
    frame: pd.DataFrame, budget: str | float | None = None, overrides: str | None = None
) -> pd.DataFrame:
    """The rows at one budget and with one set of overrides, `baseline` (of any budget) among them.

    `frame` has the columns `variant, budget, path`. None stands for the only one there is.

    Raises:
        UsageError: no such rows, or several budgets or sets of overrides and none chosen.
    """
    frame = select_overrides(frame, overrides)
    baseline = frame["variant"] == "baseline"
    budgets = frame["budget"].astype(str)
    if budget is None and baseline.all():
        return frame
    budget = _choose("budget", sorted(set(budgets[~baseline])), budget)
    return frame[baseline | (budgets == budget)]


def select_overrides(frame: pd.DataFrame, overrides: str | None = None) -> pd.DataFrame:
    """The rows with one set of overrides, at every budget; as in `select`. "all": every row."""
    if overrides == "all":
        return frame
    extra = frame["path"].map(overrides_of)
    return frame[extra == _choose("overrides", sorted(set(extra)), overrides)]


def overrides_of(path: str) -> str:
    """The overrides in a run's path, below its budget."""
    return Path(path).parent.name.partition(",")[2]


def _choose(what: str, there: Sequence[str], wanted: str | float | None) -> str:
    choices = ", ".join(_typed(what, choice) for choice in there)
    if wanted is None:
        if len(there) > 1:
            raise UsageError(f"there are runs with several {what}: give one of {choices}")
        return there[0]
    if str(wanted) not in there:
        raise UsageError(f"no runs with {what}={wanted}: give one of {choices}")
    return str(wanted)


def _typed(what: str, choice: str) -> str:
    """As a shell takes it; quoted for Hydra where need be."""
    plain = re.fullmatch(r"[\w.]+", choice)
    return f"{what}={choice}" if plain else f"\"{what}='{choice}'\""
