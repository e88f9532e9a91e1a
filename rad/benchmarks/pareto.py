"""What methods reach in equal iterations and in equal time, and which of them are beaten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rad.benchmarks.programs import IN_SLICES
from rad.errors import UsageError
from rad.plotting import EXACT, select_overrides
from rad.results import NoRuns, metrics, read_table, summaries

MEASURED = ("batch_size", "saved_bytes", "peak_bytes", "time_ratio", "rounds")
"""Columns that are measured; all others are looked up."""


@dataclass(frozen=True)
class Known:
    """Where the losses and the gradient noise of a network's methods stand.

    Losses are the column `loss` of the finished runs of `experiments` at that scale; noise is that
    of the table `noise` (None: there is none) at that `point` of training. Both are taken at the
    keep fraction, and of variants with the options given here beside their `name`.
    """

    keep_fraction: float
    experiments: Sequence[str]
    scale: str
    loss: str
    noise: str | None
    point: int | str | None
    variants: Sequence[Mapping[str, Any]] = ()

    def with_options(self, table: pd.DataFrame, variant: str) -> pd.DataFrame:
        """The rows of a variant that have the options with which it is compared."""
        table = table[table["variant"] == variant]
        for entry in self.variants:
            for key, value in entry.items():
                if entry["name"] == variant and key != "name" and key in table:
                    table = table[table[key] == value]
        return table

    def at_budget(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows at the keep fraction, and those of full memory."""
        return table[table["budget"].astype(str).isin(["full", str(self.keep_fraction)])]


def joined(
    network: str,
    measured: pd.DataFrame,
    curves: Mapping[str, pd.Series],
    noise: Mapping[str, float],
) -> pd.DataFrame:
    """The network's rows of `measured` with variance and losses, where they are known.

    `curves` and `noise` are by variant. Raises UsageError where there is no such row.
    """
    table = measured.loc[measured["network"] == network, ["network", "method", *MEASURED]]
    table = table.reset_index(drop=True)
    if table.empty:
        raise UsageError(f"the table has no rows of {network}; set measure=true to measure it")
    ratios = dict(zip(table["method"], table["time_ratio"], strict=True))
    curves = {m: curves[v] for m in ratios if (v := _variant(m)) in curves}
    found = losses(curves, ratios) if curves else {}
    nothing = (float("nan"), float("nan"))
    table["variance_ratio"] = [noise.get(_variant(m), float("nan")) for m in table["method"]]
    table["loss"] = [found.get(m, nothing)[0] for m in table["method"]]
    table["loss_at_equal_time"] = [found.get(m, nothing)[1] for m in table["method"]]
    for column in ("loss", "loss_at_equal_time"):
        table[f"front_{column}"] = on_front(table["saved_bytes"], table[column])
    return table


def _variant(method: str) -> str:
    """Whose losses and noise a method has; in slices, the same sketch has no more noise."""
    return "baseline" if method in EXACT else method.removesuffix(IN_SLICES)


def known_losses(root: str | Path, known: Known) -> dict[str, pd.Series]:
    """The losses of finished runs in that folder of results, by variant.

    Raises:
        UsageError: a variant has runs with several sets of overrides, or a run is damaged.
    """
    curves = {}
    for experiment, variant, chosen in _compared(root, known):
        rows = metrics(root, experiment)
        try:
            found = select_overrides(rows[rows["path"].isin(chosen["path"])])
        except UsageError as error:
            raise UsageError(f"{variant} in {experiment}: {error}; keep those of one") from error
        curves[variant] = mean_curve(found, known.loss)
    return curves


def seeds_of(root: str | Path, known: Known) -> set[int]:
    """How many seeds the finished runs of each variant have, of which `known_losses` are means."""
    return {chosen["seed"].nunique() for _, _, chosen in _compared(root, known)}


def _compared(root: str | Path, known: Known) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Experiment, variant, and the finished runs of it that are compared."""
    for experiment in known.experiments:
        try:
            runs = summaries(root, experiment)
        except NoRuns:
            continue
        runs = known.at_budget(runs[runs["scale"] == known.scale])
        for variant, of_variant in runs.groupby("variant"):
            chosen = known.with_options(of_variant, str(variant))
            if not chosen.empty:
                yield experiment, str(variant), chosen


def known_noise(root: str | Path, known: Known) -> dict[str, float]:
    """Variance of the gradient over that of the full batch, by variant."""
    file = Path(root) / "gradient_noise" / f"{known.noise}.csv"
    if known.noise is None or not file.exists():
        return {}
    table = read_table(file)
    table = table[(table["weight"] == "all weights") & (table["iteration"] == known.point)]
    total = known.at_budget(table).set_index("variant")["total"]
    return dict(total / total["baseline"])


def known_pde_noise(root: str | Path, known: Known) -> dict[str, float]:
    """Variance of the PDE's gradient over its square, by variant.

    Raises:
        UsageError: several rows of a variant have the options with which it is compared.
    """
    if known.noise is None:
        return {}
    file = Path(root) / known.noise / "cpu.csv"
    if not file.exists():
        return {}
    table = known.at_budget(read_table(file))
    found: dict[str, float] = {}
    for variant in table["variant"].unique():
        rows = known.with_options(table, variant)
        if len(rows) > 1:
            raise UsageError(f"{file} has several rows of {variant}: give its options in variants")
        ratio = rows[f"noise_{known.point}"] / rows[f"norm_{known.point}"]
        found |= {str(variant): value**2 for value in ratio}
    return found


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
        most = curve.index[-1]
        raise UsageError(f"{iterations:g} iterations asked for, of only {most} trained; give fewer")
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
