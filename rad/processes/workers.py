"""Processes that train the jobs of a sweep: they stop with the sweep, and save first.

The sweep names itself in the environment; its child processes watch it. A signal that ends the
sweep makes them save and give their jobs back as `STOPPED`; its sudden death makes them save and
end.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

from rad.errors import UsageError
from rad.processes.signals import ENDING, Stopped

VARIABLE = "RAD_SWEEP"
STOPPED = "stopped"
"""What a worker returns for a job that it has not done."""

POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0
"""For a stride to end and its checkpoint, after the sweep has died."""


@contextmanager
def watched() -> Iterator[None]:
    """Workers that start within stop with this process.

    The first SIGINT or SIGTERM is raised as `Stopped` at the end, so that the workers' jobs are
    waited for; a second Ctrl-C at once.
    """
    asked: list[int] = []
    with tempfile.TemporaryDirectory(prefix="rad-sweep-") as folder:
        word = Path(folder) / "stop"

        def stop(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and number in asked:
                raise Stopped(number)
            asked.append(number)
            word.touch()

        before = {number: signal.getsignal(number) for number in ENDING}
        os.environ[VARIABLE] = f"{os.getpid()}:{word}"
        try:
            for number, handler in before.items():
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, stop)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            del os.environ[VARIABLE]
    if asked:
        raise Stopped(asked[0])


class Worker:
    """This process, as one that works for a sweep."""

    def __init__(self, sweep: int, word: Path) -> None:
        self.sweep, self.word = sweep, word
        self.stopped = False
        self._busy = False
        for number in ENDING:
            signal.signal(number, self._stop)
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def job(self) -> Iterator[None]:
        """While a job is done, a signal raises `Stopped`; see `stopped_first`."""
        self._busy = True
        try:
            if self.stopped:
                raise Stopped(signal.SIGTERM)
            yield
        except UsageError:
            raise
        except Exception:
            if self.stopped:
                raise Stopped(signal.SIGTERM) from None
            raise
        finally:
            self._busy = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._busy:
            raise Stopped(number)

    def _watch(self) -> None:
        while os.getppid() == self.sweep and not self.word.exists():
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        while os.getppid() == self.sweep:
            time.sleep(POLL_SECONDS)
        end = time.monotonic() + GRACE_SECONDS
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)
        os._exit(128 + signal.SIGTERM)


@cache
def worker() -> Worker | None:
    """This process's worker; None where it works for no sweep."""
    sweep, _, word = os.environ.get(VARIABLE, "").partition(":")
    return Worker(int(sweep), Path(word)) if sweep == str(os.getppid()) else None
