"""What methods reach in equal iterations and in equal time, and which of them are beaten."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from rad.errors import UsageError


def mean_curve(rows: pd.DataFrame, column: str) -> pd.Series:
    """The mean of `column` over seeds, by iteration, where all seeds have it.

    `rows` are those of one variant in `rad.results.metrics`.
    """
    table = rows.pivot_table(index="iteration", columns="seed", values=column)
    curve: pd.Series = table.dropna().mean(axis=1)
    return curve


def loss_after(curve: pd.Series, iterations: float) -> float:
    """The loss after so many iterations: its logarithm is linear between the curve's points.

    Raises:
        UsageError: more iterations than the curve has.
    """
    if iterations > curve.index[-1]:
        raise UsageError(f"{iterations:g} iterations asked for, of only {curve.index[-1]} trained")
    return math.exp(np.interp(iterations, curve.index.to_numpy(float), np.log(curve.to_numpy())))


def losses(
    curves: Mapping[str, pd.Series], time_ratios: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Each method's loss after equal iterations, and after equal time.

    `time_ratios` are those of a step. Equal iterations are as many as the shortest curve has;
    equal time is that in which the fastest method does them.
    """
    iterations = min(curve.index[-1] for curve in curves.values())
    fastest = min(time_ratios[method] for method in curves)
    return {
        method: (
            loss_after(curve, iterations),
            loss_after(curve, iterations * (fastest / time_ratios[method])),
        )
        for method, curve in curves.items()
    }


def on_front(cost: pd.Series, value: pd.Series) -> pd.Series:
    """Whether no other row is at most as large in both and smaller in one; False where empty."""
    pairs = list(zip(cost, value, strict=True))

    def beaten(one: tuple[float, float]) -> bool:
        return any(c <= one[0] and v <= one[1] and (c, v) != one for c, v in pairs)

    known = ~(cost.isna() | value.isna())
    return known & ~pd.Series([beaten(pair) for pair in pairs], index=cost.index)
