"""Tables and numbers of training runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rad.errors import UsageError
from rad.pages.words import spread, table, whole
from rad.plotting import ordered
from rad.results import metrics, summaries

HEADERS = {
    "variant": "variant",
    "budget": "budget",
    "saved": "saved bytes",
    "peak": "peak bytes",
    "batch": "batch",
    "keep": "keep fraction",
    "bits": "bits",
    "bootstrap": "loss on the bootstrap sample",
    "train": "loss on the whole training set",
    "test": "test loss",
    "accuracy": "test accuracy",
    "token": "held-out bits a token",
    "seconds": "seconds an iteration",
    "pde": "final loss",
    "over": "over the exact run's",
    "interval": "test loss over full memory's, 95 %",
    "reach": "time to full memory's loss at 80 % of its steps",
    "seeds": "seeds",
}
COLUMNS = {
    "bootstrap": "final.bootstrap_loss",
    "train": "final.train_loss",
    "test": "final.test_loss",
    "accuracy": "final.test_accuracy",
    "token": "final.test_bits_per_token",
    "seconds": "seconds_per_iteration",
    "pde": "final.train_loss",
}
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5%, by degrees of freedom."""


class Runs:
    """The finished runs below `root`, read once for each experiment.

    A *source* is `experiment`, or `experiment/variant/budget=...` with the wildcards of fnmatch.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._summaries: dict[str, pd.DataFrame] = {}
        self._metrics: dict[str, pd.DataFrame] = {}

    @cached_property
    def functions(self) -> dict[str, Callable[..., object]]:
        """What a page may call, by name."""
        return {
            "training": self.training,
            "final": self.final,
            "steps": self.steps,
            "mean_steps": self.mean_steps,
            "spread_of": self.spread_of,
            "one_over": self.one_over,
            "ratio": self.ratio,
            "interval": self.interval,
            "minutes": self.minutes,
            "seeds": self.seeds,
        }

    def of(self, source: str) -> pd.DataFrame:
        """A row for each run of a source.

        Raises:
            UsageError: there is none.
        """
        experiment, _, pattern = source.partition("/")
        if experiment not in self._summaries:
            self._summaries[experiment] = summaries(self.root, experiment)
        found = self._summaries[experiment]
        keep = [
            fnmatch("/".join(Path(path).parts[-3:-1]), pattern or "*") for path in found["path"]
        ]
        if not any(keep):
            raise UsageError(f"no run in {self.root} is {source}: correct the source, or train it")
        return found[keep].sort_values("seed")

    def curves(self, source: str) -> pd.DataFrame:
        """The rows of metrics.csv of a source's runs."""
        experiment = source.partition("/")[0]
        if experiment not in self._metrics:
            self._metrics[experiment] = metrics(self.root, experiment)
        rows = self._metrics[experiment]
        return rows[rows["path"].isin(set(self.of(source)["path"]))]

    def training(self, *sources: str, columns: str, until: str = "", over: str = "") -> str:
        """A table with a row for each variant and budget of the sources.

        `columns` names columns of `HEADERS`, or `steps`: the first evaluation at which the column
        of metrics.csv that `until` names first is at or below its second word: a number, or a
        source, whose run with the same seed has it as its final value. Or `over`: the mean over
        seeds of the final loss over that of the source `over`.
        """
        names = columns.split()
        rows = []
        for source in sources:
            runs = self.of(source)
            for variant in ordered(runs["variant"]):
                of_variant = runs[runs["variant"] == variant]
                for folder, group in of_variant.groupby(of_variant["path"].map(_folder)):
                    own = f"{source.partition('/')[0]}/{variant}/{folder}"
                    rows.append([self._cell(name, group, own, over or until) for name in names])
        return table([self._header(name, until) for name in names], rows)

    def _header(self, name: str, until: str) -> str:
        if name != "steps":
            return HEADERS[name]
        level = until.partition(" ")[2]
        goal = f"a loss of {level}" if "/" not in level else "the smaller batch's final loss"
        return f"iterations to {goal}"

    def _cell(self, name: str, runs: pd.DataFrame, source: str, until: str) -> str:
        first = runs.iloc[0]
        if name == "variant":
            return f"`{first['variant']}`"
        if name == "budget":
            return str(first["budget"])
        if name in ("saved", "peak"):
            return whole(runs[f"memory.{name}_bytes"])
        if name == "batch":
            return whole(runs["batch_size"])
        if name in ("keep", "bits"):
            value = first["keep_fraction" if name == "keep" else "bits"]
            return "" if pd.isna(value) else f"{value:g}"
        if name == "seeds":
            return str(runs["seed"].nunique())
        if name == "over":
            return self.ratio(source, until, "train_loss", digits=4)
        if name in ("interval", "reach") and source == until:
            return ""
        if name == "interval":
            return self.interval(source, until, "test_loss", digits=3)
        if name == "reach":
            return self.reach(source, until)
        if name == "steps":
            column, level = until.split()
            return self.steps(source, column, float(level) if "/" not in level else level)
        if name == "accuracy":
            return spread(list(100 * runs[COLUMNS[name]]), " %")
        return spread(list(runs[COLUMNS[name]]))

    def final(self, source: str, column: str = "bootstrap_loss") -> float:
        """The mean over seeds of a figure of summary.json (`final.` or another section)."""
        runs = self.of(source)
        name = f"final.{column}" if f"final.{column}" in runs else column
        return float(runs[name].mean())

    def spread_of(self, source: str, column: str = "bootstrap_loss", unit: str = "") -> str:
        """Mean and standard deviation over seeds; with a unit, in hundredths (`unit=" %"`)."""
        values = self.of(source)[f"final.{column}"]
        return spread(list(100 * values if unit else values), unit)

    def one_over(self, source: str, other: str, seed: int, column: str = "bootstrap_loss") -> float:
        """A final figure of one seed over another source's."""
        ours, theirs = (self._by_seed(each, column) for each in (source, other))
        return float(ours[seed] / theirs[seed])

    def _by_seed(self, source: str, column: str) -> pd.Series:
        """A final figure of a source whose runs have different seeds.

        Raises:
            UsageError: two runs have one seed.
        """
        found = self.of(source).set_index("seed")[f"final.{column}"]
        if found.index.has_duplicates:
            raise UsageError(f"{source} has several runs of one seed: name one budget")
        return found

    def _steps(self, source: str, column: str, level: float | str) -> list[float]:
        runs = self.of(source)
        seeds = dict(zip(runs["path"], runs["seed"], strict=True))
        found = []
        for path, rows in self.curves(source).groupby("path"):
            goal = (
                level
                if isinstance(level, float)
                else float(self._by_seed(level, column)[seeds[str(path)]])
            )
            below = rows.loc[rows[column] <= goal, "iteration"]
            found.append(float(below.min()) if len(below) else math.nan)
        return found

    def steps(self, source: str, column: str, level: float | str) -> str:
        """The iteration of the first evaluation at or below a level, over seeds."""
        found = self._steps(source, column, level)
        if np.isnan(found).all():
            return "not reached"
        if np.isnan(found).any():
            return f"reached by {np.isfinite(found).sum()} of {len(found)}"
        return whole(found)

    def mean_steps(self, source: str, column: str, level: float | str) -> float:
        """The mean over seeds of `steps`; NaN where a seed does not reach the level."""
        return float(np.mean(self._steps(source, column, level)))

    def reach(self, source: str, full: str, share: float = 0.8) -> str:
        """Seconds to the test loss that the runs of `full` have at that share of their steps.

        Over theirs up to there: the mean over paired seeds.
        """
        ratios = []
        theirs = dict(iter(self.curves(full).groupby("seed")))
        for seed, rows in self.curves(source).groupby("seed"):
            there = theirs[seed]
            at = there[there["iteration"] >= share * there["iteration"].max()].iloc[0]
            reached = rows.loc[rows["test_loss"] <= at["test_loss"], "seconds"]
            ratios.append(reached.iloc[0] / at["seconds"] if len(reached) else math.nan)
        if np.isnan(ratios).any():
            return f"reached by {np.isfinite(ratios).sum()} of {len(ratios)}"
        return f"{np.mean(ratios):.2f}x"

    def _logs(self, sources: Sequence[str], others: Sequence[str], column: str) -> np.ndarray:
        ours, theirs = (
            pd.concat([self._by_seed(source, column) for source in group])
            for group in (sources, others)
        )
        return np.log((ours / theirs.loc[ours.index]).to_numpy())

    def ratio(
        self, sources: str, others: str, column: str = "bootstrap_loss", digits: int = 2
    ) -> str:
        """The geometric mean over paired seeds of one final figure over another's.

        Several sources are divided by `+`, so that seeds of two experiments count together.
        """
        logs = self._logs(sources.split("+"), others.split("+"), column)
        return f"{math.exp(logs.mean()):.{digits}f}"

    def interval(
        self, sources: str, others: str, column: str = "bootstrap_loss", digits: int = 2
    ) -> str:
        """`ratio` with its 95% interval, by Student's t on the logarithms."""
        logs = self._logs(sources.split("+"), others.split("+"), column)
        half = T_95[len(logs) - 1] * logs.std(ddof=1) / math.sqrt(len(logs))
        low, high = (math.exp(logs.mean() + sign * half) for sign in (-1, 1))
        return f"{math.exp(logs.mean()):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    def minutes(self, *sources: str) -> float:
        """Minutes of one core that the runs of all sources took, one after the other."""
        runs = pd.concat([self.of(source) for source in sources])
        seconds = runs["iterations"] * runs["seconds_per_iteration"] * runs["threads"]
        return float(seconds.sum() / 60)

    def seeds(self, source: str) -> int:
        """How many seeds there are."""
        return int(self.of(source)["seed"].nunique())


def _folder(path: str) -> str:
    return Path(path).parent.name
