"""What every training loop does beside its updates: rows, checkpoints, limits, and what it shows.

A loop makes the updates; its session knows how far the run has come, and writes it down.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rad.errors import Diverged, UsageError
from rad.results import RunFolder
from rad.training import checkpoint, segments
from rad.training.checkpoint import Row
from rad.training.interruption import Interruption
from rad.training.loggers import Logger
from rad.training.progress_bar import ProgressBar, Shown
from rad.training.ranks import ALONE, Ranks
from rad.training.saved_state import Expected
from rad.training.settings import Settings

ALWAYS = ("iteration", "seconds", "learning_rate")
"""Columns of every metrics.csv, first."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: `final` holds the evaluations of its last row.

    `segments` are those of `rad.training.segments`, one more than the run was resumed; `data` is
    the digest of what it was trained on, None where there is none.
    """

    finished: bool
    final: dict[str, float]
    iterations: int
    seconds_per_iteration: float
    segments: tuple[dict[str, Any], ...] = ()
    data: str | None = None

    def provenance(self) -> dict[str, Any]:
        """What summary.json tells of them: the data's digest, and the segments of a resumed run.

        Also how many processes have trained together at last, if several.
        """
        resumed = {"segments": list(self.segments)} if len(self.segments) > 1 else {}
        count = segments.latest(self.segments).get("processes", 1)
        together = {"processes": count} if count > 1 else {}
        data = {} if self.data is None else {"digests": {"data": self.data}}
        return {**resumed, **together, **data}


class Session:
    """One run of a loop, resumed from the folder's checkpoint if there is one.

    `columns` are those of metrics.csv after `ALWAYS`; `remedy` says what helps against a loss that
    is not finite. `rows` is as in `Expected`, `data` the digest of what is trained on, `commit`
    that of the caller; `shown` is for the progress bar. The rows of a resumed run are logged again
    from the first on; where its numbers may differ from the unbroken run's, a line on stderr says
    why. The time limit counts from here. In a `with` statement the progress bar is shown, and a
    signal that `interruption` holds waits for a checkpoint. Of several `ranks` the first alone
    reads and writes files, and all stop after the same update.

    Raises:
        UsageError: a checkpoint that does not fit or a file that cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        generator: torch.Generator,
        settings: Settings,
        folder: RunFolder,
        logger: Logger,
        *,
        columns: Sequence[str],
        device: torch.device,
        remedy: str,
        rows: Callable[[int], Mapping[int, Collection[str]]] | None = None,
        data: str | None = None,
        commit: str | None = None,
        interruption: Interruption | None = None,
        shown: Shown | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        limit = settings.time_limit
        self._deadline = math.inf if limit is None else time.monotonic() + limit
        self._state = (model, optimizer, generator)
        self._folder, self._logger, self._device, self._remedy = folder, logger, device, remedy
        self._interruption = Interruption() if interruption is None else interruption
        self._bar: ProgressBar | None = None
        self._shown = shown
        self._ranks = ranks
        self._next_checkpoint = 0.0
        self._step_peak = 0
        self._slowest = math.inf
        self.settings = settings
        self.columns = (*ALWAYS, *columns)
        expected = Expected(settings.iterations, self.columns, rows)
        self.progress = checkpoint.restore(folder, *self._state, expected, ranks)
        self._data = data
        if not self.finished:
            self.progress.segments = ranks.decided(lambda: self._with_segment(commit))
        for row in self.progress.rows:
            logger.log(row)

    def _with_segment(self, commit: str | None) -> list[segments.Segment]:
        """The segments with what the updates from here on depend on; say what has changed."""
        processes, batch = self._ranks.count, self.settings.batch_size
        done = self.progress
        now = segments.here(self._device, self._data, commit, processes, batch)
        before = segments.latest(done.segments)
        where = f"{self._folder.path}: the run goes on from iteration {done.iteration}"
        if before.get("data") not in (None, self._data):
            raise UsageError(f"{where} with another data set; bring back the one it began with")
        if before.get("batch") not in (None, batch):
            raise UsageError(
                f"{where} with another batch ({before['batch']} examples there, {batch} here; "
                f"{before['processes']} processes there, {processes} here); bring back what it "
                "began with"
            )
        changed = ", ".join(segments.differences(before, now)) if before else ""
        if changed and self.settings.strict_resume:
            raise UsageError(
                f"{where} with other {changed}; bring back what it began with, or set "
                "training.strict_resume=false"
            )
        if changed:
            word = "its numbers may differ from the unbroken run's"
            print(f"{where} with other {changed}: {word}", file=sys.stderr, flush=True)
        return segments.extended(done.segments, now, done.iteration)

    def __enter__(self) -> Session:
        progress = self.progress
        if self._ranks.first:
            self._bar = ProgressBar(
                self.settings.iterations, progress.iteration, self._device, self._shown
            )
        for row in progress.rows[-1:]:
            self._show_scores(row)
        self._interruption.running.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._interruption.running.discard(self)
        if self._bar is not None:
            self._bar.close()

    @property
    def iteration(self) -> int:
        """Updates done."""
        return self.progress.iteration

    @property
    def finished(self) -> bool:
        """Whether all updates are done."""
        return self.iteration == self.settings.iterations

    def strides(self) -> Iterator[int]:
        """The updates done before each stride, until all are done or the time is over.

        The caller makes one update or some for each; a checkpoint is written after a stride where
        one is due, before a signal is handled, and at the end.
        """
        expired = 0.0
        self._put_off()
        while self.iteration < self.settings.iterations and not expired:
            began, before = self.progress.seconds, self.iteration
            yield before
            now, asked = time.monotonic(), float(self._interruption.asked or 0)
            in_time = now >= self._next_checkpoint or self.settings.checkpoints_at(self.iteration)
            pace = (self.progress.seconds - began) / max(self.iteration - before, 1)
            expired, asked, due, self._slowest = self._ranks.most(
                now >= self._deadline, asked, in_time, pace
            )
            if expired or asked or due:
                checkpoint.save(self._folder, *self._state, self.progress, self._ranks)
                self._put_off()
            if asked:
                self._interruption.take(int(asked))
                self._interruption.saved(self)

    def updates_within(self, seconds: float) -> int | None:
        """How many updates all processes launch before they wait; None where one is alone.

        As many as the slowest makes in that time, by the last stride, and at least 1.
        """
        if self._ranks.count == 1:
            return None
        return 1 if self._slowest > seconds else int(seconds / max(self._slowest, 1e-9))

    def _put_off(self) -> None:
        """Count the seconds until the next checkpoint from now."""
        period = self.settings.checkpoint_seconds
        self._next_checkpoint = math.inf if period is None else time.monotonic() + period

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What is done within counts in `seconds`, and on CUDA devices in the steps' peak."""
        if on_cuda := self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        start = time.perf_counter()
        yield
        self.progress.seconds += time.perf_counter() - start
        if on_cuda:
            most = torch.cuda.max_memory_allocated(self._device)
            self._step_peak = max(self._step_peak, most)

    def done(self, updates: int) -> None:
        """Count that many more updates as done."""
        self.progress.iteration += updates

    def check_finite(self, what: str, value: float, iteration: int | None = None) -> None:
        """Refuse a loss that is not finite, by default one after the updates done.

        Raises:
            Diverged: it is NaN or infinite.
        """
        if not math.isfinite(value):
            at = self.iteration if iteration is None else iteration
            raise Diverged(f"{what} is {value} at iteration {at}; {self._remedy}")

    def record(self, values: Mapping[str, float | None]) -> None:
        """Write and log a row: the model after the updates done; other columns are None."""
        row: Row = {
            **dict.fromkeys(self.columns),
            "iteration": self.iteration,
            "seconds": round(self.progress.seconds, 6),
            "learning_rate": self.settings.learning_rate_at(max(self.iteration - 1, 0)),
            **values,
        }
        self.progress.rows.append(row)
        self.write()
        peak = {"step_peak_bytes": self._step_peak} if self._step_peak else {}
        self._logger.log({**row, **peak})
        self._step_peak = 0
        self._show_scores(row)

    def _show_scores(self, row: Row) -> None:
        """What the test set was evaluated on beside the loss, in the bar."""
        scores = {name: row[name] for name in row if re.match("test_(?!loss)", name)}
        for name, value in scores.items():
            if self._bar is not None and value is not None:
                self._bar.score(name.replace("_", " "), value)

    def write(self) -> None:
        """Write all rows to metrics.csv."""
        if self._ranks.first:
            self._folder.write_metrics(self.progress.rows, self.columns)

    def show(self, loss: float) -> None:
        """Move the progress bar to the updates done."""
        if self._bar is not None:
            self._bar.show(self.iteration, loss)

    def tell(self, text: str) -> None:
        """A line about this run, above the bar."""
        if self._bar is not None:
            self._bar.tell(self._folder.path, text)

    def result(self, final: Mapping[str, float]) -> TrainResult:
        """How the run ended."""
        return TrainResult(
            finished=self.finished,
            final=dict(final),
            iterations=self.iteration,
            seconds_per_iteration=self.progress.seconds / max(self.iteration, 1),
            segments=tuple(self.progress.segments),
            data=self._data,
        )
