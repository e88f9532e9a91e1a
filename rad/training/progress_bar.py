"""The live progress bar, or in processes that share a terminal a line now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LINE_SECONDS = 30.0
"""Between two lines of a run that has no bar of its own."""


@dataclass(frozen=True)
class Shown:
    """How a run is shown: its `label`, and where it stands in a sweep.

    It is run `number` of `count`, of which `workers` are trained at a time. `alone`: no other
    process writes to this terminal. `saved_bytes` are those of its plan.
    """

    label: str = ""
    saved_bytes: int | None = None
    number: int = 1
    count: int = 1
    workers: int = 1
    alone: bool = True

    @property
    def heading(self) -> str:
        """The label and the place in the sweep."""
        place = f" [{self.number}/{self.count}]" if self.count > 1 else ""
        return f"{self.label}{place}".strip()

    def sweep_left(self, done: float, before: float, seconds: float) -> float | None:
        """Seconds that the sweep will take, if all that is left takes as long as this run.

        `done` is the part of this run that is done: `before` it was resumed, the rest since then
        in `seconds`. None where there is nothing to say.
        """
        if self.count == 1 or done <= before:
            return None
        runs_left = (self.count - self.number) / self.workers + 1 - done
        return runs_left * seconds / (done - before)


class ProgressBar:
    """Loss, last test accuracy, iterations per second, memory, time left of the run and the sweep.

    The memory is what a CUDA device has allocated, elsewhere what the plan saves for backward.
    Silent where stderr is no terminal, and where tqdm is not installed.
    """

    def __init__(
        self, iterations: int, done: int, device: torch.device, shown: Shown | None = None
    ) -> None:
        self.device, self.shown = device, Shown() if shown is None else shown
        self.scores: dict[str, str] = {}
        self.bar: Any = None
        self._iterations, self._first = iterations, done
        self._began = self._last_line = time.monotonic()
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.bar = tqdm(
            desc=self.shown.heading or None,
            total=iterations,
            initial=done,
            unit="it",
            dynamic_ncols=True,
            file=sys.stderr,
            disable=None if self.shown.alone else True,
        )

    def score(self, name: str, value: float) -> None:
        """What was evaluated last, to be shown from now on."""
        percent = name.endswith("accuracy")
        self.scores[name] = f"{100 * value:.1f} %" if percent else f"{value:.4g}"

    def show(self, done: int, loss: float) -> None:
        """Move to `done` iterations."""
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix(self._numbers(done, loss), refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.shown.alone and sys.stderr.isatty():
            self._tell_now_and_then(done, loss)

    def _numbers(self, done: int, loss: float) -> dict[str, str]:
        numbers = {"loss": f"{loss:.4f}", **self.scores, **self._memory()}
        whole, seconds = max(1, self._iterations), time.monotonic() - self._began
        left = self.shown.sweep_left(done / whole, self._first / whole, seconds)
        return numbers if left is None else {**numbers, "sweep": f"{_clock(left)} left"}

    def _memory(self) -> dict[str, str]:
        if self.device.type == "cuda":
            return {"allocated": f"{torch.cuda.memory_allocated(self.device) / 1e6:.0f} MB"}
        saved = self.shown.saved_bytes
        return {} if saved is None else {"saved": f"{saved / 1e6:.3g} MB"}

    def _tell_now_and_then(self, done: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            numbers = ", ".join(f"{key} {each}" for key, each in self._numbers(done, loss).items())
            heading = self.shown.heading
            line = f"{heading}: {done}/{self._iterations}, {numbers}\n"
            sys.stderr.write(line)  # whole, so that lines of other processes do not run into it
            sys.stderr.flush()

    def tell(self, path: Path, text: str) -> None:
        """A line about the run in that folder, above the bar; where there is no bar, too."""
        write = print if self.bar is None else self.bar.write
        write(f"{path}: {text}", file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self.bar is not None:
            self.bar.close()


def _clock(seconds: float) -> str:
    """As tqdm shows times."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
