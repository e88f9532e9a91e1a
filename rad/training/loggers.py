"""Where a run is followed, beside metrics.csv: what every dashboard gets of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

HIDDEN = ("iteration", "seconds")
"""Columns that grow with every row, whatever is trained: axes of a dashboard, no panels of it."""


@dataclass(frozen=True)
class RunInfo:
    """What a dashboard gets of a run at its start.

    `path` is the run's folder below `root`, which holds the results; `title` a short name within
    the `group`, `job` the kind of work, `tags` what runs are found by. `config` is the whole
    configuration, `plan` what was made of it: the batch really used, what is kept, bytes.
    `constant` are columns of the metrics that stay as they begin.
    """

    path: str
    title: str = ""
    group: str | None = None
    job: str = "train"
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    root: str = "results"

    @property
    def hidden(self) -> tuple[str, ...]:
        """Columns that would be straight lines."""
        return (*HIDDEN, *self.constant)


class Logger(Protocol):
    """Takes the rows of metrics.csv as they come; None stands for a value not evaluated.

    A run that resumes gives again all rows from the first on, then goes on. On CUDA devices rows
    have `step_peak_bytes` besides: the most that was allocated in the updates since the last row.
    """

    def log(self, row: Mapping[str, Any]) -> None:
        """Record one row; its `iteration` counts the updates done."""

    def figure(self, name: str, file: Path) -> None:
        """Show the picture in that file (PNG)."""

    def finish(self) -> None:
        """Close the record. A second call does nothing."""


class NullLogger:
    """Records nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Ignore the row."""

    def figure(self, name: str, file: Path) -> None:
        """Ignore the picture."""

    def finish(self) -> None:
        """Nothing to close."""
