"""Signals that wait until the loops have saved where they are."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

ENDING = ("SIGINT", "SIGTERM")
"""Signals that end a program, whoever handles them."""

OWN = ("SIGUSR1", "SIGUSR2")
"""Signals that mean something where there is a handler: submitit's for preemption, for example."""


class Interruption:
    """In a `with` statement a signal reaches its handler once all loops have saved.

    A loop stands in `running` while there is something to save, looks at `asked` after each stride,
    saves, and calls `saved`. When the last one has done so, the handler that was there before is
    called: it raises (KeyboardInterrupt, for example), which ends the loops, or returns, and they
    go on. A second Ctrl-C waits for nobody, nor does any signal where no loop runs. Signals that
    are ignored stay so, and in threads other than the main one nothing waits.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.running: set[object] = set()
        self._saved: set[object] = set()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            known = [name for name in (*ENDING, *OWN) if hasattr(signal, name)]
            for name in known:
                number = signal.Signals[name]
                before = signal.getsignal(number)
                if callable(before) or (before == signal.SIG_DFL and name in ENDING):
                    self._before[number] = before
                    signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self.asked is not None and error is None:
            self._deliver()

    def saved(self, loop: object) -> None:
        """That loop has saved where it is; the last one to do so hands the signal on."""
        self._saved.add(loop)
        if self.asked is not None and self.running <= self._saved:
            self._deliver()

    def take(self, number: int) -> None:
        """Treat a signal that another process of the run has had as one's own, unless it is."""
        if self.asked is None and number in self._before:
            self._take(number, None)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT == self.asked
        if self.asked is None:
            self.asked = number
            self._saved.clear()
        if again or not self.running:
            self._deliver()

    def _deliver(self) -> None:
        assert self.asked is not None
        number, self.asked = self.asked, None
        before = self._before[number]
        if callable(before):
            before(number, None)
        else:
            signal.signal(number, before)
            signal.raise_signal(number)
