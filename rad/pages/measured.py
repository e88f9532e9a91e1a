"""Tables and numbers of what scripts have measured: the CSV files of `results/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from rad.errors import UsageError
from rad.pages.words import cell, table
from rad.results import read_table

HEADERS = {
    "saved_bytes": "saved",
    "peak_bytes": "peak",
    "high_water_bytes": "of the process",
    "time_ratio": "time",
    "loss_at_equal_time": "loss at equal time",
    "sketch_predicted": "of it the sketch's",
    "total_predicted": "noise, closed form",
    "total": "noise, measured",
    "noise_start": "variance at the start",
    "keep_fraction": "keep fraction",
    "relative_start": "error at the start",
    "relative_trained": "error at the end",
}


class Measured:
    """Tables of measurements below `root`; a file is named without `.csv`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[str, pd.DataFrame] = {}

    @cached_property
    def functions(self) -> dict[str, Callable[..., object]]:
        """What a page may call, by name."""
        return {
            "listing": self.listing,
            "pivot": self.pivot,
            "pivot_down": self.pivot_down,
            "value": self.value,
        }

    def rows(self, file: str, where: str = "") -> pd.DataFrame:
        """Rows of a file, those for which `where` holds, in the syntax of pandas' `query`.

        Raises:
            UsageError: there are none.
        """
        if file not in self._read:
            self._read[file] = read_table(self.root / f"{file}.csv")
        found = self._read[file]
        found = found.query(where) if where else found
        if found.empty:
            raise UsageError(f"{file}.csv has no row where {where}: correct the condition")
        return found

    def listing(
        self,
        file: str,
        columns: str,
        where: str = "",
        names: Mapping[str, str] | None = None,
        derive: Mapping[str, str] | None = None,
    ) -> str:
        """A row of the document for each of the file.

        `columns` are divided by spaces, `names` their headers where not those of `HEADERS`, and
        `derive` columns that are calculated from others.
        """
        chosen = columns.split()
        headers = [_header(column, names) for column in chosen]
        rows = self.rows(file, where)
        for column, formula in (derive or {}).items():
            rows = _with(rows, column, formula)
        return table(
            headers,
            (
                [_code(column, cell(column, row[column])) for column in chosen]
                for _, row in rows.iterrows()
            ),
        )

    def pivot(
        self,
        file: str,
        rows: str,
        columns: str,
        values: str,
        where: str = "",
        only: str = "",
        names: Mapping[str, str] | None = None,
        derive: str = "",
    ) -> str:
        """A row for each value of one column, a column for each of another, in the file's order.

        `only` chooses among the latter; `derive` is a formula for the values.
        """
        found = self.rows(file, where)
        found = _with(found, values, derive) if derive else found
        wide = found.pivot(index=rows, columns=columns, values=values)
        across = only.split() or list(dict.fromkeys(found[columns]))
        down = list(dict.fromkeys(found[rows]))
        if not only:
            across = [name for name in across if name in wide]
        return table(
            [_header(rows, names), *(_header(str(name), names, code=True) for name in across)],
            (
                [_code(rows, cell(rows, row)), *(cell(values, wide.loc[row, c]) for c in across)]
                for row in down
            ),
        )

    def pivot_down(
        self, file: str, across: str, columns: str, where: str, names: Mapping[str, str]
    ) -> str:
        """A row for each of some columns of the file, a column for each value of `across`."""
        found = self.rows(file, where)
        return table(
            ["", *(f"{value:g}" for value in found[across])],
            (
                [_header(column, names), *(cell(column, value) for value in found[column])]
                for column in columns.split()
            ),
        )

    def value(self, file: str, column: str, where: str = "") -> float:
        """The one number of that column.

        Raises:
            UsageError: there are several.
        """
        found = self.rows(file, where)[column]
        if len(found) != 1:
            raise UsageError(f"{file}.csv has {len(found)} rows where {where}: name one")
        return float(found.iloc[0])


def _with(rows: pd.DataFrame, column: str, formula: str) -> pd.DataFrame:
    rows = rows.copy()
    rows[column] = rows.eval(formula)
    return rows


def _header(column: str, names: Mapping[str, str] | None, code: bool = False) -> str:
    known = {**HEADERS, **(names or {})}
    plain = f"`{column}`" if code and column.isidentifier() else column.replace("_", " ")
    return known.get(column, plain)


def _code(column: str, text: str) -> str:
    """Names of programs and variants are set as code."""
    return f"`{text}`" if column in ("program", "method", "variant", "sketch") else text
